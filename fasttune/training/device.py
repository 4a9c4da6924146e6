"""The device that trains: which one, its number type, its memory and its random state. Everything torch-specific about
CPU and CUDA that the rest of training must not know.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fasttune.console import _, error
from fasttune.machine import visible_gpu
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import distributed

if TYPE_CHECKING:
    import torch


Device = Literal["cpu", "cuda"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED")


# The device ---------------------------------------------------------------------------------------------------------


def device_type() -> Device:
    """`cuda` where a card can be driven, else `cpu`; never a silent fall back.

    Raises FasttuneError where the machine shows a card that this torch can't drive.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    card = visible_gpu()
    if card and os.environ.get("UNSLOTH_FORCE_CPU") != "1":
        raise error(
            "gpu-not-usable",
            _(
                "this machine has a card ({card}), but torch {version} can't use it",
                card=card,
                version=torch.__version__,
            ),
            why=_(
                "this torch is built for: {build}", build=f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
            ),
            fix=_(
                "run `make quickstart` again to install the CUDA build, update the driver, or set UNSLOTH_FORCE_CPU=1"
            ),
        )
    return "cpu"


def shares_prefixes() -> bool:
    """Whether this machine's attention can share prefixes: on CPU, and on cards of compute capability 8.0 and above."""
    import torch

    return device_type() == "cpu" or torch.cuda.get_device_capability() >= (8, 0)


def checks_sharing() -> bool:
    """Whether shared prefixes are checked before the first step: on a card, whose kernel is not ours."""
    return device_type() == "cuda"


def compute_dtype(recipe: ModelRecipe) -> torch.dtype:
    """What the model computes in: the recipe's word, or bf16 where the card has it, else fp16; float32 on a CPU."""
    import torch

    if recipe.dtype != "auto":
        return torch.float32 if recipe.dtype == "float32" else torch.bfloat16
    if device_type() == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def precision(recipe: ModelRecipe) -> dict[str, bool]:
    """The same as the Trainer's mixed-precision flag; the adapter's weights stay float32."""
    flag = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(compute_dtype(recipe)))
    return {flag: True} if flag else {}


def keep_freed_memory() -> None:
    """Let glibc keep what a step has freed for the next one, instead of giving the kernel 200 MB a layer back and
    having it zeroed again (7 % of a step; other C libraries have no such call and do as they do)."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(M_MMAP_THRESHOLD, 2**30)
        glibc.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory() -> int:
    """Bytes that can still be had: of the card where one is used, torch's own unused ones included, else of the
    machine."""
    import psutil
    import torch

    if device_type() == "cpu":
        return psutil.virtual_memory().available // distributed.local_world_size()
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def used_memory() -> int:
    """Peak bytes of this process since its first step: reserved on the card where one is used, else resident."""
    import resource

    import torch

    if device_type() == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> int:
    """Let `peak_memory` begin anew; the bytes in use now."""
    import torch

    if device_type() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # without it the peak of the process's whole life counts
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak_memory() -> int:
    """Most bytes that were in use since `reset_peak`: on the card, else resident."""
    import torch

    return torch.cuda.max_memory_allocated() if device_type() == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """A figure of this process as Linux counts it: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out: a card's, the CPU allocator's or Python's own."""
    import torch

    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in NO_MEMORY)


def release_memory() -> None:
    """Hand back what a failed attempt has left."""
    import torch

    gc.collect()
    if device_type() == "cuda":
        torch.cuda.empty_cache()


def random_state() -> list[torch.Tensor]:
    """The generators that dropout draws from."""
    import torch

    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device_type() == "cuda" else [])]


def set_random_state(states: Sequence[torch.Tensor]) -> None:
    """Put the generators where they were."""
    import torch

    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
