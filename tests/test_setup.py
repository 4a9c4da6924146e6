"""The set-up: `.setup/install.py` decides rightly, says what is wrong, and brings the right build of torch.

Nothing here reaches a network. Two small wheels named torch (one with a CUDA version in it, one without) are the only
packages on offer, to a stand-in for pip (tests/stand_in_pip.py); the same tests run slowly with the real pip.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

LOCKS = REPOSITORY / ".setup"


sys.path.insert(0, str(LOCKS))
gpu, install, llama, steps = map(importlib.import_module, ("setup_gpu", "install", "setup_llama", "setup_steps"))


# --- CPU or CUDA


def fake_nvidia_smi(folder: Path, script: str) -> Path:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def decide(tmp_path: Path, **environ: str) -> Any:
    """The decision of a machine with what lies in tmp_path."""
    return gpu.decide_device({"PATH": str(tmp_path), **environ}, tmp_path / "wsl" / "nvidia-smi", tmp_path / "pci")


TWO_GPUS = 'echo "GPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-1)"; echo "GPU 1: NVIDIA GeForce GTX 1650 (UUID: GPU-2)"'


def test_no_gpu_means_cpu(tmp_path: Path) -> None:
    assert decide(tmp_path)[0] == "cpu"


def test_a_listed_gpu_means_cuda(tmp_path: Path) -> None:
    fake_nvidia_smi(tmp_path, TWO_GPUS)
    assert decide(tmp_path) == ("cuda", "NVIDIA GeForce RTX 3060, NVIDIA GeForce GTX 1650")


def test_wsl_nvidia_smi_is_found_off_the_path(tmp_path: Path) -> None:
    (tmp_path / "wsl").mkdir()
    fake_nvidia_smi(tmp_path / "wsl", TWO_GPUS)
    assert decide(tmp_path)[0] == "cuda"


@pytest.mark.parametrize(
    "script", ['echo "couldn\'t communicate with the NVIDIA driver"; exit 9', 'echo "No devices found."']
)
def test_a_driver_that_does_not_answer_is_an_error(tmp_path: Path, script: str) -> None:
    fake_nvidia_smi(tmp_path, script)
    with pytest.raises(steps.SetupError) as caught:
        decide(tmp_path)
    assert "lists no GPU" in caught.value.what and "FASTTUNE_DEVICE=cpu" in caught.value.fix
    assert decide(tmp_path, FASTTUNE_DEVICE="cpu")[0] == "cpu"


@pytest.mark.parametrize(
    ("vendor", "device_class", "has_gpu"),
    [("0x10de", "0x030000", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)],
)
def test_a_gpu_without_a_driver_is_an_error(tmp_path: Path, vendor: str, device_class: str, has_gpu: bool) -> None:
    device = tmp_path / "pci" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{device_class}\n")
    if not has_gpu:
        assert decide(tmp_path)[0] == "cpu"
        return
    with pytest.raises(steps.SetupError, match="no driver"):
        decide(tmp_path)


def test_override(tmp_path: Path) -> None:
    assert decide(tmp_path, FASTTUNE_DEVICE="cuda")[0] == "cuda"
    with pytest.raises(steps.SetupError, match="'gpu'"):
        decide(tmp_path, FASTTUNE_DEVICE="gpu")


# --- the machine


def test_missing_tools_are_named_with_one_apt_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(steps.SetupError) as caught:
        install.check_machine(steps.Place(tmp_path, tmp_path), "cuda")
    assert caught.value.what == "missing on this machine: gcc, g++, make, Python.h"
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert caught.value.fix == f"sudo apt update && sudo apt install -y build-essential {python}-dev"


def test_too_little_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "GIB_NEEDED", {"cpu": 10**9})
    with pytest.raises(steps.SetupError, match="GiB of disk are free"):
        install.check_machine(steps.Place(tmp_path, tmp_path), "cpu")


@pytest.mark.parametrize(("version", "good"), [((3, 9), False), ((3, 10), True), ((3, 14), True), ((3, 15), False)])
def test_python_versions(version: tuple[int, int], good: bool) -> None:
    if good:
        install.check_python(version)
        return
    with pytest.raises(steps.SetupError, match=r"3\.10 to 3\.14"):
        install.check_python(version)


def test_this_machine_is_good_enough() -> None:
    install.check_machine(steps.Place(REPOSITORY, REPOSITORY), "cpu")
    assert llama.compile_jobs() >= 1


# --- the stamp


@pytest.fixture
def clone(tmp_path: Path) -> Any:
    """A clone with the real `.setup` and a `.venv` that a stamp calls finished."""
    shutil.copytree(LOCKS, tmp_path / "clone" / ".setup", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path / "clone")
    place = steps.Place(tmp_path / "clone", tmp_path / "wheels")
    place.python.parent.mkdir(parents=True)
    place.python.symlink_to(sys.executable)
    install.write_stamp(place, "cpu", dev=False)
    return place


CPU = {"FASTTUNE_DEVICE": "cpu"}


def test_stamp_holds_until_something_changes(clone: Any) -> None:
    assert install.is_current(clone, dev=False, environ=CPU)
    assert not install.is_current(clone, dev=True, environ=CPU)
    install.write_stamp(clone, "cpu", dev=True)
    assert install.is_current(clone, dev=True, environ=CPU) and install.is_current(clone, dev=False, environ=CPU)
    with (clone.locks / "requirements-cuda.lock").open("a") as lock:
        lock.write("# changed\n")
    assert not install.is_current(clone, dev=False, environ=CPU)


def test_stamp_does_not_hold_after_an_interruption(clone: Any) -> None:
    clone.unfinished.touch()
    assert not install.is_current(clone, dev=False, environ=CPU)


def test_stamp_does_not_hold_in_a_moved_clone(clone: Any, tmp_path: Path) -> None:
    moved = steps.Place(clone.root.rename(tmp_path / "moved"), clone.wheels)
    assert moved.stamp.exists() and not install.is_current(moved, dev=False, environ=CPU)


def test_a_gpu_that_appears_ends_a_cpu_stamp_but_not_a_cuda_stamp(clone: Any, tmp_path: Path) -> None:
    fake_nvidia_smi(tmp_path, TWO_GPUS)
    environ = {"PATH": str(tmp_path)}
    assert not install.is_current(clone, dev=False, environ=environ)
    install.write_stamp(clone, "cuda", dev=False)
    assert install.is_current(clone, dev=False, environ=environ)
    assert install.is_current(clone, dev=False, environ=CPU)


def test_a_finished_set_up_is_silent(clone: Any) -> None:
    command = [sys.executable, str(clone.locks / "install.py")]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **CPU}, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert not clone.log.exists()


def test_llama_wheel_is_found_again_unless_its_build_changed(clone: Any) -> None:
    wheel = llama.llama_wheel(clone)
    assert wheel == llama.llama_wheel(clone) and wheel.is_relative_to(clone.wheels)
    snippet = clone.locks / "nocommon.cmake"
    snippet.write_text(snippet.read_text() + "set(MORE ON)\n")
    assert llama.llama_wheel(clone).parent != wheel.parent


# --- steps


def test_a_failed_step_shows_the_end_of_its_output_and_a_hint(tmp_path: Path) -> None:
    place = steps.Place(tmp_path, tmp_path)
    place.log.parent.mkdir()
    place.log.write_text("an earlier step: No space left on device\n")
    program = "print('first'); print('Temporary failure in name resolution'); raise SystemExit(3)"
    with pytest.raises(steps.StepError) as caught:
        steps.run(place, "a step", [sys.executable, "-c", program])
    assert caught.value.output == "first\nTemporary failure in name resolution\n"
    assert "a step: failed" in caught.value.what and "name resolution" in caught.value.what
    assert "no connection" in caught.value.fix


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "out of memory"),
        ("CUDA error: no kernel image is available for execution on the device", "7.5 or newer"),
        ("anything else", "setup.log"),
    ],
)
def test_hints(output: str, hint: str) -> None:
    assert hint in steps.hint_for(output, steps.Place(REPOSITORY, REPOSITORY))


def torch_wheel(folder: Path, version: str, cuda: str | None) -> None:
    """A wheel named torch with the files that the set-up looks at."""
    info = f"torch-{version}.dist-info"
    files = {
        "torch/version.py": f"from typing import Optional\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n",
        "torch/__init__.py": "from torch import version\nclass cuda:\n    is_available = staticmethod(lambda: False)\n",
        "llama_cpp.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files)
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of wheels that a user's pip may find: `cpu`, `cuda`, `both`."""
    folder = tmp_path_factory.mktemp("offers")
    for name, versions in {"cpu": ["+cpu"], "cuda": [""], "both": ["+cpu", ""]}.items():
        for local in versions:
            torch_wheel(folder / name, f"{steps.TORCH}{local}", None if local else "13.0")
    return folder


def run_with_stand_in(place: Any, label: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Any:
    """The set-up's `run`, but a virtual environment gets the stand-in for pip instead of pip."""
    makes_venv = list(command[1:3]) == ["-m", "venv"]
    output = real_run(place, label, [*command, "--without-pip"] if makes_venv else command, environ)
    if makes_venv:
        shutil.copy(Path(__file__).with_name("stand_in_pip.py"), place.site_packages / "pip.py")
    return output


real_run = steps.run


@pytest.fixture(scope="module", params=["stand-in", pytest.param("pip", marks=pytest.mark.slow)])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """A place where a `.venv` was left half made and the set-up made it anew."""
    root = tmp_path_factory.mktemp("made")
    place = steps.Place(root, root / "wheels")
    place.log.parent.mkdir()
    place.log.touch()
    place.python.parent.mkdir(parents=True)
    place.python.symlink_to(sys.executable)
    place.unfinished.touch()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setattr(install, "run", run_with_stand_in)
        install.make_venv(place)
    return place


@pytest.fixture
def empty(made: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same without torch, and with a pip that sees no network and no configuration of this machine."""
    for path in made.site_packages.glob("torch*"):
        shutil.rmtree(path)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return made


@pytest.mark.parametrize(
    ("device", "offer", "build"),
    [("cpu", "cpu", "cpu"), ("cpu", "both", "cpu"), ("cpu", "cuda", "cuda"), ("cuda", "cuda", "cuda")],
)
def test_the_build_of_torch_that_is_installed(
    empty: Any, offers: Path, monkeypatch: pytest.MonkeyPatch, device: str, offer: str, build: str
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(offers / offer))
    assert install.install_torch(empty, device) == build == install.torch_build(empty)
    assert not empty.unfinished.exists()


def test_never_a_cpu_build_beside_a_gpu(empty: Any, offers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(offers / "cpu"))
    with pytest.raises(steps.SetupError, match="CPU build of torch") as caught:
        install.install_torch(empty, "cuda")
    assert "pip config list" in caught.value.fix
    monkeypatch.setenv("PIP_FIND_LINKS", str(offers / "cuda"))
    assert install.install_torch(empty, "cuda") == "cuda"  # the CPU build that is there by now is replaced
    with pytest.raises(steps.SetupError, match="can't use the GPU") as caught:
        install.check_result(empty, "cuda")
    assert steps.DRIVER in caught.value.fix
    install.check_result(empty, "cpu")


def test_no_torch_at_all_is_an_error_and_leaves_venv_unfinished(
    empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(steps.StepError, match=r"No matching distribution found for torch==2\.13\.0"):
        install.install_torch(empty, "cpu")
    assert empty.unfinished.exists()
    empty.unfinished.unlink()


def test_an_unfinished_venv_is_made_anew_and_a_good_one_kept(made: Any) -> None:
    assert install.is_healthy(made.python) and not made.unfinished.exists()
    keep = made.venv / "keep"
    keep.touch()
    install.make_venv(made)
    assert keep.exists()


def test_a_venv_without_a_working_python_is_not_healthy(tmp_path: Path) -> None:
    python = tmp_path / "python"
    assert not install.is_healthy(python)
    python.symlink_to("/bin/false")
    assert not install.is_healthy(python)
