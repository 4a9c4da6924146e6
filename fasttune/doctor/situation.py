"""What every check needs to know of the machine first: its GPUs, the build of torch, whether this is WSL2."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fasttune import machine
from fasttune.console import _
from fasttune.machine import Gpu

CLONE = Path(__file__).parents[2]  # of the repository, where fasttune runs from one


@dataclass(frozen=True)
class Situation:
    """The machine in a few facts.

    `gpu` is the GPU that will be used, None without one; `driver_problem` why the driver lists none although there is
    hardware or a driver; `torch_cuda` as `machine.torch_cuda`; `runs` the folder of the runs.
    """

    gpu: Gpu | None
    driver_problem: str
    torch_cuda: str | None
    wsl: bool
    runs: Path

    @property
    def computes_on_gpu(self) -> bool:
        """Whether there is a GPU and a torch that is built for GPUs."""
        return self.gpu is not None and bool(self.torch_cuda)


def look(runs: Path) -> Situation:
    """Ask the driver and the kernel; a driver that fails or hangs is a fact."""
    gpu, problem = None, ""
    try:
        listed = machine.list_gpus()
        gpu = machine.first_visible(listed, os.environ.get("CUDA_VISIBLE_DEVICES"))
        problem = "" if gpu else _("it lists no GPU")
        if listed and gpu is None:
            problem = _("CUDA_VISIBLE_DEVICES names none of its GPUs")
    except FileNotFoundError:
        problem = _("an NVIDIA GPU is on the bus, and there is no nvidia-smi") if machine.has_nvidia_hardware() else ""
    except subprocess.TimeoutExpired:
        problem = _("nvidia-smi gave no answer within {seconds:.0f} s", seconds=machine.DRIVER_SECONDS)
    except subprocess.CalledProcessError as failure:
        said = (failure.stdout or failure.stderr or "").strip().splitlines()
        problem = _("nvidia-smi failed: {reason}", reason=said[0] if said else failure.returncode)
    return Situation(gpu, problem, machine.torch_cuda(), machine.is_wsl(), runs)


def set_up_command() -> str:
    """The command that installs the tested set: the clone's own set-up, or pip."""
    return "make setup" if (CLONE / ".setup" / "install.py").is_file() else "python -m pip install --upgrade fasttune"
