"""The machine without torch: its GPUs as the driver lists them, free memory, versions of installed packages.

Standard library and psutil only, so that planning, `fasttune init` and `fasttune --help` load no torch.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

import psutil

GIB = 2**30
WSL_NVIDIA_SMI = "/usr/lib/wsl/lib/nvidia-smi"  # where the driver for Windows puts it; not on every PATH
# What decides which numbers a training computes.
TRAINING_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "unsloth", "unsloth_zoo", "bitsandbytes",
    "xformers", "tokenizers", "safetensors", "gguf", "llama-cpp-python",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Free memory in GiB: of the GPU that has the most of it (None without a GPU), and of the computer's RAM."""

    gpu_gib: float | None
    ram_gib: float


def visible_gpu() -> str:
    """The first NVIDIA GPU that the driver lists, for example "GPU 0: NVIDIA H100 80GB HBM3"; "" where there is none.

    Raises subprocess.TimeoutExpired where nvidia-smi does not answer within 30 s.
    """
    program = shutil.which("nvidia-smi") or shutil.which(WSL_NVIDIA_SMI)
    if program is None:
        return ""
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return listed.stdout.split("(UUID")[0].strip() if listed.returncode == 0 else ""


def free_memory() -> Machine:
    """The free memory of GPU and computer, by nvidia-smi and the kernel; torch is not loaded."""
    return Machine(free_gpu_gib(), free_ram_gib())


def free_gpu_gib() -> float | None:
    """Free GiB of the GPU that has the most of it; None where nvidia-smi is missing or lists no GPU."""
    for program in ("nvidia-smi", WSL_NVIDIA_SMI):
        try:
            listed = subprocess.run(
                [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
                capture_output=True, text=True, check=True, timeout=30,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        free = [float(line) for line in listed.stdout.split() if line.isdigit()]  # MiB, a line a GPU
        if free:
            return max(free) / 1024
    return None


def free_ram_gib() -> float:
    """GiB of RAM that programs can get without swapping; MemAvailable in Linux' /proc/meminfo."""
    return float(psutil.virtual_memory().available) / GIB


def package_versions(names: Iterable[str] = TRAINING_PACKAGES) -> dict[str, str]:
    """{package: version} of those packages that are installed, in the given order."""
    return {name: version for name in names if (version := installed_version(name)) is not None}


@functools.cache  # every checkpoint records the versions; a process keeps what it has imported
def installed_version(name: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
