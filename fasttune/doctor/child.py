"""Checks in a process of their own: one that hangs or dies is a result, and the others are still done."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from fasttune.console import _
from fasttune.doctor.outcome import Check, no_answer

COMMAND = (sys.executable, "-m", "fasttune.doctor.trials")
SECONDS = 60.0  # for one check; the first of a process also imports torch


def run(names: Sequence[str], seconds: float = SECONDS, command: Sequence[str] = COMMAND) -> Iterator[Check]:
    """The results of these checks, in order. Where a process hangs or dies, the check that it was at gets that as its
    result, and a new process does the rest."""
    left = list(names)
    while left:
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen([*command, *left], stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
            try:
                for check in answers(process, seconds):
                    yield check
                    left.remove(check.name)
                    if not left:
                        return
                hangs = process.poll() is None
            finally:
                process.kill()
                process.wait()
            name = left.pop(0)
            yield no_answer(name, seconds) if hangs else died(name, process.returncode, last_line(log))


def answers(process: subprocess.Popen[bytes], seconds: float) -> Iterator[Check]:
    """The results that a process prints, until it ends or prints none for so many seconds; then it may still run."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        process.wait()
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            return
        if line is None:
            return
        yield Check(**json.loads(line))


def died(name: str, code: int, said: str) -> Check:
    """The result of a check whose process ended without one; `said` is the last line that it printed."""
    how = _("ended with exit code {code}", code=code)
    if code < 0:
        how = _("was ended by {signal}", signal=signal.Signals(-code).name)
    what = _("its process {how}: {said}", how=how, said=said) if said else _("its process {how}", how=how)
    why = _("a training that does the same would end like this")
    return Check(name, "error", what, why, _("report it with `fasttune doctor --report`"))


def last_line(log: IO[bytes]) -> str:
    """The last line of a log that says something."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
