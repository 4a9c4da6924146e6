"""The files of a run and of those that it continued: each is read once for all figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from fasttune.runs import documents, history, run_files, summary
from fasttune.runs.run_files import RunFiles


def test_all_figures_of_a_run_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_run(tmp_path, "fresh", held_out=[0.5, 0.4])
    second = write_run(tmp_path, "incremental", parent=first, start="checkpoint", held_out=[0.43, 0.43])
    third = write_run(tmp_path, "incremental", parent=second, start="checkpoint", held_out=[0.41, 0.39])
    asked: Counter[Path] = Counter()

    def read(path: Path, kind: Any) -> Any:
        asked[path] += 1
        return own_read(path, kind)

    def read_history(run: Any) -> Any:
        asked[run.history] += 1
        return own_history(run)

    own_read, own_history = documents.read, history.read_history
    monkeypatch.setattr(documents, "read", read)
    monkeypatch.setattr(run_files, "read_history", read_history)
    figures = summary.read_figures(third)
    assert (figures.best_eval_loss, figures.eval_loss, figures.parent) == (0.39, 0.39, second.id)
    assert {path for path in asked if path.name == "plan.json"} == {first.plan, second.plan, third.plan}
    assert set(asked.values()) == {1}, asked


def test_the_chain_of_parents(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh", losses=(2.0, 1.0))
    second = write_run(tmp_path, "incremental", parent=first, start="checkpoint", losses=(0.5,))
    third = write_run(tmp_path, "retune", parent=second, losses=(3.0,))
    found = RunFiles(third)
    assert found.parent is not None and found.parent.parent is not None
    assert (found.parent.run, found.parent.parent.run) == (second, first)
    assert found.parent_on_same_data is None and found.parent.parent_on_same_data is found.parent.parent
    assert [line["loss"] for line in found.parent.history] == [2.0, 1.0, 0.5] and found.began_from_base
    first.plan.write_text("{", encoding="utf-8")
    assert RunFiles(second).parent is None
