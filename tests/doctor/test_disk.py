"""Free disk and write speed of the folder that holds the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune.doctor import disk
from fasttune.doctor.situation import Situation


def test_the_disk_of_a_folder_that_is_not_made_yet(tmp_path: Path) -> None:
    found = disk.disk(Situation(None, "", "", False, tmp_path / "new" / "runs"))
    assert found.state in ("ok", "warning") and "MB/s" in found.measured
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "speed", "state"), [(60, 400, "ok"), (3, 400, "warning"), (0.4, 400, "error"), (60, 5, "warning")]
)
def test_figures(free: float, speed: float, state: str) -> None:
    found = disk.judge(free, speed)
    assert found.state == state and f"{speed:.0f} MB/s" in found.measured and bool(found.fix) == (state != "ok")


def test_a_folder_that_cant_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "write_speed", refuse)
    found = disk.disk(Situation(None, "", "", False, tmp_path))
    assert found.state == "error" and "Permission denied" in found.measured and str(tmp_path) not in found.measured
