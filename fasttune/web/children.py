"""The fasttune commands that the board starts, and no others: `run`, `plan`, `compare`.

A training is a process of its own session, with a log file for its output: neither Ctrl-C in the board's terminal nor
the board's death reaches it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttune.console import _, error, language

LOGS = ".board"  # in the runs folder; no series, since no run lies in it
PLAN_SECONDS = 180.0
SHOWN_BYTES = 24 << 10  # of the end of a log


@dataclass(frozen=True)
class Child:
    """A training that was started from a page."""

    key: str
    arguments: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    began: float

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs. Asking also frees what the system keeps of an ended child."""
        return self.process.poll()

    def output(self) -> str:
        """The end of what it has printed."""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - SHOWN_BYTES))
            return file.read().decode("utf-8", errors="replace")
        return ""


@dataclass(frozen=True)
class Planned:
    """A plan that a page has shown: only such a one can be started. `arguments` are those of `fasttune run`."""

    key: str
    arguments: tuple[str, ...]
    text: str
    is_good: bool


class Children:
    """What was planned and started since the board began, by key."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock, self.numbers = root, threading.Lock(), itertools.count(1)
        self.started: dict[str, Child] = {}
        self.plans: dict[str, Planned] = {}

    def plan(self, plan_arguments: Sequence[str], run_arguments: Sequence[str]) -> Planned:
        """What `fasttune plan` prints, kept under a key with which the same training can be started."""
        command = [*fasttune(), *plan_arguments]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=PLAN_SECONDS, env=environment(), check=False)  # fmt: skip
            text, good = done.stdout.decode("utf-8", errors="replace"), done.returncode == 0
        except subprocess.TimeoutExpired:
            text, good = _("no plan was made within {n:.0f} s", n=PLAN_SECONDS), False
        planned = Planned(str(next(self.numbers)), tuple(run_arguments), text, good)
        self.plans[planned.key] = planned
        return planned

    def start(self, planned: Planned) -> Child:
        """Start the training of a plan, once. Raises FasttuneError where its log can't be written."""
        with self.lock:
            if begun := self.started.get(planned.key):
                return begun
            folder = self.root / LOGS
            log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{planned.key}.log"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with open(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as output:
                    process = subprocess.Popen(
                        [*fasttune(), *planned.arguments], stdin=subprocess.DEVNULL, stdout=output,
                        stderr=subprocess.STDOUT, env=environment(), start_new_session=True,
                    )  # fmt: skip
            except OSError as problem:
                raise error(
                    "not-started", _("the training can't be started"), where=str(log), why=str(problem)
                ) from None
            child = Child(planned.key, planned.arguments, log, process, time.time())
            self.started[child.key] = child
            return child


def fasttune() -> list[str]:
    """The words that start this fasttune."""
    return [sys.executable, "-m", "fasttune"]


def environment() -> dict[str, str]:
    """The environment of a child: the language of the page, and plain output of a width that a page can show."""
    return {**os.environ, "FASTTUNE_LANG": language(), "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb",
            "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}  # fmt: skip
