"""Which checks are done on which machine, in which order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fasttune import machine
from fasttune.doctor import child, examine, outcome, situation, steps
from fasttune.doctor.outcome import Check
from fasttune.doctor.situation import Situation
from fasttune.machine import Gpu

GPU = Gpu(0, "GPU-1", "NVIDIA Test", "580.1", 8192, 0, (8, 9))


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process and no training: each check's work is a line."""

    def looked(name: str) -> Callable[[Situation], Check]:
        return lambda _situation: Check(name, "ok", "looked")

    for name in examine.MACHINE:
        monkeypatch.setitem(examine.MACHINE, name, looked(name))
    monkeypatch.setattr(child, "run", lambda names, *_more: (Check(name, "ok", "tried") for name in names))
    monkeypatch.setattr(steps, "training_steps", lambda: Check(steps.NAME, "ok", "trained"))


def test_every_check_is_done_once(without_work: None) -> None:
    found = list(examine.examine(Path("runs")))
    assert sorted(check.name for check in found) == sorted(outcome.TITLES)
    assert found[-1].name == steps.NAME
    assert steps.NAME not in [check.name for check in examine.examine(Path("runs"), trains=False)]


@pytest.mark.parametrize(
    ("gpu", "cuda", "wsl", "tried"),
    [
        (None, "", False, ["matrix-product"]),
        (None, "13.0", True, ["matrix-product"]),
        (GPU, "", False, ["matrix-product"]),
        (GPU, "13.0", False, ["matrix-product", "triton-kernel", "nf4-round-trip", "pinned-memory"]),
        (GPU, "13.0", True, list(examine.BY_DOING)),
    ],
)
def test_what_is_tried_on_which_machine(
    without_work: None, gpu: Gpu | None, cuda: str, wsl: bool, tried: list[str]
) -> None:
    found = examine.by_doing(Situation(gpu, "", cuda, wsl, Path("runs")))
    assert [check.name for check in found] == list(examine.BY_DOING)
    assert [check.name for check in found if check.state == "ok"] == tried
    assert all(check.state == "not-applicable" and check.measured for check in found if check.name not in tried)


def test_a_check_that_raises_does_not_end_the_others(without_work: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_situation: Situation) -> Check:
        raise KeyError("VmRSS")

    monkeypatch.setitem(examine.MACHINE, "disk", fails)
    states = {check.name: check.state for check in examine.examine(Path("runs"))}
    assert states.pop("disk") == "crashed" and "crashed" not in states.values()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (subprocess.TimeoutExpired("nvidia-smi", 10), "no answer"),
        (subprocess.CalledProcessError(9, "nvidia-smi", "NVIDIA-SMI has failed\nmore"), "NVIDIA-SMI has failed"),
        (FileNotFoundError(), "on the bus"),
    ],
)
def test_a_driver_that_fails_is_a_fact(monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str) -> None:
    def fail() -> Any:
        raise failure

    monkeypatch.setattr(machine, "list_gpus", fail)
    monkeypatch.setattr(machine, "has_nvidia_hardware", lambda: True)
    assert words in situation.look(Path("runs")).driver_problem


def test_the_gpu_that_will_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "list_gpus", lambda: [GPU, Gpu(1, "GPU-2", "Other", "580.1", 1, 0, None)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    used = situation.look(Path("runs")).gpu
    assert used is not None and used.name == "Other"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA_VISIBLE_DEVICES" in situation.look(Path("runs")).driver_problem
