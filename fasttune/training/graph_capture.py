"""torch's CUDA graphs, which the tests stand in for (tests/graph_stand_in.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fasttune.training import device, distributed

Work = Callable[[], Any]


def is_available() -> bool:
    """Whether there are CUDA graphs."""
    return device.device_type() == "cuda"


def graph_pool() -> Any:
    """A memory pool for graphs."""
    return torch.cuda.graph_pool_handle()


def warm_up(work: Work) -> None:
    """Do work twice beside the main stream, as torch asks for before it is recorded: what it compiles and keeps is
    there afterwards."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _turn in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def capture(work: Work, pool: Any) -> Work:
    """Record work, without doing it; returns what does it. With several processes other threads may use CUDA
    meanwhile: NCCL's watchdog does."""
    graph, mode = torch.cuda.CUDAGraph(), "thread_local" if distributed.world_size() > 1 else "global"
    with torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
        work()
    return graph.replay
