"""GPU, free memory and package versions without torch: what nvidia-smi, the kernel and the installation say."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fasttune import machine
from fasttune.machine import free_gpu_gib, free_memory, free_ram_gib, package_versions, visible_gpu

LISTS_TWO = """\
import sys
if sys.argv[1] == "-L":
    print("GPU 0: NVIDIA Test (UUID: GPU-1)\\nGPU 1: NVIDIA Other (UUID: GPU-2)")
else:
    assert "--query-gpu=memory.free" in sys.argv
    print("2048\\n7168")
"""
FAILS = "import sys\nprint('NVIDIA-SMI has failed')\nsys.exit(9)\n"
HAS_NO_FIGURE = "print('[N/A]')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the PATH; no nvidia-smi of this machine is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "WSL_NVIDIA_SMI", str(tmp_path / "wsl-nvidia-smi"))
    return tmp_path


def install(path: Path, program: str) -> None:
    path.write_text(f"#!{sys.executable}\n{program}", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["nvidia-smi", "wsl-nvidia-smi"])
def test_the_first_gpu_and_the_most_free_memory(folder: Path, name: str) -> None:
    install(folder / name, LISTS_TWO)
    assert visible_gpu() == "GPU 0: NVIDIA Test"
    assert free_gpu_gib() == 7.0


@pytest.mark.parametrize("program", [FAILS, HAS_NO_FIGURE, ""])
def test_a_driver_that_lists_no_gpu_counts_as_none(folder: Path, program: str) -> None:
    assert free_gpu_gib() is None and visible_gpu() == ""
    install(folder / "nvidia-smi", program)
    assert free_gpu_gib() is None
    if program == FAILS:
        assert visible_gpu() == ""


def test_free_ram_is_part_of_the_ram(folder: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert 0 < free_ram_gib() <= whole
    assert free_memory().gpu_gib is None and 0 < free_memory().ram_gib <= whole


def test_versions_of_installed_packages_in_the_given_order() -> None:
    names = ["pytest", "no-such-package", "gguf"]
    assert list(package_versions(names).items()) == [(n, metadata.version(n)) for n in ("pytest", "gguf")]
    assert package_versions()["torch"] == metadata.version("torch")
    assert set(package_versions()) <= set(machine.TRAINING_PACKAGES)
