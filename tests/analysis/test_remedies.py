"""What to type next: complete commands that the command line takes, and settings in each trainer's own spelling."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
import trainings
import written_runs
from series import RECIPE, Series
from trainings import write_factory, write_state, write_swift

from fasttune.analysis import remedies
from fasttune.analysis.trainer_logs import read_log
from fasttune.pipeline import Planner, RunRequest
from fasttune.runs import documents, store
from fasttune.runs.store import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    Series.new(tmp_path / "series", RECIPE)
    monkeypatch.chdir(tmp_path / "series")
    return written_runs.write_run(written_runs.request("train.epochs=2", "data.val=val.jsonl"))


def planned(command: str) -> None:
    """Plan a printed command; raises where fasttune would refuse it."""
    words = shlex.split(command)
    assert words[:2] == ["fasttune", "run"]
    overrides = tuple(words[n + 1] for n, word in enumerate(words) if word == "--set")
    strategy = words[words.index("--continue") + 1] if "--continue" in words else None
    on_existing = "new" if "--on-existing" in words else None
    allow = "--allow-overfit" in words
    request = RunRequest(Path(words[2]), overrides, strategy=strategy, on_existing=on_existing, allow_overfit=allow)  # type: ignore[arg-type]
    Planner().plan(request)


def test_every_command_for_a_run_can_be_carried_out(run: Run) -> None:
    given = remedies.of_run(run, documents.read_plan(run), 1.0)
    commands = {field.name: getattr(given, field.name) for field in fields(given)}
    assert commands["look_at_mask"] == "fasttune show train.jsonl:1 --recipe runs/persona/001-fresh/recipe.toml"
    for name, command in commands.items():
        if name != "look_at_mask":
            planned(command)
    assert 'data.val="val.jsonl"' in commands["more_epochs"], "what it began with is kept"
    assert commands["fewer_epochs"].endswith("--set train.epochs=1")


def test_an_older_run_is_named_as_the_parent(run: Run) -> None:
    later = written_runs.write_run(written_runs.request("train.epochs=2", on_existing="new"))
    assert store.current(run.root, run.series) == later
    command = remedies.of_run(run, documents.read_plan(run), 1.0).more_epochs
    assert f"--set continue.parent={run.id}" in command
    planned(command)


def test_a_stopped_run_is_not_continued_from(run: Run) -> None:
    run.adapter.rmdir()
    given = remedies.of_run(run, documents.read_plan(run), 1.0)
    assert "--on-existing new" in given.fewer_epochs and "--on-existing resume" in given.more_epochs
    planned(given.fewer_epochs)


def test_more_than_ten_epochs_are_allowed_where_they_are_meant(run: Run) -> None:
    plan = replace(documents.read_plan(run), epochs=9.0)
    assert "--allow-overfit" in remedies.of_run(run, plan, 1.0).more_epochs
    assert "--allow-overfit" not in remedies.of_run(run, plan, 1.0).fewer_epochs


def test_each_trainer_has_its_own_spelling(tmp_path: Path) -> None:
    for write, epochs, resumed in (
        (write_state, "num_train_epochs=2", "resume_from_checkpoint='{folder}/checkpoint-200'"),
        (write_factory, "num_train_epochs: 2", "resume_from_checkpoint: {folder}/checkpoint-200"),
        (write_swift, "--num_train_epochs 2", "--resume_from_checkpoint {folder}/checkpoint-200"),
    ):
        folder = tmp_path / write.__name__
        (folder / "checkpoint-200").mkdir(parents=True)
        given = remedies.of_log(read_log(write(folder, trainings.good(1))), 2e-4, 2.0)
        assert given.fewer_epochs == epochs
        assert given.continue_ == resumed.format(folder=folder) and given.continue_ in given.more_epochs
        assert "5e-05" in given.lower_learning_rate


@pytest.mark.parametrize(("samples", "share"), [(1000, 0.1), (200, 0.1), (100, 0.2), (58, 0.33), (1, 0.33)])
def test_enough_is_held_out_where_there_is_enough(samples: int, share: float) -> None:
    assert remedies.share_to_hold_out(samples) == share
