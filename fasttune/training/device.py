"""The device that trains: which one, its number type, its memory and its random state. What differs between CPU and
CUDA is here, so that the rest of training need not ask.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from fasttune.console import _, error, usage_error
from fasttune.machine import GIB, is_wsl, visible_gpu
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import distributed

if TYPE_CHECKING:
    import torch


Device = Literal["cpu", "cuda"]
Result = TypeVar("Result")

SPARE = int(0.3 * GIB)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
OOM_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",
)


def device_type() -> Device:
    """`cuda` where torch can use a GPU, else `cpu`.

    Raises FasttuneError where the machine has a GPU that this torch cannot use, instead of training on the CPU
    silently; UNSLOTH_FORCE_CPU=1 asks for the CPU.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    gpu = visible_gpu()
    if gpu and os.environ.get("UNSLOTH_FORCE_CPU") != "1":
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
        raise error(
            "gpu-not-usable",
            _(
                "this machine has a GPU ({gpu}), but torch {version} can't use it",
                gpu=gpu,
                version=torch.__version__,
            ),
            why=_("this torch is built for: {build}", build=build),
            fix=_(
                "run `make quickstart` again to install the CUDA build, update the driver, or set UNSLOTH_FORCE_CPU=1"
            ),
        )
    return "cpu"


def needs_prefix_check() -> bool:
    """Whether prefix_check.py checks packed rows before the first step: on a GPU, whose kernels no CI has run."""
    return device_type() == "cuda"


def compute_dtype(recipe: ModelRecipe) -> torch.dtype:
    """The number type the model computes in: model.dtype, or for "auto" bfloat16 where the GPU has it, else float16;
    float32 on a CPU. A plan says "bfloat16" where "auto" is that on a CPU (planning/number_type.py).

    Raises UsageError for bfloat16 on a GPU that has none: Unsloth would compute in float16 without a word.
    """
    import torch

    if recipe.dtype == "float32" or (recipe.dtype == "auto" and device_type() == "cpu"):
        return torch.float32
    has_bfloat16 = device_type() == "cpu" or torch.cuda.get_device_capability() >= (8, 0)
    if recipe.dtype == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if not has_bfloat16:
        what = _("this GPU has no bfloat16 (compute capability {capability}, it takes 8.0)",
                 capability=".".join(map(str, torch.cuda.get_device_capability())))  # fmt: skip
        fix = _('for a new run write dtype = "auto", which is float16 here; a run that began in bfloat16 on a CPU '
                "continues there with UNSLOTH_FORCE_CPU=1")  # fmt: skip
        raise usage_error("bfloat16-not-available", what, where="model.dtype", fix=fix)
    return torch.bfloat16


def precision(recipe: ModelRecipe) -> dict[str, bool]:
    """`compute_dtype` as TrainingArguments' flag for mixed precision; the adapter's weights stay float32."""
    flag = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(compute_dtype(recipe)))
    return {flag: True} if flag else {}


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step has freed for the next one. Otherwise it returns 200 MB a layer to the
    kernel, which zeroes them again: 7 % of a step. Other C libraries have no such setting."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(M_MMAP_THRESHOLD, 2**30)
        glibc.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory() -> int:
    """Bytes that can still be allocated: on the GPU, those that torch has reserved and does not use included, within
    the limit of `refuse_spilling`; on a CPU this process's share of the machine's memory, within the limit on its own
    (`ulimit -v`)."""
    import psutil
    import torch

    if device_type() == "cpu":
        return min(psutil.virtual_memory().available // distributed.local_world_size(), address_space_left())
    free, total = torch.cuda.mem_get_info()
    limit = int(torch.cuda.get_per_process_memory_fraction() * total)
    return min(free + torch.cuda.memory_reserved(), limit) - torch.cuda.memory_allocated()


def refuse_spilling() -> None:
    """Under WSL2, let torch have no more GPU memory than is free now. The driver of Windows would not refuse what is
    more, but move it into the computer's memory, where every step takes ten times as long and E3 never acts."""
    import torch

    if device_type() == "cuda" and is_wsl():
        free, total = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved()  # of a training before this one in the same process
        torch.cuda.set_per_process_memory_fraction(fraction_to_use(free, total))


def fraction_to_use(free: int, total: int) -> float:
    """The share of a GPU's memory that torch may take under WSL2: what is free, less SPARE for CUDA's own context and a
    desktop that wants a little more; at least a tenth, or nothing could be tried."""
    return min(1.0, max(0.1, (free - SPARE) / total))


def gpu_memory() -> int:
    """The bytes of memory that the GPU has; 0 without one."""
    import torch

    return torch.cuda.mem_get_info()[1] if device_type() == "cuda" else 0


def address_space_left() -> int:
    """The bytes that this process may still map under its own limit (RLIMIT_AS); a very large number without one."""
    import resource

    limit, _hard = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - resident_bytes("VmSize"), 0)


def used_memory() -> int:
    """Peak bytes of this process: reserved by torch on the GPU, on a CPU resident."""
    import resource

    import torch

    if device_type() == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> int:
    """Reset what `peak_memory` measures; returns the bytes in use now."""
    import torch

    if device_type() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # not permitted: the peak stays that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def peak_memory() -> int:
    """Peak bytes in use since `reset_peak`: allocated by torch on the GPU, on a CPU resident."""
    import torch

    return torch.cuda.max_memory_allocated() if device_type() == "cuda" else resident_bytes("VmHWM")


def resident_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS (resident now), VmHWM (peak) or VmSize (mapped)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's on a GPU, that of its CPU allocator, or Python's own."""
    import torch

    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(problem, OSError) and problem.errno == errno.ENOMEM:
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in OOM_MESSAGES)


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """For work on a GPU: what it returns, the seconds until all of it was launched, and those until the GPU has done
    it."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _which in range(2))
    torch.cuda.synchronize()
    begin.record()
    began = time.perf_counter()
    result = work()
    launched = time.perf_counter() - began
    end.record()
    end.synchronize()
    return result, launched, begin.elapsed_time(end) / 1e3


def release_memory() -> None:
    """Free what a failed attempt has left: unreachable tensors and torch's unused GPU memory."""
    import torch

    gc.collect()
    if device_type() == "cuda":
        torch.cuda.empty_cache()


def random_state() -> list[torch.Tensor]:
    """The states of the generators that dropout draws from: torch's on the CPU and, where one is used, on the GPU."""
    import torch

    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device_type() == "cuda" else [])]


def set_random_state(states: Sequence[torch.Tensor]) -> None:
    """Restore what `random_state` returned."""
    import torch

    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def random_state_digest() -> str:
    """sha256 of the states of the random generators of Python, torch and the GPU."""
    states = [state.numpy().tobytes() for state in random_state()]
    return hashlib.sha256(b"".join([repr(random.getstate()).encode(), *states])).hexdigest()
