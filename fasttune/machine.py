"""The machine without torch: its GPU as the driver lists it, free memory, installed package versions.

Standard library and psutil only, so that planning, `fasttune init` and `fasttune --help` load no torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


def visible_gpu() -> str:
    """The first NVIDIA card the driver lists; empty where there is none. WSL2 keeps nvidia-smi off PATH at times."""
    program = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if program is None:
        return ""
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return listed.stdout.split("(UUID")[0].strip() if listed.returncode == 0 else ""


WSL_NVIDIA_SMI = "/usr/lib/wsl/lib/nvidia-smi"  # where Windows' driver puts it; not on every PATH


@dataclass(frozen=True)
class Machine:
    """Free memory in GiB: of the card with the most of it (None without a card), and of the computer."""

    card: float | None
    ram: float


# The machine --------------------------------------------------------------------------------------------------------


def free_memory() -> Machine:
    """What is free now, by nvidia-smi and the kernel; without loading torch."""
    return Machine(gpu_memory(), ram_memory(Path("/proc/meminfo")))


def gpu_memory() -> float | None:
    """Free GiB of the card with the most of it; None where no card answers."""
    for program in ("nvidia-smi", WSL_NVIDIA_SMI):
        try:
            told = subprocess.run(
                [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
                capture_output=True, text=True, check=True, timeout=30,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        free = [float(line) for line in told.stdout.split() if line.isdigit()]
        if free:
            return max(free) / 1024
    return None


def ram_memory(meminfo: Path) -> float:
    """GiB of memory that programs can get without swapping; all there is where the kernel does not say."""
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "unsloth", "unsloth_zoo", "bitsandbytes",
    "xformers", "tokenizers", "safetensors", "gguf", "llama-cpp-python",
)  # fmt: skip


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of packages, by default of those that decide what a training computes."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
