"""The three training steps: what counts as wrong, and once for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fasttune.doctor import steps


def document(first: float | None, last: float | None, gradient: float | None) -> str:
    return json.dumps({"steps": 3, "first": {"loss": first, "grad_norm": gradient}, "last": {"loss": last}})


@pytest.mark.parametrize(
    ("figures", "seconds", "state"),
    [
        ((4.1, 3.6, 1.0), 12, "ok"),
        ((4.1, 3.6, 1.0), 90, "warning"),  # slow
        ((4.1, 4.1, 1.0), 12, "error"),  # learns nothing
        ((4.1, 3.6, 0.0), 12, "error"),  # no gradient
        ((4.1, 3.6, None), 12, "error"),  # a gradient that is not finite is null in JSON
        ((None, 3.6, 1.0), 12, "error"),
        ((4.1, None, 1.0), 12, "error"),
    ],
)
def test_losses(figures: Any, seconds: float, state: str) -> None:
    assert steps.judge(0, document(*figures), "", "cpu", seconds).state == state


def test_a_training_that_fails_says_why() -> None:
    finding = {"what": "this machine has a GPU, but torch can't use it", "why": "a CPU build", "fix": "install another"}
    known = steps.judge(1, json.dumps({"findings": [finding]}), "error: …", "", 3)
    assert known.state == "error" and finding["what"] in known.measured and known.fix == "install another"
    bug = steps.judge(1, "", "Traceback (most recent call last):\n  File …\nRuntimeError: CUDA error\n", "", 3)
    assert bug.state == "error" and "RuntimeError: CUDA error" in bug.measured and "--report" in bug.fix


def test_a_training_that_hangs_is_ended() -> None:
    found = steps.training_steps(0.05)
    assert found.state == "error" and "no answer within" in found.measured


@pytest.mark.slow  # it loads Unsloth in a process of its own
def test_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command line that users type, and nothing of it stays in the current folder."""
    monkeypatch.chdir(tmp_path)
    found = steps.training_steps()
    assert found.state in ("ok", "warning") and "3 steps on" in found.measured, found
    assert list(tmp_path.iterdir()) == []
