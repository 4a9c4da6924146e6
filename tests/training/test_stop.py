"""SIGHUP, which a closed terminal sends, saves and stops as Ctrl-C does; what is printed afterwards goes nowhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Shared
from series import SHORT, Series, assert_same_run, checkpoints, history, short_run, wait

from fasttune.training import stop
from fasttune.training.stop import stop_on_signal


def trainer() -> Any:
    return SimpleNamespace(interrupted=False, progress=SimpleNamespace(stop=lambda: None))


def test_a_hangup_saves_and_the_same_command_resumes(shared: Shared, tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    child = series.start(*SHORT, hold_at=1)
    assert wait(lambda: any(len(history(run)) >= 1 for run in series.runs()), child)
    code = series.send(child, signal.SIGHUP, signal.SIGHUP)  # shells send a second one, which changes nothing
    assert code == 130, series.log
    assert checkpoints(series.run(1)) and not (series.run(1) / "adapter").exists()
    series.train(*SHORT)
    assert_same_run(series.run(1), short_run(shared))


def test_a_terminal_that_is_gone_takes_no_line_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe to a program that ended with the terminal: writing to it would end the process before it has saved."""
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    trained = trainer()
    try:
        with stop_on_signal(trained):
            os.close(reading)
            signal.raise_signal(signal.SIGHUP)
            os.write(2, b"a line\n")
            signal.raise_signal(signal.SIGTERM)  # nobody is there to ask twice
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writing)
    assert trained.interrupted


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal(trainer()):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signal(trainer()):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_files_do_not_end_with_the_terminal(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        assert not stop.ends_with_the_terminal(log.fileno())
    reading, writing = os.pipe()
    assert stop.ends_with_the_terminal(writing)
    os.close(reading)
    os.close(writing)
