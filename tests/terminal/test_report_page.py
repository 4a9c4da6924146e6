"""What is said of a page: where it lies, how it is opened, and why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import write_run

from fasttune import files, machine
from fasttune.terminal import report_page


def test_a_page_is_opened_by_its_address_and_in_windows_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "windows_path", lambda path: None)
    assert report_page.how_to_open(tmp_path / "a b.html") == f"file://{tmp_path}/a%20b.html"
    monkeypatch.setattr(machine, "windows_path", lambda path: rf"\\wsl.localhost\Ubuntu\{path.name}")
    assert report_page.how_to_open(tmp_path / "a b.html") == r"`explorer.exe '\\wsl.localhost\Ubuntu\a b.html'`"


def test_a_training_ends_with_its_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, held_out=(3.0, 2.0))
    assert report_page.written_after(run) == run.report
    assert "persona/001-fresh" in run.report.read_text(encoding="utf-8")


def test_a_page_that_can_t_be_written_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    run = write_run(tmp_path)
    monkeypatch.setattr(files, "write_text", full)
    assert report_page.written_after(run) is None
    said = capsys.readouterr().err
    assert "warning" in said and "report.html" in said and "Traceback" not in said
