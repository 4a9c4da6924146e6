"""What a sweep prints of trials that are not all here, or not all finished."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_run

from fasttune.runs.documents import Probe
from fasttune.sweep import aftermath
from fasttune.sweep.aftermath import Aftermath, Finalist
from fasttune.sweep.study import TrialRecord
from fasttune.sweep.sweep import Sweep
from fasttune.terminal import sweep_table

KEY = "train.learning_rate"
TRIALS = (
    TrialRecord(1, "finished", {KEY: "1e-4"}, "persona/001-fresh", 2.5, 2.0, ((1.0, 3.0), (2.0, 2.5)), host="here"),
    TrialRecord(2, "finished", {KEY: "2e-4"}, "persona/009-fresh", 2.25, 1.0, ((1.0, 2.25), (2.0, 2.5)), host="there"),
    TrialRecord(3, "pruned", {KEY: "4e-4"}, "persona/010-fresh", losses=((1.0, 9.0), (2.0, 8.5))),
    TrialRecord(4, "failed", {KEY: "1"}, why="training diverged"),
)


def sweep(root: Path, finalists: tuple[TrialRecord, ...] = (TRIALS[1], TRIALS[0])) -> Sweep:
    page = root / "persona" / "sweeps" / f"{KEY}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    return Sweep("persona", Path("persona.toml"), (KEY,), TRIALS, finalists, page, ("q4_k_m",), ())


def test_figures_of_runs_on_other_machines_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, current = write_run(tmp_path), tmp_path / "persona" / "current"
    current.unlink(missing_ok=True)
    after = aftermath.settle(sweep(tmp_path), tmp_path, asks_facts=False)
    assert [one.run.id for one in after.finalists] == [run.id]
    assert [finding.code for finding in after.findings] == ["runs-elsewhere"]
    assert "2 runs are on other machines" in after.findings[0].what
    assert not current.exists()  # the chosen run is not here
    assert sweep_table.show(sweep(tmp_path), after, "", tmp_path, as_json=False) == 0
    shown = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "1 1e-4 001-fresh finished 2 2.5000" in rows
    assert "2* 2e-4 009-fresh finished 1 2.2500" in rows
    assert "3 4e-4 010-fresh stopped early 2 8.5000" in rows
    assert "4 1 failed" in rows
    assert "chosen by held-out loss: trial 2, persona/009-fresh" in shown
    assert "means this run" not in shown
    assert "what was varied has the values of the chosen trial in the recipe already" in shown


def test_answers_side_by_side_and_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    other = replace(TRIALS[0], number=2)
    said = (Probe("Who?", "A model.", "Lumen."),), (Probe("Who?", "A model.", "A lamp."),)
    finalists = tuple(Finalist(one, run, None, probes) for one, probes in zip((TRIALS[0], other), said, strict=True))
    found = sweep(tmp_path, (TRIALS[0], other))
    sweep_table.show(found, Aftermath(finalists, True, {}, ()), "+r = 8", tmp_path, as_json=False)
    shown = capsys.readouterr().out
    assert "persona means this run from now on" in shown
    assert all(text in shown for text in ("A model.", "Lumen.", "A lamp.", "trial 1 answered", "+r = 8"))
    assert f"fasttune export persona/001-fresh --gguf q4_k_m --runs {tmp_path}" in shown.replace("\n", "")
    sweep_table.show(found, Aftermath(finalists, True, {}, ()), "+r = 8", tmp_path, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"] == {"trial": 1, "run": "persona/001-fresh", "settings": {KEY: "1e-4"}}
    assert document["trials"][0]["losses"] == [{"epoch": 1.0, "eval_loss": 3.0}, {"epoch": 2.0, "eval_loss": 2.5}]
    assert (document["diff"], document["trials"][3]["why"]) == ("+r = 8", "training diverged")
