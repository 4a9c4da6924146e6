"""Checks in a process of their own that hangs, dies, or prints what is none of its results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fasttune.doctor import child
from fasttune.doctor.outcome import Check

# Stands in for `python -m fasttune.doctor.trials`: "kill" ends its process, "hang" never answers, "exit" says why.
STAND_IN = """
import json, os, signal, sys, time
for name in sys.argv[1:]:
    if name == "kill":
        print("Illegal instruction", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(600)
    if name == "exit":
        sys.exit("no such library")
    print(json.dumps({"name": name, "state": "ok", "measured": "fine"}), flush=True)
"""
COMMAND = (sys.executable, "-c", STAND_IN)


def test_one_that_dies_leaves_the_others_alone() -> None:
    found = list(child.run(["disk", "kill", "hub", "exit", "ollama"], 300.0, COMMAND))
    assert [(one.name, one.state) for one in found] == [
        ("disk", "ok"), ("kill", "error"), ("hub", "ok"), ("exit", "error"), ("ollama", "ok"),
    ]  # fmt: skip
    states = {one.name: one for one in found}
    assert "SIGSEGV: Illegal instruction" in states["kill"].measured
    assert "exit code 1: no such library" in states["exit"].measured


def test_one_that_hangs_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit that is short here is that of the process that hangs alone: the other one may be slow to start."""

    def answers(process: Any, seconds: float) -> Iterator[Check]:
        return own_answers(process, seconds if "hang" in process.args else 300.0)

    own_answers = child.answers
    monkeypatch.setattr(child, "answers", answers)
    hanging, hub = child.run(["hang", "hub"], 0.6, COMMAND)
    assert (hanging.name, hanging.state, hub.name, hub.state) == ("hang", "error", "hub", "ok")
    assert "no answer within 1 s" in hanging.measured


def test_nothing_to_do_starts_no_process() -> None:
    assert list(child.run([], command=("/nonexistent",))) == []
