"""Steps that suddenly take several times as long."""

from __future__ import annotations

import pytest

from fasttune.console import Finding
from fasttune.training import step_watch
from fasttune.training.step_watch import StepWatch


def watched(steps: list[tuple[int, float]]) -> list[list[Finding]]:
    """What is said to steps of (computed tokens, seconds)."""
    watch = StepWatch()
    return [watch.add(number, tokens, seconds) for number, (tokens, seconds) in enumerate(steps, 1)]


def test_the_second_slow_step_in_a_row_is_said_once() -> None:
    steps = [(1000, 1.0)] * 8
    said = watched([*steps, (1000, 3.5), (1000, 12.0), (1000, 12.0), *steps, (1000, 12.0), (1000, 12.0)])
    (finding,) = [one for findings in said for one in findings]
    assert said[9] == [finding]
    assert (finding.code, finding.level, finding.where) == ("step-slowed-down", "warning", "step 10")
    assert "12.0 s, 12 times" in finding.what and "nvidia-smi" in finding.fix


@pytest.mark.parametrize(
    "steps",
    [
        [(1000, 1.0)] * 8 + [(1000, 9.0), (1000, 1.0), (1000, 9.0), (1000, 1.0)],  # moments, no state
        [(1000, 1.0)] * 8 + [(9000, 9.0)] * 4,  # longer steps of the same speed
        [(1000, 30.0), (1000, 1.0), (1000, 1.0), (1000, 3.1), (1000, 3.1)],  # too few to know what is usual
        [(1000, 1.0)] * 8 + [(1000, 2.9)] * 8,
    ],
)
def test_what_is_no_alarm(steps: list[tuple[int, float]]) -> None:
    assert not any(watched(steps))


@pytest.mark.parametrize(("windows", "reason"), [(True, "Windows driver"), (False, "another program uses the GPU")])
def test_the_reason_depends_on_the_driver(monkeypatch: pytest.MonkeyPatch, windows: bool, reason: str) -> None:
    monkeypatch.setattr(step_watch, "is_wsl", lambda: windows)
    said = watched([(10, 1.0)] * 6 + [(10, 5.0)] * 2)
    assert reason in said[-1][0].why
