"""The figures of all runs, kept while their files do not change.

Reading a short history takes milliseconds. A long one takes seconds and hundreds of MB, so a child process reads it,
`fasttune runs RUN --json`, and the board stays small; a page that is asked for meanwhile says that the run is still
being read.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.console import FasttuneError, Finding, error
from fasttune.runs import store, summary, typed_json
from fasttune.runs.store import Run
from fasttune.runs.summary import Figures

LARGE = 3 << 20  # bytes of a history, from which on a child process reads it
PATIENCE = 0.35  # seconds that a page waits for figures
CHILD_SECONDS = 300.0

Stamp = tuple[object, ...]


@dataclass(frozen=True)
class Read:
    """What reading a run came to: its figures, or what is wrong with its files; neither while it is still read."""

    run: Run
    figures: Figures | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def is_pending(self) -> bool:
        return self.figures is None and not self.findings


class FigureCache:
    """Figures by run, read again when a file of the run has changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept: dict[str, tuple[Stamp, concurrent.futures.Future[Read]]] = {}
        self.lock = threading.Lock()
        self.quick = concurrent.futures.ThreadPoolExecutor(1)
        self.slow = concurrent.futures.ThreadPoolExecutor(1)

    def close(self) -> None:
        """Begin nothing any more."""
        for pool in (self.quick, self.slow):
            pool.shutdown(wait=False, cancel_futures=True)

    def of(self, runs: Sequence[Run], patience: float = PATIENCE) -> list[Read]:
        """The figures of runs, as far as they are known within `patience` seconds."""
        futures = [self.future(run) for run in runs]
        concurrent.futures.wait(futures, timeout=patience)
        found = []
        for run, future in zip(runs, futures, strict=True):
            read = future.result() if future.done() and not future.cancelled() else Read(run)
            current = store.current(self.root, run.series) == run
            found.append(replace(read, figures=replace(read.figures, current=current)) if read.figures else read)
        return found

    def future(self, run: Run) -> concurrent.futures.Future[Read]:
        """The reading of a run: the one that is under way or done, or a new one where its files have changed."""
        now = stamp(run)
        with self.lock:
            before = self.kept.get(run.id)
            if before and (before[0] == now or not before[1].done()):
                return before[1]
            is_large = run.history.is_file() and run.history.stat().st_size > LARGE
            future = self.slow.submit(read_in_child, run) if is_large else self.quick.submit(read, run)
            self.kept[run.id] = now, future
            return future


def stamp(run: Run) -> Stamp:
    """What changes when a run's figures may have changed."""
    found: list[object] = [run.status]
    for path in (run.history, run.plan, run.provenance, run.scores, run.picked, run.exports, run.adapter):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def read(run: Run) -> Read:
    """The figures of a run, in this process."""
    try:
        return Read(run, summary.read_figures(run))
    except FasttuneError as problem:
        return Read(run, findings=problem.findings)


def read_in_child(run: Run) -> Read:
    """The figures of a run, by a process of its own."""
    command = [sys.executable, "-m", "fasttune", "runs", run.id, "--runs", str(run.root), "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=CHILD_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
        document = json.loads(done.stdout)
        if listed := document.get("runs"):
            return Read(run, typed_json.from_json(Figures, listed[0]))
        return Read(run, findings=tuple(Finding(**one) for one in document["findings"]))
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as problem:
        return Read(run, findings=error("document-damaged", str(problem), where=run.id).findings)
