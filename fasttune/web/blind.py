"""Blind comparisons on a page: the answers come from `fasttune compare` in a child process, shuffling, counting and
blind.json are those of terminal/blind.py. Which model gave which answer leaves this process only when all is picked."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fasttune.command import runs_option
from fasttune.console import FasttuneError, _
from fasttune.runs import store
from fasttune.runs.outcomes import Answered, BlindChoice, BlindComparison
from fasttune.runs.store import Run
from fasttune.terminal import blind
from fasttune.web.children import environment, fasttune

BASE = "base"  # the name of the untrained model among those that are compared
NEITHER, STOP = "neither", "stop"
PICKS = ("1", "2", NEITHER, STOP)


@dataclass
class Sitting:
    """One blind comparison. `pairs` are the answers that differ, once both models have given them; `problem` says why
    there are none."""

    key: str
    names: tuple[str, str]
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    log: IO[bytes]
    questions: Sequence[Answered] = ()
    pairs: Sequence[BlindChoice] = ()
    picked: list[BlindChoice] = field(default_factory=list)
    is_ready: bool = False
    is_over: bool = False
    problem: str = ""
    kept_in: str = ""

    @property
    def pair(self) -> BlindChoice | None:
        """The pair to pick from now; None before the answers are there, and when all is picked."""
        open_pairs = self.pairs[len(self.picked) :]
        return open_pairs[0] if self.is_ready and not self.is_over and open_pairs else None

    @property
    def result(self) -> BlindComparison:
        """What the picks come to."""
        return blind.sitting(self.questions, self.picked)

    def last_line(self) -> str:
        """The last line that the child has printed for people."""
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def look(self) -> None:
        """Take the answers over when both models have given them."""
        if self.is_ready or self.problem or self.process.poll() is None:
            return
        self.output.seek(0)
        try:
            self.questions = answered(json.loads(self.output.read()))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.problem = self.last_line() or _("the models gave no answers")
            return
        pairs = [pair for pair in blind.shuffled(self.questions) if len(set(pair.answers.values())) > 1]
        self.pairs, self.is_ready, self.is_over = pairs, True, not pairs


def answered(document: Any) -> list[Answered]:
    """The answers in the document of `fasttune compare --json`. Raises ValueError, KeyError, TypeError or
    AttributeError where it holds none."""
    found = [
        Answered(one["question"], {name: tuple(texts) for name, texts in one["answers"].items()})
        for one in document["questions"]
    ]
    if not found or len(found[0].answers) != 2:
        raise ValueError("no answers of two models")
    return found


class Sittings:
    """The blind comparisons since the board began, by key."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock, self.numbers = root, threading.Lock(), itertools.count(1)
        self.by_key: dict[str, Sitting] = {}

    def begin(self, names: tuple[str, str]) -> Sitting:
        """Ask two models, runs by their ids or BASE, the questions of the first run; they answer in a child process."""
        output, log = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115, until the board ends
        arguments = ["compare", *names, "--json", "--held-out", "0", "--seeds", "0", *runs_option(self.root)]
        process = subprocess.Popen(
            [*fasttune(), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=environment()
        )
        made = Sitting(str(next(self.numbers)), names, process, output, log)
        self.by_key[made.key] = made
        return made

    def pick(self, sitting: Sitting, number: int, choice: str) -> None:
        """Note what was picked of pair `number`; a pair that was picked before, by a second click, is left as it is.

        With the last one the sitting is kept in its run. Raises FasttuneError where another process uses the run.
        """
        with self.lock:
            pair = sitting.pair
            if pair is None or number != len(sitting.picked) or choice not in PICKS:
                return
            if choice != STOP:
                model = None if choice == NEITHER else pair.order[int(choice) - 1]
                sitting.picked.append(BlindChoice(pair.question, pair.seed, pair.order, pair.answers, model))
            if choice == STOP or len(sitting.picked) == len(sitting.pairs):
                sitting.is_over = True
                self.keep(sitting)

    def keep(self, sitting: Sitting) -> None:
        """Add a sitting to its run's blind.json; where another process uses the run, say so instead."""
        run = self.run_of(sitting)
        if run is None or not sitting.picked:
            return
        try:
            blind.keep(run, sitting.result)
        except FasttuneError as problem:
            sitting.problem = problem.findings[0].what
            return
        sitting.kept_in = str(run.blind)

    def run_of(self, sitting: Sitting) -> Run | None:
        """The run that a sitting belongs to: the first that it names."""
        found = [store.by_id(self.root, name) for name in sitting.names if name != BASE]
        return found[0] if found else None

    def close(self) -> None:
        """End the child processes whose answers nobody will see."""
        for sitting in self.by_key.values():
            with contextlib.suppress(OSError):
                sitting.process.terminate()
