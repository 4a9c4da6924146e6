"""Driver, torch's build and free memory of a GPU, for machines that are made up here."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune.doctor import driver
from fasttune.doctor.situation import Situation
from fasttune.machine import Gpu, GpuProcess


def gpu(
    name: str = "NVIDIA GeForce RTX 4060", capability: tuple[int, int] | None = (8, 9), release: str = "580.95.05"
) -> Gpu:
    return Gpu(0, "GPU-1", name, release, 8188, 500, capability)


def situation(of: Gpu | None, cuda: str | None = "13.0", *, problem: str = "", wsl: bool = False) -> Situation:
    return Situation(of, problem, cuda, wsl, Path("runs"))


RTX_5070 = gpu("NVIDIA GeForce RTX 5070", (12, 0), "575.64")
GTX_1080 = gpu("NVIDIA GeForce GTX 1080", (6, 1))


@pytest.mark.parametrize(
    ("of", "cuda", "state", "words"),
    [
        (gpu(), "13.0", "ok", "CUDA 13.0"),
        (gpu(release="570.86"), "13.0", "error", "the driver is 570; torch's CUDA 13.0 and this GPU need 580"),
        (gpu(release="570.86"), "12.8", "ok", "CUDA 12.8"),
        (RTX_5070, "12.6", "error", "torch is built for CUDA 12.6, and this GPU needs CUDA 12.8"),
        (RTX_5070, "12.8", "ok", "CUDA 12.8"),
        (gpu("NVIDIA GeForce RTX 5090", (12, 0), "560.94"), "12.8", "error", "need 570 or newer"),
        (gpu("NVIDIA GB10", (12, 1)), "12.8", "error", "needs CUDA 12.9"),
        (GTX_1080, "13.0", "error", "compute capability 6.1; 7.5 is the least"),
        (gpu(capability=None), "13.0", "ok", "CUDA 13.0"),  # a driver too old to say it
        (gpu(), "", "error", "torch is a CPU build, and this machine has a GPU: NVIDIA GeForce RTX 4060"),
        (gpu(), None, "error", "torch is not installed"),
        (None, "", "ok", "a build for: CPU"),
    ],
)
def test_torch_against_driver_and_gpu(of: Gpu | None, cuda: str | None, state: str, words: str) -> None:
    found = driver.torch_build(situation(of, cuda))
    assert (found.state, words in found.measured) == (state, True), found
    assert bool(found.fix) == (state == "error")


def test_under_wsl_the_driver_is_mended_in_windows() -> None:
    native = driver.torch_build(situation(gpu(release="552.12")))
    windows = driver.torch_build(situation(gpu(release="552.12"), wsl=True))
    assert "ubuntu-drivers" in native.fix and "ubuntu-drivers" not in windows.fix and "wsl --shutdown" in windows.fix


def test_the_driver_itself() -> None:
    assert driver.driver(situation(None, "")).state == "not-applicable"
    shown = driver.driver(situation(gpu()))
    assert shown.state == "ok" and "580.95.05" in shown.measured and "8.0 GiB" in shown.measured
    broken = driver.driver(situation(None, problem="nvidia-smi failed: no devices", wsl=True))
    assert broken.state == "error" and broken.measured == "nvidia-smi failed: no devices"


def test_who_holds_the_memory_is_named_without_a_path() -> None:
    full = Gpu(0, "", "RTX 3060", "580", 12288, 11000, (8, 6))
    held = [GpuProcess(17, "/home/mei/.venv/bin/python", 1024), GpuProcess(18, r"C:\Users\mei\game one.exe", 9000)]
    found = driver.memory_of(situation(full), held)
    assert found.state == "warning" and "1.3 of 12.0 GiB are free" in found.measured
    assert "game one.exe (18, 9000 MiB), python (17, 1024 MiB)" in found.measured and "mei" not in found.measured
    assert driver.memory_of(situation(gpu()), held).state == "ok"
    alone = driver.memory_of(situation(full), held[:1])
    assert "kill 17" in alone.fix
    silent = driver.memory_of(situation(full, wsl=True), [])
    assert "does not list Windows' processes" in silent.measured
