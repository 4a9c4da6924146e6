"""A check's result: also of one that crashes, hangs or ends with a message for the user."""

from __future__ import annotations

import time

import pytest

from fasttune.console import error, exit_code
from fasttune.doctor import outcome
from fasttune.doctor.outcome import Check, State, carried_out, findings, ok


def fails() -> Check:
    raise ZeroDivisionError("division by zero")


def refuses() -> Check:
    raise error("gpu-not-usable", "torch can't use it", why="a CPU build", fix="install another")


def hangs() -> Check:
    time.sleep(600)
    return ok("disk", "never")


def test_a_crash_is_a_result() -> None:
    result = carried_out("disk", fails, 5)
    assert result.state == "crashed" and "ZeroDivisionError: division by zero" in result.measured
    assert "fasttune doctor --report" in result.fix


def test_a_message_for_the_user_keeps_its_hint() -> None:
    result = carried_out("torch-build", refuses, 5)
    assert (result.state, result.measured) == ("error", "torch can't use it")
    assert (result.why, result.fix) == ("a CPU build", "install another")


def test_a_check_that_hangs_ends_with_its_time_limit() -> None:
    began = time.monotonic()
    result = carried_out("disk", hangs, 0.2)
    assert time.monotonic() - began < 300
    assert result.state == "warning" and "no answer within" in result.measured and result.seconds >= 0.2


@pytest.mark.parametrize(
    ("state", "code"), [("ok", 0), ("warning", 0), ("not-applicable", 0), ("error", 1), ("crashed", 1)]
)
def test_the_exit_code_follows_from_the_states(state: State, code: int) -> None:
    found = findings([Check("disk", state, "so much", "because", "do this"), ok("hub", "fine")])
    assert exit_code(found) == code
    assert [one.code for one in found] == ([] if state in ("ok", "not-applicable") else ["disk"])
    assert all((one.what, one.why, one.fix) == ("so much", "because", "do this") for one in found)


def test_every_name_has_a_title_in_the_users_language(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(Check(name, "ok", "").title for name in outcome.TITLES)
