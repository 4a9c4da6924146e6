"""Start-up phases with their seconds; a plain line now and then where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from fasttune.training import progress

LOGS = {"loss": 1.25, "mean_token_accuracy": 0.5, "tokens_per_second": 1234.5}


def test_a_phase_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter((100.0, 103.25))
    monkeypatch.setattr("fasttune.training.progress.time.monotonic", lambda: next(clock))
    phases = progress.PhaseTimer()
    with phases("load", "loading"):
        pass
    assert phases.seconds["load"] == 3.25
    assert capsys.readouterr().err == "loading: 3.2 s\n"


def test_lines_without_a_terminal_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    line = progress.ProgressLine(range(51))
    line.start(0)
    for step in range(1, 51):
        line.show(step, LOGS)
    line.stop()
    assert capsys.readouterr().err.splitlines() == [
        "step 1/50  loss 1.2500  accuracy 50.0%  1,234 tokens/s",
        "step 50/50  loss 1.2500  accuracy 50.0%  1,234 tokens/s",
    ]


def test_the_loss_that_is_shown_is_smoothed() -> None:
    """A step's own loss jumps with its few samples, and nobody can read a trend from it."""
    line = progress.ProgressLine(range(51))
    shown = [line.smooth({"loss": value}, "loss") for value in (2.0, 1.0, 3.0)]
    assert shown == pytest.approx([2.0, 1.8, 2.04])


@pytest.mark.parametrize("width", [50, 80, 140])
def test_count_bar_and_time_stay_readable(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the terminal is narrow, the figures are cut short, the loss last."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "stderr_console", screen)
    line = progress.ProgressLine(range(291))
    line.start(120)
    line.show(145, LOGS)
    (shown,) = screen.render_lines(line.progress.get_renderable(), pad=False)
    text = "".join(segment.text for segment in shown)
    line.stop()
    assert "145/290" in text and "━━━━" in text and "-:--:--" in text and "loss 1.2500" in text
    assert len(text) <= width
    assert ("1,234 tokens/s" in text) is (width >= 80)


@pytest.mark.parametrize("width", [50, 80, 140])
@pytest.mark.parametrize("name", ["linzhi-epoch-2-Q4_K_M.gguf", "林栀的第二个很长很长的名字-epoch-12.5-Q4_K_M.gguf"])
def test_bytes_and_time_left_stay_whole_in_one_line(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "stderr_console", screen)
    with progress.ByteLine(name, 988_000_000) as line:
        line.advance(423_000_000)
        (shown,) = screen.render_lines(line.progress.get_renderable(), pad=False)
    text = "".join(segment.text for segment in shown)
    assert "423.0/988.0 MB" in text and "-:--:--" in text and text.startswith(name[:4]) and cell_len(text) <= width
    assert ("?" in text or "MB/s" in text) is (width >= 80)


def test_the_time_left_goes_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of four steps has as many tokens as the three before it: they are half of the work."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "stderr_console", screen)
    line = progress.ProgressLine([0, 10, 20, 30, 60])
    clock = iter(range(0, 1000, 30))
    line.progress.get_time = lambda: float(next(clock))
    line.start(0)
    for step in (1, 2, 3):
        line.show(step, LOGS)
    (task,) = line.progress.tasks
    line.stop()
    assert task.fields["count"] == "3/4" and task.percentage == 50
    assert task.speed and task.time_remaining == pytest.approx(30 / task.speed, abs=1)


def test_a_phase_may_show_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "stderr_console", screen)
    with progress.PhaseTimer()("probe", "answering") as show:
        show("answering: 2 of 3")
    assert "answering: 2 of 3" in shown.getvalue()
