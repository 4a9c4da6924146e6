"""The process that holds a run's lock, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from fasttune.console import _, error
from fasttune.files import is_locked
from fasttune.runs.store import Run

PROC = Path("/proc")


def holder(lock: Path) -> int | None:
    """The process id of the live process that holds a lock file; None where there is none, or it can't be told.

    The file names the process that took the lock last (files.take_lock). It is believed only where that process has
    this very file open: a number that another process got meanwhile is no holder.
    """
    with contextlib.suppress(OSError, ValueError):
        process = int(lock.read_text(encoding="ascii"))
        if process > 1 and is_locked(lock) and has_open(process, lock):
            return process
    return None


def has_open(process: int, file: Path) -> bool:
    """Whether a process of this user has a file open. Raises OSError where the process is gone or another user's."""
    there = file.stat()
    for descriptor in (PROC / str(process) / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.path.samestat(descriptor.stat(), there):
                return True
    return False


def interrupt(run: Run) -> None:
    """What Ctrl-C does in the terminal of a training: it ends after the current step, with a checkpoint.

    Raises FasttuneError where no process trains the run, or the system does not tell which one.
    """
    process = holder(run.lock)
    if run.status != "running":
        raise error("not-running", _("no process trains this run"), where=run.id)
    if process is None:
        what, fix = (
            _("the process that trains this run can't be told"),
            _("press Ctrl-C in the terminal of the training"),
        )
        raise error("not-told", what, where=run.id, fix=fix)
    try:
        os.kill(process, signal.SIGINT)
    except ProcessLookupError:
        raise error("not-running", _("no process trains this run"), where=run.id) from None
