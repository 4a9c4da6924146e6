"""Free disk where runs are written, and how fast a file gets there."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from fasttune.console import _
from fasttune.doctor.outcome import Check, ok
from fasttune.doctor.situation import Situation

GIB = 2**30
LITTLE_GIB, TOO_LITTLE_GIB = 5.0, 1.0  # a 0.5B run with checkpoints and two files; a run that can't end
CHUNK = 8 * 2**20
MOST_CHUNKS = 8
SECONDS = 1.5  # after which no more chunks are written
SLOW_MB = 15.0  # a second; a hard disk writes 100


def disk(situation: Situation) -> Check:
    """Free space and write speed of the folder that holds the runs."""
    folder = next(path for path in (situation.runs.absolute(), *situation.runs.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / GIB
    try:
        speed = write_speed(folder)
    except OSError as problem:
        what = _("the folder of the runs can't be written: {reason}", reason=problem.strerror or str(problem))
        return Check("disk", "error", what, fix=_("choose another one: `export FASTTUNE_RUNS=FOLDER`"))
    return judge(free, speed)


def judge(free: float, speed: float) -> Check:
    """The result for so many free GiB and so many MB written a second."""
    what = _("{free:.0f} GiB are free, {speed:.0f} MB/s are written", free=free, speed=speed)
    if free < LITTLE_GIB:
        why = _("a run of a 0.5B base takes 2 to 5 GB, its download one more")
        fix = _("see what takes the space: `du -sh runs/* ~/.cache/* | sort -h`")
        return Check("disk", "error" if free < TOO_LITTLE_GIB else "warning", what, why, fix)
    if speed < SLOW_MB:
        why = _("every checkpoint waits for the disk")
        return Check("disk", "warning", what, why, _("put the runs on a faster one: `export FASTTUNE_RUNS=FOLDER`"))
    return ok("disk", what)


def write_speed(folder: Path) -> float:
    """MB a second of a file that is written and flushed to the disk, up to 64 MiB of random bytes; the file is
    removed. Raises OSError where it can't be written."""
    chunk = os.urandom(CHUNK)
    with tempfile.TemporaryFile(dir=folder) as file:
        began, written = time.monotonic(), 0
        for _turn in range(MOST_CHUNKS):
            file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            written += CHUNK
            if time.monotonic() - began > SECONDS:
                break
        return written / 1e6 / (time.monotonic() - began)
