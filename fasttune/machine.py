"""The machine without torch: its GPUs as the driver lists them, free memory, versions of installed packages, what
is particular about a Linux in Windows, and when this process looks for garbage.

Standard library and psutil only, so that planning, `fasttune init` and `fasttune --help` load no torch.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

GIB = 2**30
WSL_NVIDIA_SMI = "/usr/lib/wsl/lib/nvidia-smi"  # where the driver for Windows puts it; not on every PATH
DRIVER_SECONDS = 10.0  # within which nvidia-smi answers a question
PCI_DEVICES = Path("/sys/bus/pci/devices")
PROC_VERSION, PROC_MOUNTS = Path("/proc/version"), Path("/proc/mounts")
PROC_ROUTE, PROC_CPUINFO = Path("/proc/net/route"), Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # as the kernel names them, and as people do
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


def bfloat16_instructions(cpuinfo: Path = PROC_CPUINFO) -> str:
    """What the processor multiplies bfloat16 by, "AMX" or "AVX512-BF16"; "" where it has neither, or is not Linux'.

    FASTTUNE_CPU_FLAGS stands for the processor's flags where it is set: the tests say there which they are to see.
    """
    flags = os.environ.get("FASTTUNE_CPU_FLAGS")
    if flags is None:
        with contextlib.suppress(OSError):
            flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    known = set((flags or "").split())
    return next((name for flag, name in BFLOAT16_FLAGS.items() if flag in known), "")


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


# GPUs in detail ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it: memory in MiB, `capability` as (major, minor), None where the driver is too
    old to say it."""

    index: int
    uuid: str
    name: str
    driver: str
    total_mib: float
    used_mib: float
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU; `mib` is None where the driver does not say how much (WSL2)."""

    pid: int
    name: str
    mib: float | None


def nvidia_smi() -> str | None:
    """The driver's own program; None where there is none."""
    return shutil.which("nvidia-smi") or shutil.which(WSL_NVIDIA_SMI)


def query_driver(what: str, fields: str) -> list[list[str]]:
    """The cells of each line that `nvidia-smi --query-WHAT=FIELDS` prints.

    Raises OSError or subprocess.SubprocessError where it is missing, fails, or does not answer within DRIVER_SECONDS.
    """
    program = nvidia_smi()
    if program is None:
        raise FileNotFoundError("nvidia-smi")
    command = [program, f"--query-{what}={fields}", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DRIVER_SECONDS)
    return [[cell.strip() for cell in line.split(",")] for line in listed.stdout.splitlines() if line.strip()]


def list_gpus() -> list[Gpu]:
    """All GPUs that the driver lists. Raises as `query_driver` does."""
    fields = "index,uuid,driver_version,memory.total,memory.used,name"
    try:
        rows = query_driver("gpu", f"{fields},compute_cap")
    except subprocess.CalledProcessError:  # a driver from before 2022 does not know compute_cap
        rows = [[*row, ""] for row in query_driver("gpu", fields)]
    return [
        Gpu(int(index), uuid, name, driver, number(total) or 0.0, number(used) or 0.0, capability(computes))
        for index, uuid, driver, total, used, name, computes in rows
    ]


def gpu_processes() -> list[GpuProcess]:
    """The processes that compute on a GPU. Raises as `query_driver` does."""
    rows = query_driver("compute-apps", "pid,used_memory,process_name")
    return [GpuProcess(int(pid), name, number(mib)) for pid, mib, name in rows if pid.isdigit()]


def first_visible(gpus: Sequence[Gpu], visible: str | None) -> Gpu | None:
    """The GPU that CUDA calls 0: the first that CUDA_VISIBLE_DEVICES names, by number or by the beginning of its UUID;
    None where it names none of them."""
    if visible is None:
        return gpus[0] if gpus else None
    first = visible.split(",")[0].strip()
    return next((gpu for gpu in gpus if first and (first == str(gpu.index) or gpu.uuid.startswith(first))), None)


def number(cell: str) -> float | None:
    """A cell as a number; None for "[N/A]" and the like."""
    try:
        return float(cell)
    except ValueError:
        return None


def capability(cell: str) -> tuple[int, int] | None:
    """ "8.9" as (8, 9); None for anything else."""
    major, _dot, minor = cell.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def has_nvidia_hardware(devices: Path = PCI_DEVICES) -> bool:
    """Whether a display controller (class 0x03) of NVIDIA (vendor 0x10de) is on the PCI bus, whatever drives it."""
    for device in devices.glob("*"):
        vendor, kind = device / "vendor", device / "class"
        known = vendor.is_file() and kind.is_file()
        if known and vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            return True
    return False


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for, "" for a CPU build, None where there is no torch.

    Read from its version.py, because importing torch takes seconds.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda(?:: [^=]+)? = ['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return cuda[1] if cuda else ""


# Linux in Windows ----------------------------------------------------------------------------------------------------


def is_wsl(version: Path = PROC_VERSION) -> bool:
    """Whether this Linux runs in Windows (WSL): its kernel is Microsoft's."""
    try:
        return "microsoft" in version.read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        return False


def windows_path(path: Path) -> str | None:
    """A file's path as Windows names it, by WSL2's wslpath; None where this Linux does not run in Windows."""
    program = shutil.which("wslpath")
    if program is None or not is_wsl():
        return None
    try:
        done = subprocess.run([program, "-w", str(path)], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def filesystem(path: Path, mounts: Path = PROC_MOUNTS) -> str:
    """The type of the file system that holds a path: "ext4", "9p" …; "" where the kernel does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    absolute = path.absolute()
    found = ""
    deepest = -1
    for line in lines:
        _source, point, kind, *_rest = line.split(" ")
        where = Path(point.replace("\\040", " "))
        if len(where.parts) >= deepest and (where == absolute or where in absolute.parents):
            found, deepest = kind, len(where.parts)  # of two at one place the later one covers the other
    return found


def default_gateway(routes: Path = PROC_ROUTE) -> str:
    """The IPv4 address of the default gateway, under WSL2 that of Windows; "" where there is none."""
    try:
        lines = routes.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        _interface, destination, gateway, *_rest = line.split()
        if destination == "00000000" and gateway != "00000000":
            return ".".join(str(part) for part in bytes.fromhex(gateway)[::-1])  # written little-endian
    return ""


def total_ram_gib() -> float:
    """GiB of RAM that this Linux has; under WSL2 its share of the PC's."""
    return float(psutil.virtual_memory().total) / GIB


def cache_folder() -> Path:
    """The folder of all that fasttune keeps to save work: $XDG_CACHE_HOME/fasttune, or ~/.cache/fasttune. Raises
    FileNotFoundError for a user who has no home folder."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as problem:
        raise FileNotFoundError(str(problem)) from problem
    return home / "fasttune"


@contextlib.contextmanager
def without_cache_errors(location: Callable[[], Path]) -> Iterator[None]:
    """End a block that uses a SQLite database of the cache folder without an exception where the database or the disk
    does not allow what it does; `location` says where the database lies.

    One that is damaged or not ours is removed, so that the next one is whole. (Another process may still write into the
    removed one: nobody reads that again.)
    """
    try:
        yield
    except (OSError, sqlite3.Error, OverflowError) as problem:
        # Operational: no space, no permission, no such folder, locked for too long; and damage of one header field, by
        # which SQLite can't read the file, or takes one that may be written for one that may not.
        operational = isinstance(problem, (OSError, sqlite3.OperationalError))
        with contextlib.suppress(OSError):
            unwritable = "readonly database" in str(problem) and os.access(location(), os.W_OK)
            if not operational or unwritable or "unsupported file format" in str(problem):
                location().unlink()


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """No search for cycles of garbage inside the block: for what makes millions of objects that all stay. Looking
    through them again and again takes a third of the time of `fasttune check`, and a seventh of importing Unsloth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
