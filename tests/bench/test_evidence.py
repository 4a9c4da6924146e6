"""benchmarks/evidence.py: the figures of a run on a line, and the tables of the documents that come of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_matrix import script
from conftest import REPOSITORY
from series import Series
from written_runs import request, write_run

pytest_plugins = ["bench_matrix"]
KEPT = sorted((REPOSITORY / "docs" / "evidence").glob("*-*.jsonl"))  # notebook.jsonl is of another form


def test_a_run_on_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Series.new(tmp_path).folder)
    run = write_run(request("train.epochs=2", "train.seed=7"))
    per_epoch = json.loads(run.plan.read_text(encoding="utf-8"))["steps_per_epoch"]
    steps = [
        {"step": step, "epoch": step / per_epoch, "loss": 3.0 if step == 1 else 1.0, "mean_token_accuracy": 0.5}
        for step in range(1, 2 * per_epoch + 1)
    ]
    lines = [*steps, {"step": 2 * per_epoch, "epoch": 2.0, "eval_loss": 2.123456}]
    run.history.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    script("evidence").main(str(run.folder))
    line = json.loads(capsys.readouterr().out)
    assert line["run"] == run.id and line["steps"] == 2 * per_epoch and line["settings"]["train.seed"] == 7
    assert line["loss_by_epoch"] == [round((3 + per_epoch - 1) / per_epoch, 4), 1.0]
    assert line["held_out"] == [[2 * per_epoch, 2.1235]]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_tables_of_the_documents_come_from_the_evidence(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = script("evidence").table(lines)
    assert len(rows) == len(lines) + 2
    page = "".join(
        (REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("defaults.md", "facts.md", "linzhi.md")
    )
    missing = [row for row in rows if row not in page]
    assert not missing, f"python -m benchmarks.evidence --table {path.relative_to(REPOSITORY)}"
