"""The answers of base, parent and trained model beside each other, and what is marked in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import write_run

from fasttune.console import stdout_console
from fasttune.runs import documents
from fasttune.runs.documents import Probe, Scores
from fasttune.runs.store import Run
from fasttune.terminal.probe_table import probes_table

BABBLE = "月亮很圆" * 12


def shown(run: Run, probes: list[Probe], capsys: pytest.CaptureFixture[str]) -> str:
    stdout_console.print(probes_table(run, probes, by_gguf=False))
    return capsys.readouterr().out


def test_what_counting_finds_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    plain = shown(run, [Probe("Who?", "A [model].", "Lumen.")], capsys)
    assert "A [model]." in plain and "(" not in plain
    assert "(repeats itself)" in shown(run, [Probe("Who?", "A model.", BABBLE)], capsys)
    assert "(repeats itself)" in shown(run, [Probe("Who?", BABBLE, "Lumen.")], capsys)
    assert "(cut at" in shown(run, [Probe("Who?", "A model.", "Lumen and", trained_cut=True)], capsys)
    assert "(cut at" in shown(run, [Probe("Who?", "A model and", "Lumen.", base_cut=True)], capsys)
    assert "(in the training" in shown(run, [Probe("Who?", "A model.", "Lumen.", is_trained=True)], capsys)


def test_the_parent_answers_beside_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = write_run(tmp_path)
    child = write_run(tmp_path, "incremental", parent=parent, start="checkpoint")
    probes = [Probe("Who?", "A model.", "Lumen, of course.")]
    assert "its parent answered" not in shown(child, probes, capsys)
    documents.write(parent.scores, Scores((Probe("Who?", "A model.", "Lumen, as ever."),), "adapter"))
    said = shown(child, probes, capsys)
    assert "its parent answered" in said and "Lumen, as ever." in said
    assert "its parent answered" not in shown(child, [Probe("Another?", "A model.", "Yes.")], capsys)
    parent.scores.write_text("{", encoding="utf-8")
    assert "its parent answered" not in shown(child, probes, capsys)
