"""What to type next: complete commands that the command line takes, and settings in each trainer's own spelling."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
import trainings
import written_runs
from kept_epochs import write_epochs
from run_folders import write_run
from series import RECIPE, Series
from trainings import write_factory, write_state, write_swift

from fasttune.analysis import diagnose, remedies
from fasttune.analysis.trainer_logs import read_log
from fasttune.pipeline import Planner, RunRequest
from fasttune.runs import documents, epochs, store
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
        if name not in ("look_at_mask", "pick_best"):
            planned(command)
    assert commands["pick_best"] == ""  # no epoch was kept
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
    for write, shorter, resumed in (
        (write_state, "num_train_epochs=2", "resume_from_checkpoint='{folder}/checkpoint-200'"),
        (write_factory, "num_train_epochs: 2", "resume_from_checkpoint: {folder}/checkpoint-200"),
        (write_swift, "--num_train_epochs 2", "--resume_from_checkpoint {folder}/checkpoint-200"),
    ):
        folder = tmp_path / write.__name__
        (folder / "checkpoint-200").mkdir(parents=True)
        given = remedies.of_log(read_log(write(folder, trainings.good(1))), 2e-4, 2.0)
        assert given.fewer_epochs == shorter
        assert given.continue_ == resumed.format(folder=folder) and given.continue_ in given.more_epochs
        assert "5e-05" in given.lower_learning_rate


@pytest.mark.parametrize(("samples", "share"), [(1000, 0.1), (200, 0.1), (100, 0.2), (58, 0.33), (1, 0.33)])
def test_enough_is_held_out_where_there_is_enough(samples: int, share: float) -> None:
    assert remedies.share_to_hold_out(samples) == share


def turned(root: Path) -> Run:
    """A run of 40 epochs of one step whose held-out loss turned after epoch 20."""
    held_out = [2.0 + 0.003 * (step - 20) ** 2 for step in range(1, 41)]
    return write_run(root, losses=[3.0 * 0.95**step for step in range(40)], held_out=held_out, samples=100)


def test_the_best_epoch_is_picked_where_it_was_kept(tmp_path: Path) -> None:
    """Nothing need be trained again; once it is picked, nothing is wrong with the run."""
    one = turned(tmp_path)
    before = diagnose.of_run(one)
    assert before.findings[0].code == "over-fitting" and "train.epochs=20" in before.command
    write_epochs(one, (10, 20, 40), (2.3, 2.0, 3.2), steps_per_epoch=1)
    found = diagnose.of_run(one)
    assert found.command == epochs.pick_command(one, "--epoch", "20")
    assert [each.code for each in found.findings[:2]] == ["best-checkpoint-was-earlier", "over-fitting"]
    epochs.pick(one, epochs.find_epoch(one, "20"))
    assert not {"over-fitting", "best-checkpoint-was-earlier"} & {each.code for each in diagnose.of_run(one).findings}
    epochs.pick(one, None)
    assert diagnose.of_run(one) == found


def test_without_the_epoch_of_the_best_step_it_is_trained_again(tmp_path: Path) -> None:
    one = turned(tmp_path)
    write_epochs(one, (10, 40), (2.3, 3.2), steps_per_epoch=1)
    assert "train.epochs=20" in diagnose.of_run(one).command
