"""A full disk or a quota keeps the last checkpoint, says how much is needed, and the same command resumes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Shared
from series import SHORT, Series, assert_same_run, checkpoints, short_run, wait


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of its own of a size, or changes its size."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(requested: str) -> Path:
        option = f"{'remount,' if os.path.ismount(place) else ''}size={requested}"
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("a small file system can be mounted by root only")
        return place

    yield size
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


KEEP = (*SHORT[:1], "train.save_steps=1", "train.save_total_limit=9")


def test_a_full_disk_keeps_the_last_checkpoint(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    series = Series.new(tmp_path / "series")
    disk = small_disk("1800k")
    full = series.train(*KEEP, flags=f"--runs {disk}", code=1)
    assert "no space left: a checkpoint needs 1.5 MB" in full.stderr and "hint: free some space" in full.stderr
    assert "Traceback" not in full.stderr
    run = disk / "persona" / "001-fresh"
    assert checkpoints(run) == [f"checkpoint-{step}" for step in (1, 2, 3)] and not list(disk.rglob("*.partial"))
    again = series.train(*KEEP, flags=f"--runs {disk}", code=1)
    assert "1.7 MB are needed" in again.stderr and "loading torch" not in again.stderr
    assert len(checkpoints(run)) == 3

    small_disk("40m")
    series.train(*KEEP, flags=f"--runs {disk}")
    series.train(*KEEP)
    assert_same_run(run, series.run(1))


@pytest.mark.parametrize("size", ["12k", "1600k"])
def test_a_disk_that_is_full_from_the_start(small_disk: Callable[[str], Path], tmp_path: Path, size: str) -> None:
    """No room for the run folder's first files, or for a checkpoint and the adapter: found out before torch is loaded."""
    series, disk = Series.new(tmp_path / "series"), small_disk(size)
    full = series.train(*KEEP, flags=f"--runs {disk}", code=1)
    assert "1.7 MB are needed" in full.stderr and "hint: free some space" in full.stderr
    assert "loading torch" not in full.stderr and list(disk.iterdir()) == []


def test_a_quota_keeps_the_last_checkpoint(shared: Shared, tmp_path: Path) -> None:
    """The system refuses larger files from the middle of a run on, as a quota does."""
    series = Series.new(tmp_path)
    child = series.start(*SHORT, hold_at=2)
    assert wait(lambda: len(list(series.folder.glob("runs/persona/*/checkpoints/*2"))) > 0, child)
    assert child.pid
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    assert series.send(child) == 1, series.log
    assert (
        "no space left for this user: a checkpoint needs 1.5 MB, and a quota" in series.log
        and "Traceback" not in series.log
    )
    assert checkpoints(series.run(1))[0] == "checkpoint-2" and not list(series.folder.rglob("*.partial"))
    series.train(*SHORT)
    assert_same_run(series.run(1), short_run(shared))
