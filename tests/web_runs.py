"""A run that another process holds, as one that is trained, and lines in its history."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fasttune import files
from fasttune.runs.store import Run

# Holds a run's lock as a training does, and notes how it was asked to end.
TRAINER = """
import signal, sys, time
from pathlib import Path
from fasttune.runs.store import Run, exclusive
def stop(number, frame):
    Path(sys.argv[3]).write_text(str(number))
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
with exclusive(Run(Path(sys.argv[1]), sys.argv[2])):
    print("training", flush=True)
    time.sleep(600)
"""


@contextmanager
def trained_by_another(run: Run, note: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run's lock."""
    command = [sys.executable, "-c", TRAINER, str(run.root), run.id, str(note)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "training\n"
        try:
            yield process
        finally:
            process.kill()


def log(run: Run, step: int, **figures: float) -> None:
    """One more logged step; ten of them are an epoch."""
    line = {"step": step, "epoch": step / 10, "loss": 1 / step, "mean_token_accuracy": 0.5, "step_seconds": 30.0}
    files.append_line(run.history, {**line, **figures})
