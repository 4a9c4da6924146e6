"""CUDA graphs without a GPU: every operator is recorded with the tensors it reads and writes, and done again on the same
tensors when the graph is replayed. What Python has put into a recording stays what it was, as in a real graph; what may
not stand in one is refused as CUDA refuses it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import host_reads
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fasttune.training import attention_kernels, device, graph_capture

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave.Tensor", "_pin_memory"}
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[torch.Tensor]]


class Graph(TorchDispatchMode):
    """A recording. `replayed` counts its replays; `leave_out` names an operator that is not recorded: a wrong one."""

    recording: Graph | None = None

    def __init__(self, leave_out: str = "") -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.replayed, self.leave_out = 0, leave_out

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[-1]
        if name in WAITS or f"{name}.{function._overloadname}" in WAITS:
            refuse(name)
        found = function(*args, **(kwargs or {}))
        if name != self.leave_out:
            self.record(function, args, kwargs or {}, found, function._schema.is_mutable)
        return found

    def record(self, function: Any, args: Any, kwargs: Any, found: Any, is_mutable: bool = False) -> None:
        """Keep a call; a view needs no second one, and what is written in place is not copied."""
        read = {one.untyped_storage().data_ptr() for one in tensors((args, kwargs))}
        new = [one for one in tensors(found) if one.untyped_storage().data_ptr() not in read]
        if new or is_mutable:
            self.calls.append((function, args, kwargs, [] if is_mutable else tensors(found)))

    def replay(self) -> None:
        """Do all of it again."""
        self.replayed += 1
        with torch.no_grad(), _disable_current_modes():
            for function, args, kwargs, written in self.calls:
                again = function(*args, **kwargs)
                for old, new in zip(written, tensors(again), strict=False):
                    old.copy_(new)


def refuse(name: str) -> None:
    """As CUDA does where something waits for the GPU, or reads a tensor's values, while a graph is recorded."""
    raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})\nmore lines")


def tensors(values: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


def as_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel written in Python that reads its tensors' values: one call of a recording."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        graph = Graph.recording
        if graph is None:
            return function(*args, **kwargs)
        with _disable_current_modes():
            found = function(*args, **kwargs)
        graph.record(function, args, kwargs, found)
        return found

    return call


class Graphs:
    """What was recorded, and whether recording fails: `problem` is raised in the middle of the first one."""

    def __init__(self, leave_out: str = "", problem: Exception | None = None) -> None:
        self.made: list[Graph] = []
        self.leave_out, self.problem = leave_out, problem

    def capture(self, work: Callable[[], Any], pool: Any) -> Callable[[], None]:
        graph = Graph.recording = Graph(self.leave_out)
        try:
            with graph, host_reads.noticed(refuse):
                work()
                if self.problem:
                    raise self.problem
        finally:
            Graph.recording = None
        self.made.append(graph)
        return graph.replay

    @property
    def replays(self) -> int:
        """Rows that a graph has computed, forward and backward."""
        forward, backward = self.made[::2], self.made[1::2]
        assert [graph.replayed for graph in forward] == [graph.replayed for graph in backward]
        return sum(graph.replayed for graph in forward)


def warm_up(work: Callable[[], Any]) -> None:
    for _turn in range(2):
        work()


@contextmanager
def cuda_graphs_here(
    leave_out: str = "", problem: Exception | None = None, seconds: tuple[float, float] = (1.0, 1.0)
) -> Iterator[Graphs]:
    """Rows of this process can be graphs; a measured row takes so many seconds to launch, and to be done."""
    graphs = Graphs(leave_out, problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_capture, "is_available", lambda: True)
        patch.setattr(graph_capture, "graph_pool", lambda: None)
        patch.setattr(graph_capture, "warm_up", warm_up)
        patch.setattr(graph_capture, "capture", graphs.capture)
        patch.setattr(device, "timed", lambda work: (work(), *seconds))
        kernel = attention_kernels.Kernel(*map(as_one, attention_kernels.CPU))
        patch.setattr(attention_kernels, "CPU", kernel)
        yield graphs
