"""The GPU as its driver describes it: driver, torch's build, and who holds the memory."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import PurePath

from fasttune import machine
from fasttune.console import _
from fasttune.doctor.outcome import Check, not_applicable, ok
from fasttune.doctor.situation import CLONE, Situation, set_up_command
from fasttune.machine import GpuProcess

Version = tuple[int, int]

# The lowest CUDA that has code for a GPU, by compute capability from NVIDIA's release notes.
CUDA_FOR_CAPABILITY: tuple[tuple[Version, Version], ...] = (
    ((12, 1), (12, 9)),  # GB10
    ((12, 0), (12, 8)),  # RTX 50
    ((10, 3), (12, 9)),
    ((10, 0), (12, 8)),  # B200
    ((9, 0), (11, 8)),  # H100
    ((8, 9), (11, 8)),  # RTX 40
    ((8, 6), (11, 1)),  # RTX 30
    ((8, 0), (11, 0)),  # A100
    ((7, 5), (10, 0)),  # RTX 20, GTX 16
)
LOWEST_CAPABILITY = (7, 5)
# The first driver series for a CUDA major version (minor versions share it), and for GPUs that came later.
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}
DRIVER_FOR_RTX_50 = 570
LITTLE_FREE_MIB = 2.8 * 1024  # what the smallest base needs in 16 bits (planning/init.py)


def driver(situation: Situation) -> Check:
    """Whether the driver lists the GPU, and which one will be used."""
    name = "gpu-driver"
    if situation.driver_problem:
        fix = _("install NVIDIA's driver, 580 or newer: `sudo ubuntu-drivers install`")
        if situation.wsl:
            fix = _("update the driver in Windows (580 or newer), then in Windows: `wsl --shutdown`")
        why = _("without it a training runs on the processor, many times slower")
        return Check(name, "error", situation.driver_problem, why, fix)
    if situation.gpu is None:
        return not_applicable(name, _("no NVIDIA GPU: trainings run on the processor"))
    gpu = situation.gpu
    computes = ".".join(map(str, gpu.capability)) if gpu.capability else "?"
    return ok(
        name,
        _(
            "driver {driver}; GPU {index} is used: {gpu}, {memory:.1f} GiB, compute capability {capability}",
            driver=gpu.driver,
            index=gpu.index,
            gpu=gpu.name,
            memory=gpu.total_mib / 1024,
            capability=computes,
        ),
    )


def torch_build(situation: Situation) -> Check:
    """Whether the installed torch can drive the GPU with this driver, by NVIDIA's tables."""
    name = "torch-build"
    if situation.torch_cuda is None:
        return Check(name, "error", _("torch is not installed"), fix=f"`{set_up_command()}`")
    build = _("CUDA {version}", version=situation.torch_cuda) if situation.torch_cuda else _("CPU")
    if situation.gpu is None:
        return ok(name, _("torch is a build for: {build}", build=build))
    if not situation.torch_cuda:
        what = _("torch is a CPU build, and this machine has a GPU: {gpu}", gpu=situation.gpu.name)
        return Check(name, "error", what, _("a training would not use the GPU"), f"`{cuda_torch_command()}`")
    problem, fix = mismatch(version(situation.torch_cuda), version(situation.gpu.driver)[0], situation)
    if problem:
        return Check(name, "error", problem, _("torch can't use the GPU like this"), fix)
    return ok(name, _("torch is a build for: {build}", build=build))


def mismatch(cuda: Version, installed_driver: int, situation: Situation) -> tuple[str, str]:
    """What keeps a torch built for this CUDA from the GPU, and how to mend it; empty where nothing does."""
    computes = situation.gpu.capability if situation.gpu else None
    update = _("update NVIDIA's driver to 580 or newer: `sudo ubuntu-drivers install`, then restart")
    if situation.wsl:
        update = _("update the driver in Windows (580 or newer), then in Windows: `wsl --shutdown`")
    if computes and computes < LOWEST_CAPABILITY:
        has = ".".join(map(str, computes))
        what = _("the GPU has compute capability {capability}; 7.5 is the least", capability=has)
        return what, _("train on the processor: `UNSLOTH_FORCE_CPU=1 fasttune run RECIPE`")
    needed_cuda = next((least for known, least in CUDA_FOR_CAPABILITY if computes and computes >= known), (0, 0))
    if cuda < needed_cuda:
        what = _("torch is built for CUDA {built}, and this GPU needs CUDA {needed} or newer",
                 built=".".join(map(str, cuda)), needed=".".join(map(str, needed_cuda)))  # fmt: skip
        return what, f"`{cuda_torch_command()}`"
    needed_driver = DRIVER_FOR_CUDA.get(cuda[0], max(DRIVER_FOR_CUDA.values()))
    if computes and computes >= (10, 0):
        needed_driver = max(needed_driver, DRIVER_FOR_RTX_50)
    if installed_driver < needed_driver:
        what = _("the driver is {installed}; torch's CUDA {built} and this GPU need {needed} or newer",
                 installed=installed_driver, built=".".join(map(str, cuda)), needed=needed_driver)  # fmt: skip
        return what, update
    return "", ""


def cuda_torch_command() -> str:
    """The command that installs torch's CUDA build: its default on Linux."""
    in_clone = (CLONE / ".setup" / "install.py").is_file()
    return "make setup" if in_clone else "python -m pip install --force-reinstall torch"


def version(text: str) -> Version:
    """The first two numbers of a version; a missing one is 0."""
    numbers = [int(part) if part.isdigit() else 0 for part in [*text.split("."), "0"][:2]]
    return numbers[0], numbers[1]


def memory(situation: Situation) -> Check:
    """How much memory of the GPU is free, and which processes hold the rest."""
    if situation.gpu is None:
        return not_applicable("gpu-memory", _("no NVIDIA GPU"))
    try:
        processes = machine.gpu_processes()
    except (OSError, subprocess.SubprocessError):
        processes = []  # the list is an extra: the free memory is known without it
    return memory_of(situation, processes)


def memory_of(situation: Situation, processes: Sequence[GpuProcess]) -> Check:
    """As `memory`, for the processes that the driver lists. Their paths are left out: they name people."""
    gpu = situation.gpu
    assert gpu is not None
    free = gpu.total_mib - gpu.used_mib
    listed = sorted(processes, key=lambda one: -(one.mib or 0))
    held = ", ".join(
        f"{PurePath(one.name.replace(chr(92), '/')).name} ({one.pid}{f', {one.mib:.0f} MiB' if one.mib else ''})"
        for one in listed[:5]
    )
    what = _("{free:.1f} of {total:.1f} GiB are free", free=free / 1024, total=gpu.total_mib / 1024)
    if held:
        what = _("{what}; held by {processes}", what=what, processes=held)
    elif situation.wsl and free < gpu.total_mib * 0.8:
        what = _("{what}; the driver does not list Windows' processes to Linux", what=what)
    if free >= LITTLE_FREE_MIB:
        return ok("gpu-memory", what)
    why = _("training the smallest base in 16 bits takes {needed:.1f} GiB", needed=LITTLE_FREE_MIB / 1024)
    fix = _("close games, browsers and Ollama's models (`ollama ps` lists them, `ollama stop NAME` frees one)")
    if listed and len(listed) == 1 and not situation.wsl:
        fix = _("end the process that holds it: `kill {pid}`", pid=listed[0].pid)
    return Check("gpu-memory", "warning", what, why, fix)
