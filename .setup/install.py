"""Makes `.venv` and installs the locked set into it: `python3 .setup/install.py [--dev]`, which the Makefile calls.

What it does, in this order: decides between CPU and CUDA, checks the machine, makes `.venv`, compiles llama-cpp-python
(there is no wheel of it; the wheel made here is kept in ~/.cache/fasttune/wheels for other clones), installs torch, the
locks beside this file (`--no-deps`: the reason stands in requirements.lock), the project itself, and loads what it
installed. Where packages come from is pip's own configuration.

It may be repeated and interrupted at will. `.venv/setup.json` says what was finished; while it matches the locks, this
file and the Python in use, nothing is done. While pip writes, `.venv/setup-unfinished` lies there: found at the start,
`.venv` is made anew (downloads come from pip's cache). Everything that pip prints is in `.cache/setup.log`.

FASTTUNE_DEVICE=cpu|cuda overrides the decision. A machine with an NVIDIA GPU gets the CUDA build or an error that says
what to do, never a CPU build by accident. Nothing but the standard library is imported here.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHONS = ((3, 10), (3, 14))
TORCH = "2.13.0"
DRIVER = "580"  # the first driver series for CUDA 13, which torch 2.13.0 is built with
GPU_NEEDS = (
    f"a driver of version {DRIVER} or newer (see the first lines of nvidia-smi) and a GPU of compute capability 7.5 "
    "or newer (GTX 16, RTX 20 and later)"
)
WSL_NVIDIA_SMI = Path("/usr/lib/wsl/lib/nvidia-smi")  # where Windows' driver puts it; not on every PATH
PCI_DEVICES = Path("/sys/bus/pci/devices")
GIB_NEEDED = {"cpu": 6, "cuda": 14}  # of free disk, wheels in pip's cache included
COMPILE_GIB = 0.6  # of memory for one compiler
LLAMA_DEFINES = (
    "-DGGML_NATIVE=OFF",  # a kept wheel must also run on another processor
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",  # else everything is installed a second time into site-packages/lib
    "-DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include",
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
)
NO_CONNECTION = re.compile(
    "NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution|ProxyError|ConnectionResetError"
)
STARTED = time.monotonic()


class SetupError(Exception):
    """The machine or the network stops the set-up: `what` is the fact, `fix` what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class StepError(SetupError):
    """A command of the set-up failed; `output` is all that it printed."""

    def __init__(self, what: str, fix: str, output: str) -> None:
        super().__init__(what, fix)
        self.output = output


@dataclass(frozen=True)
class Place:
    """Where one clone keeps its set-up; `wheels` is shared by all clones of a user."""

    root: Path
    wheels: Path

    @property
    def locks(self) -> Path:
        return self.root / ".setup"

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / "setup.json"

    @property
    def unfinished(self) -> Path:
        return self.venv / "setup-unfinished"

    @property
    def log(self) -> Path:
        return self.root / ".cache" / "setup.log"

    @property
    def site_packages(self) -> Path:
        return self.venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, keeps a second set-up of the same clone waiting, and shows errors without a traceback."""
    parser = argparse.ArgumentParser(description="Make .venv and install the locked set into it.")
    parser.add_argument("--dev", action="store_true", help="also what `make test` and `make check` need")
    options = parser.parse_args(arguments)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = Place(Path(__file__).resolve().parents[1], cache / "fasttune" / "wheels")
    folder = os.open(place.root, os.O_RDONLY)
    try:
        wait_for_turn(folder)
        set_up(place, dev=options.dev, environ=os.environ)
    except SetupError as error:
        print(f"error: {error.what}\n hint: {error.fix}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue", file=sys.stderr)
        return 130
    finally:
        os.close(folder)
    return 0


def wait_for_turn(folder: int) -> None:
    """Takes the lock on the clone's folder, so that `make quickstart` and `make test` side by side don't mix."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another set-up of this clone is running: waiting for it")
        fcntl.flock(folder, fcntl.LOCK_EX)


def set_up(place: Place, *, dev: bool, environ: Mapping[str, str]) -> None:
    """Brings `.venv` to the locked set; does nothing where the stamp says that it is there already."""
    check_python(sys.version_info[:2])
    if is_current(place, dev=dev, environ=environ):
        return
    device, reason = decide_device(environ)
    check_machine(place, device)
    place.log.parent.mkdir(parents=True, exist_ok=True)
    place.log.write_text("", encoding="utf-8")
    wheel = llama_wheel(place)
    compiles = not zipfile.is_zipfile(wheel)  # false for a missing and for a truncated file
    announce(place, device, reason, compiles=compiles)
    place.stamp.unlink(missing_ok=True)
    make_venv(place)
    pip(place, "pip", "install", find_pin(place, "pip"))
    if compiles:
        build_llama(place, wheel)
    pip(place, "llama-cpp-python", "install", "--no-deps", "--force-reinstall", str(wheel))
    build = install_torch(place, device)
    locks = ["requirements.lock", f"requirements-{build}.lock", *(["requirements-dev.lock"] if dev else [])]
    names = [argument for lock in locks for argument in ("-r", str(place.locks / lock))]
    pip(place, "the locked set", "install", "--no-deps", *names)
    pip(place, "fasttune", "install", "--no-deps", "--no-build-isolation", "--editable", str(place.root))
    check_result(place, device)
    write_stamp(place, build, dev=dev)
    say("ready")


def check_python(version: tuple[int, int]) -> None:
    """Raises SetupError for a Python that the locked set has no wheels for."""
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return
    low, high = (".".join(map(str, bound)) for bound in PYTHONS)
    raise SetupError(
        f"this is Python {version[0]}.{version[1]}, and fasttune's packages exist for Python {low} to {high}",
        "name another one: make quickstart PYTHON=python3.12",
    )


# --- CPU or CUDA


def decide_device(
    environ: Mapping[str, str], wsl_nvidia_smi: Path = WSL_NVIDIA_SMI, pci_devices: Path = PCI_DEVICES
) -> tuple[str, str]:
    """`cpu` or `cuda`, and the reason in words.

    Raises SetupError where a GPU seems to be there but its driver doesn't answer: a CPU build would be a silent loss.
    """
    override = environ.get("FASTTUNE_DEVICE", "")
    if override:
        if override not in ("cpu", "cuda"):
            raise SetupError(f"FASTTUNE_DEVICE is {override!r}", "set it to cpu or cuda, or leave it out")
        return override, "FASTTUNE_DEVICE says so"
    path = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if path is None and wsl_nvidia_smi.exists():
        path = str(wsl_nvidia_smi)
    if path is not None:
        return "cuda", list_gpus(path)
    if has_nvidia_gpu(pci_devices):
        raise SetupError(
            "this machine has an NVIDIA GPU but no driver for it (there is no nvidia-smi)",
            f"install NVIDIA's driver, version {DRIVER} or newer (on WSL2: in Windows, never inside Linux), "
            "or set FASTTUNE_DEVICE=cpu to train on the CPU",
        )
    return "cpu", "no NVIDIA GPU found"


def list_gpus(nvidia_smi: str) -> str:
    """The GPUs' names, joined by commas. Raises SetupError where the driver doesn't answer or lists none."""
    try:
        answer = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        output, gpus = str(error), []
    else:
        output = (answer.stdout + answer.stderr).strip()
        gpus = re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", answer.stdout, re.MULTILINE)
        if answer.returncode == 0 and gpus:
            return ", ".join(gpus)
    raise SetupError(
        f"{nvidia_smi} lists no GPU: {output or 'it prints nothing'}",
        f"repair the NVIDIA driver ({DRIVER} or newer; on WSL2 it is installed in Windows, then `wsl --shutdown`), "
        "or set FASTTUNE_DEVICE=cpu to train on the CPU",
    )


def has_nvidia_gpu(pci_devices: Path) -> bool:
    """Whether a display controller (class 0x03) of NVIDIA (vendor 0x10de) is on the PCI bus."""
    for device in pci_devices.glob("*"):
        vendor, kind = device / "vendor", device / "class"
        known = vendor.is_file() and kind.is_file()
        if known and vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            return True
    return False


# --- what the machine must have


def check_machine(place: Place, device: str) -> None:
    """Raises SetupError that names everything missing and the one apt line that brings it, or the disk space needed."""
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    missing, packages = [], []
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        missing.append("venv of Python")
        packages.append(f"{python}-venv")
    tools = [tool for tool in ("gcc", "g++", "make") if shutil.which(tool) is None]
    if tools:
        missing += tools
        packages.append("build-essential")
    # Triton compiles a small C extension for its launcher when the first kernel runs.
    if device == "cuda" and not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append("Python.h")
        packages.append(f"{python}-dev")
    if missing:
        command = f"sudo apt update && sudo apt install -y {' '.join(packages)}"
        raise SetupError(f"missing on this machine: {', '.join(missing)}", command)
    free = shutil.disk_usage(place.root).free / 2**30
    if not place.python.exists() and free < GIB_NEEDED[device]:
        raise SetupError(
            f"{free:.1f} GiB of disk are free in {place.root}, the set-up needs about {GIB_NEEDED[device]}",
            "free some space, or clone onto a larger disk",
        )


def announce(place: Place, device: str, reason: str, *, compiles: bool) -> None:
    """Says what is going to happen and how long it takes, before it starts."""
    cores = len(os.sched_getaffinity(0))
    minutes = (3 if device == "cpu" else 6) + (6 / cores if compiles else 0)
    load = "downloads 0.7 GB" if device == "cpu" else "downloads 3 GB"
    compiling = f", llama-cpp-python is compiled on {cores} core(s)" if compiles else ""
    say(f"setting up .venv for {device.upper()} ({reason})")
    if torch_build(place) is None or place.unfinished.exists() or compiles:
        say(f"this happens once and takes about {minutes:.0f} minutes: {load}{compiling}")
    say(f"everything that pip prints: {place.log}")


# --- the steps


def make_venv(place: Place) -> None:
    """`.venv` with a working pip of the Python in use; one that was left unfinished is made anew."""
    if place.python.exists() and not place.unfinished.exists() and is_healthy(place.python):
        return
    if place.venv.is_symlink():
        raise SetupError(f"{place.venv} is a symbolic link to something that doesn't work", "remove the link")
    if place.venv.exists():
        say("the .venv here is unfinished or of another Python: making it anew")
        shutil.rmtree(place.venv)
    run(place, "an empty .venv", [sys.executable, "-m", "venv", str(place.venv)])


def is_healthy(python: Path) -> bool:
    """Whether this interpreter starts, is of the version in use and has pip."""
    program = "import sys, pip; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.split() == [str(part) for part in sys.version_info[:2]]


def install_torch(place: Place, device: str) -> str:
    """Installs torch and returns the build that is there now, `cpu` or `cuda`.

    A machine without a GPU takes the CPU build where pip's configuration offers one, else what there is: the CUDA
    build runs on a CPU too, given its libraries. Raises SetupError rather than leave a CPU build on a machine with a
    GPU.
    """
    build = torch_build(place)
    if build is None or (device == "cuda" and build == "cpu"):
        force = ["--force-reinstall"] if build else []
        if device == "cuda" or not pip_offers(place, f"torch=={TORCH}+cpu"):
            pip(place, f"torch {TORCH}", "install", "--no-deps", *force, f"torch=={TORCH}")
        build = torch_build(place)
        say(f"torch {TORCH} is a {build} build")
    if build is None:
        raise SetupError(f"torch {TORCH} isn't in .venv after its installation", f"read {place.log}")
    if device == "cuda" and build == "cpu":
        raise SetupError(
            "pip's configuration brought a CPU build of torch to a machine with an NVIDIA GPU",
            "look at `pip config list` and at PIP_* in the environment for a find-links or extra-index-url with CPU "
            "builds, take it out and run again; FASTTUNE_DEVICE=cpu trains on the CPU on purpose",
        )
    return build


def pip_offers(place: Place, requirement: str) -> bool:
    """Installs the requirement where pip's sources have it; False where they don't. Other failures raise SetupError."""
    try:
        pip(place, requirement.replace("==", " "), "install", "--no-deps", requirement)
    except StepError as error:
        if "No matching distribution found" not in error.output or NO_CONNECTION.search(error.output):
            raise
        place.unfinished.unlink()  # pip found nothing, so it wrote nothing
        say("pip's sources hold no CPU build: taking the CUDA build (3 GB), which runs on a CPU too")
        return False
    return True


def torch_build(place: Place) -> str | None:
    """`cpu` or `cuda` for the torch of the locked version in `.venv`, None where there is none."""
    versions = {found.version.split("+")[0] for found in installed(place, "torch")}
    version_file = place.site_packages / "torch" / "version.py"
    if TORCH not in versions or not version_file.exists():
        return None
    cuda = re.search(r"^cuda(?:: [^=]+)? = (.+)$", version_file.read_text(encoding="utf-8"), re.MULTILINE)
    return "cuda" if cuda and cuda[1] != "None" else "cpu"


def installed(place: Place, name: str) -> list[importlib.metadata.Distribution]:
    """What is in `.venv` under this name, without starting its Python."""
    return list(importlib.metadata.distributions(name=name, path=[str(place.site_packages)]))


def check_result(place: Place, device: str) -> None:
    """Loads torch and llama.cpp in the new environment. Raises SetupError where the GPU doesn't answer."""
    program = (
        "import json, llama_cpp, torch\n"
        "available = torch.cuda.is_available()\n"
        "if available: torch.zeros(1, device='cuda').add_(1).item()\n"
        "print(json.dumps([torch.version.cuda, available]))"
    )
    output = run(place, "loading torch and llama.cpp", [str(place.python), "-c", program])
    cuda, available = json.loads(output.splitlines()[-1])
    if device == "cuda" and not available:
        raise SetupError(
            f"torch is built for CUDA {cuda} but can't use the GPU",
            f"it needs {GPU_NEEDS}; FASTTUNE_DEVICE=cpu trains on the CPU on purpose",
        )


# --- llama-cpp-python


def llama_wheel(place: Place) -> Path:
    """Where the wheel lies, once made: one folder for all that decides what the compiler writes."""
    version = find_pin(place, "llama-cpp-python").split("==")[1]
    inputs = [*LLAMA_DEFINES, (place.locks / "nocommon.cmake").read_text(encoding="utf-8"), *platform.libc_ver()]
    digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]
    machine = platform.machine()
    return place.wheels / f"{machine}-{digest}" / f"llama_cpp_python-{version}-py3-none-linux_{machine}.whl"


def build_llama(place: Place, wheel: Path) -> None:
    """Compiles llama.cpp's library for the CPU, without its command line tools; an interrupted build leaves no wheel.

    On CUDA machines too: it checks, quantizes and probes, which a CPU does well, and so no CUDA compiler is needed.
    pip's own cache is left out: it would hand over a wheel that was built with other options.
    """
    snippet = shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={place.locks / 'nocommon.cmake'}")
    environ = {"CMAKE_ARGS": " ".join([*LLAMA_DEFINES, snippet]), "CMAKE_BUILD_PARALLEL_LEVEL": str(compile_jobs())}
    options = ["--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python", "--verbose"]
    options += ["--build-constraint", str(place.locks / "requirements-build.lock")]
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [str(place.python), "-m", "pip", "wheel", *options, "--wheel-dir", folder]
        run(place, "llama-cpp-python (compiling)", [*command, find_pin(place, "llama-cpp-python")], environ)
        made = list(Path(folder).glob("*.whl"))
        if [path.name for path in made] != [wheel.name]:
            raise SetupError(f"expected {wheel.name}, got {[path.name for path in made]}", f"read {place.log}")
        made[0].replace(wheel)


def compile_jobs() -> int:
    """As many compilers as there are cores, and memory for."""
    words = Path("/proc/meminfo").read_text(encoding="utf-8")
    available = re.search(r"^MemAvailable:\s+(\d+) kB", words, re.MULTILINE)
    gib = int(available[1]) / 2**20 if available else 1.0
    return max(1, min(len(os.sched_getaffinity(0)), int(gib / COMPILE_GIB)))


# --- locks and the stamp


def find_pin(place: Place, name: str) -> str:
    """The line `name==version` of requirements.lock."""
    for line in (place.locks / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line
    raise SetupError(f"requirements.lock has no line for {name}", "git checkout .setup/requirements.lock")


def fingerprint(place: Place) -> str:
    """A hash of all that decides what `.venv` holds: locks, this file, the project's metadata, Python and the folder.

    The folder counts because scripts in `.venv/bin` name it: a clone that was moved is set up again.
    """
    digest = hashlib.sha256()
    for path in [*sorted(place.locks.glob("*")), place.root / "pyproject.toml"]:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {sys.base_prefix} {platform.machine()} {place.root}".encode())
    return digest.hexdigest()


def is_current(place: Place, *, dev: bool, environ: Mapping[str, str]) -> bool:
    """Whether the stamp matches; a CPU build is current only as long as no GPU has appeared."""
    if not place.stamp.exists() or not place.python.exists() or place.unfinished.exists():
        return False
    stamp = json.loads(place.stamp.read_text(encoding="utf-8"))
    if stamp["fingerprint"] != fingerprint(place) or (dev and not stamp["dev"]):
        return False
    return stamp["build"] == "cuda" or decide_device(environ)[0] == "cpu"


def write_stamp(place: Place, build: str, *, dev: bool) -> None:
    """Record that the set-up is complete; written last, and an interrupted call leaves no stamp."""
    new = place.stamp.with_suffix(".new")
    new.write_text(json.dumps({"fingerprint": fingerprint(place), "build": build, "dev": dev}), encoding="utf-8")
    new.replace(place.stamp)


# --- running and saying


def pip(place: Place, label: str, command: str, *arguments: str) -> None:
    """One pip command in `.venv`; until it succeeds, `.venv` counts as unfinished."""
    place.unfinished.touch()
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    # A user's `pip config set global.user true` is an error inside a virtual environment.
    run(place, label, [str(place.python), "-m", "pip", command, *options, *arguments], {"PIP_USER": "0"})
    place.unfinished.unlink()


def run(place: Place, label: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """Runs a command with its output in the log, prints `label` with the seconds it took and returns the output.

    On a terminal the last line of the log is shown while it runs. Raises SetupError with the end of the log.
    """
    began, size = time.monotonic(), place.log.stat().st_size
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
        )
        try:
            while process.poll() is None:
                show_progress(place, label)
                time.sleep(0.05 if time.monotonic() - began < 1 else 0.5)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    output = place.log.read_bytes()[size:].decode("utf-8", "replace")
    if process.returncode:
        tail = "\n".join(f"  {line[:200]}" for line in output.strip().splitlines()[-12:])
        raise StepError(
            f"{label}: failed after {time.monotonic() - began:.0f} s\n{tail}", hint_for(output, place), output
        )
    say(f"{label}: {time.monotonic() - began:.0f} s")
    return output


def hint_for(output: str, place: Place) -> str:
    """What to do about a step that failed, from its output."""
    if NO_CONNECTION.search(output):
        return "no connection to the package index: check network and proxy (docs/wsl2.md), then run the command again"
    if "No space left on device" in output:
        return "the disk is full: free some space, then run the same command again"
    if "no kernel image is available" in output:
        return f"this GPU is too old for torch {TORCH}: it needs {GPU_NEEDS}"
    if re.search(r"Killed signal|signal terminated program cc1plus", output):
        return "the compiler ran out of memory: close programs or give WSL2 more (docs/wsl2.md), then run again"
    return f"all of it is in {place.log}; running the same command again continues where it stopped"


def show_progress(place: Place, label: str) -> None:
    """The last line of the log beside the label, on a terminal only."""
    if not sys.stdout.isatty():
        return
    with place.log.open("rb") as log:
        log.seek(max(0, place.log.stat().st_size - 2000))
        lines = log.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    text = f"[{time.monotonic() - STARTED:4.0f} s] {label} … {last}"
    sys.stdout.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
    sys.stdout.flush()


def say(text: str) -> None:
    """One line with the seconds since the start, in place of the live line where there is one."""
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{clear}[{time.monotonic() - STARTED:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
