"""Checks in a process of their own that hangs, dies, or prints what is none of its results."""

from __future__ import annotations

import sys
import time

from fasttune.doctor import child

# Stands in for `python -m fasttune.doctor.trials`: "kill" ends its process, "hang" never answers, "exit" says why.
STAND_IN = """
import json, os, signal, sys, time
for name in sys.argv[1:]:
    if name == "kill":
        print("Illegal instruction", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(60)
    if name == "exit":
        sys.exit("no such library")
    print(json.dumps({"name": name, "state": "ok", "measured": "fine"}), flush=True)
"""
COMMAND = (sys.executable, "-c", STAND_IN)


def test_one_that_dies_or_hangs_leaves_the_others_alone() -> None:
    began = time.monotonic()
    found = list(child.run(["disk", "kill", "hub", "hang", "exit", "ollama"], 3.0, COMMAND))
    assert time.monotonic() - began < 30
    assert [(one.name, one.state) for one in found] == [
        ("disk", "ok"), ("kill", "error"), ("hub", "ok"), ("hang", "error"), ("exit", "error"), ("ollama", "ok"),
    ]  # fmt: skip
    states = {one.name: one for one in found}
    assert "SIGSEGV: Illegal instruction" in states["kill"].measured
    assert "no answer within 3 s" in states["hang"].measured
    assert "exit code 1: no such library" in states["exit"].measured


def test_nothing_to_do_starts_no_process() -> None:
    assert list(child.run([], command=("/nonexistent",))) == []
