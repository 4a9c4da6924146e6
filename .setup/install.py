"""Makes `.venv` and installs the locked set into it: `python3 .setup/install.py [--dev]`, which the Makefile calls.

What it does, in this order: decides between CPU and CUDA, checks the machine, makes `.venv`, compiles llama-cpp-python
(there is no wheel of it; the wheel made here is kept in ~/.cache/fasttune/wheels for other clones), installs torch, the
locks beside this file (`--no-deps`: the reason stands in requirements.lock), the project itself, and loads what it
installed. Where packages come from is pip's own configuration.

It may be repeated and interrupted at will. `.venv/setup.json` says what was finished; while it matches the files of
this folder and the Python in use, nothing is done. While pip writes, `.venv/setup-unfinished` lies there: found at the
start, `.venv` is made anew (downloads come from pip's cache). All that pip prints is in `.cache/setup.log`.

FASTTUNE_DEVICE=cpu|cuda overrides the decision. A machine with an NVIDIA GPU gets the CUDA build or an error that says
what to do, never a CPU build by accident. This file and the four
beside it (setup_gpu.py, setup_llama.py, setup_messages.py, setup_steps.py) import nothing but the standard library.
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
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from setup_gpu import decide_device
from setup_llama import build_llama, llama_wheel
from setup_messages import _, replace_unencodable
from setup_steps import NO_CONNECTION, TORCH, Place, SetupError, StepError, find_pin, gpu_needs, pip, run, say

PYTHONS = ((3, 10), (3, 14))
GIB_NEEDED = {"cpu": 4, "cuda": 14}  # of free disk: on a CPU 2.9 for .venv with --dev, 0.7 for wheels in pip's cache


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, keeps a second set-up of the same clone waiting, and shows errors without a traceback."""
    replace_unencodable()
    parser = argparse.ArgumentParser(description=_("Make .venv and install the locked set into it."))
    parser.add_argument("--dev", action="store_true", help=_("also what `make test` and `make check` need"))
    options = parser.parse_args(arguments)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = Place(Path(__file__).resolve().parents[1], cache / "fasttune" / "wheels")
    folder = os.open(place.root, os.O_RDONLY)
    try:
        wait_for_turn(folder)
        set_up(place, dev=options.dev, environ=os.environ)
    except SetupError as error:
        print(_("error: {what}\n hint: {fix}", what=error.what, fix=error.fix), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n" + _("stopped; run the same command again to continue"), file=sys.stderr)
        return 130
    finally:
        os.close(folder)
    return 0


def wait_for_turn(folder: int) -> None:
    """Takes the lock on the clone's folder, so that `make quickstart` and `make test` side by side don't mix."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(_("another set-up of this clone is running: waiting for it"))
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
    pip(place, _("the locked set"), "install", "--no-deps", *names)
    pip(place, "fasttune", "install", "--no-deps", "--no-build-isolation", "--editable", str(place.root))
    check_result(place, device)
    write_stamp(place, build, dev=dev)
    say(_("ready"))


def check_python(version: tuple[int, int]) -> None:
    """Raises SetupError for a Python that the locked set has no wheels for."""
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return
    low, high = (".".join(map(str, bound)) for bound in PYTHONS)
    raise SetupError(
        _("this is Python {version}, and fasttune's packages exist for Python {low} to {high}",
          version=".".join(map(str, version)), low=low, high=high),
        _("name another one: make quickstart PYTHON=python3.12"),
    )  # fmt: skip


# --- what the machine must have


def check_machine(place: Place, device: str) -> None:
    """Raises SetupError that names everything missing and the one apt line that brings it, or the disk space needed."""
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    missing, packages = [], []
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        missing.append(_("venv of Python"))
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
        raise SetupError(_("missing on this machine: {names}", names=", ".join(missing)), command)
    free = shutil.disk_usage(place.root).free / 2**30
    if not place.python.exists() and free < GIB_NEEDED[device]:
        raise SetupError(
            _("{free:.1f} GiB of disk are free in {folder}, the set-up needs about {needed}",
              free=free, folder=place.root, needed=GIB_NEEDED[device]),
            _("free some space, or clone onto a larger disk"),
        )  # fmt: skip


def announce(place: Place, device: str, reason: str, *, compiles: bool) -> None:
    """Says what is going to happen and how long it takes, before it starts."""
    cores = len(os.sched_getaffinity(0))
    minutes = (3 if device == "cpu" else 6) + (6 / cores if compiles else 0)
    load = "0.7 GB" if device == "cpu" else "3 GB"
    say(_("setting up .venv for {device} ({reason})", device=device.upper(), reason=reason))
    if torch_build(place) is None or place.unfinished.exists() or compiles:
        say(_("this happens once, takes about {minutes:.0f} minutes and downloads {load}", minutes=minutes, load=load))
    if compiles:
        say(_("llama-cpp-python is compiled; processor cores: {cores}", cores=cores))
    say(_("everything that pip prints: {log}", log=place.log))


# --- the steps


def make_venv(place: Place) -> None:
    """`.venv` with a working pip of the Python in use; one that was left unfinished is made anew."""
    if place.python.exists() and not place.unfinished.exists() and is_healthy(place.python):
        return
    if place.venv.is_symlink():
        raise SetupError(
            _("{folder} is a symbolic link to something that doesn't work", folder=place.venv), _("remove the link")
        )
    if place.venv.exists():
        say(_("the .venv here is unfinished or of another Python: making it anew"))
        shutil.rmtree(place.venv)
    run(place, _("an empty .venv"), [sys.executable, "-m", "venv", str(place.venv)])


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
        say(_("torch {version} is a {build} build", version=TORCH, build=build))
    if build is None:
        raise SetupError(
            _("torch {version} isn't in .venv after its installation", version=TORCH), _("read {log}", log=place.log)
        )
    if device == "cuda" and build == "cpu":
        raise SetupError(
            _("pip's configuration brought a CPU build of torch to a machine with an NVIDIA GPU"),
            _(
                "look at `pip config list` and at PIP_* in the environment for a find-links or extra-index-url with CPU"
                " builds, take it out and run again; FASTTUNE_DEVICE=cpu trains on the CPU on purpose"
            ),
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
        say(_("pip's sources hold no CPU build: taking the CUDA build (3 GB), which runs on a CPU too"))
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
    output = run(place, _("loading torch and llama.cpp"), [str(place.python), "-c", program])
    cuda, available = json.loads(output.splitlines()[-1])
    if device == "cuda" and not available:
        raise SetupError(
            _("torch is built for CUDA {cuda} but can't use the GPU", cuda=cuda),
            _("it needs {needs}; FASTTUNE_DEVICE=cpu trains on the CPU on purpose", needs=gpu_needs()),
        )


# --- the stamp


def fingerprint(place: Place) -> str:
    """A hash of all that decides what `.venv` holds: locks, set-up, the project's metadata, Python and the folder.

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
