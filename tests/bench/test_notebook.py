"""benchmarks/notebook.py: held-out loss by training time, beside the settings of stock Unsloth's notebooks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench_matrix import script
from conftest import REPOSITORY

pytest_plugins = ["bench_matrix"]
KEPT = REPOSITORY / "docs" / "evidence" / "notebook.jsonl"


def test_seconds_are_those_of_the_steps_before_an_evaluation() -> None:
    notebook = script("notebook")
    history = [
        {"step": 1, "loss": 4.0, "step_seconds": 2.25},
        {"step": 1, "eval_loss": 4.5},
        {"step": 2, "loss": 3.0, "step_seconds": 1.0},
        {"step": 3, "loss": 2.0, "step_seconds": 1.5},
        {"step": 3, "eval_loss": 3.98764},
    ]
    points = notebook.points_of(history)
    assert points == [notebook.Point(1, 2.2, 4.5), notebook.Point(3, 4.8, 3.9876)]


@pytest.mark.slow
def test_both_hold_out_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stock's first step has a learning rate of 0, so that its held-out loss is the base's; and fasttune's is too."""
    monkeypatch.chdir(REPOSITORY)
    out = tmp_path / "out.jsonl"
    given = ["recipes/nell.toml", "--set", "train.max_steps=1", "--set", "train.learning_rate=1e-12"]
    monkeypatch.setattr(sys, "argv", ["notebook.py", *given, "--steps", "2", "--every", "1", "--out", str(out)])
    script("notebook").main()
    ours, stock = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    assert (ours["engine"], stock["engine"]) == ("fasttune", "stock")
    assert [point["step"] for point in stock["points"]] == [1, 2]
    assert stock["points"][0]["held_out"] == pytest.approx(ours["points"][-1]["held_out"], abs=2e-4)
    assert stock["points"][1]["held_out"] != stock["points"][0]["held_out"]
    capsys.readouterr()


def test_the_table_of_the_document_comes_from_the_evidence() -> None:
    rows = script("notebook").table(json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines())
    page = (REPOSITORY / "docs" / "defaults.md").read_text(encoding="utf-8")
    assert len(rows) > 2 and not [row for row in rows if row not in page]
