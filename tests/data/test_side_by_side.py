"""Two pieces of work at once: the result is that of one after the other, whatever happens to the second process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from fasttune.data.side_by_side import can_fork, side_by_side


def test_both_results_come_back_from_two_processes() -> None:
    (there, numbers), here = side_by_side(lambda: (os.getpid(), list(range(200_000))), os.getpid)
    assert here == os.getpid() != there and len(numbers) == 200_000


def test_both_work_at_the_same_time() -> None:
    """Each waits for the other: one after the other would never meet."""
    meeting = multiprocessing.get_context("fork").Barrier(2, timeout=120)
    assert sorted(side_by_side(meeting.wait, meeting.wait)) == [0, 1]


def test_a_process_that_dies_is_done_here() -> None:
    parent = os.getpid()

    def dies_elsewhere() -> int:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return 7

    assert side_by_side(dies_elsewhere, lambda: 1) == (7, 1)


def test_an_error_is_raised_here_with_its_kind() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda: 1 // 0, lambda: 1)


def test_the_second_process_ends_where_the_first_work_fails() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(lambda: time.sleep(600), interrupted)
    assert time.monotonic() - began < 300


def interrupted() -> None:
    raise KeyboardInterrupt


def test_one_core_forks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert not can_fork()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert can_fork()
