"""batch_size, epochs and learning_rate where the recipe says nothing: they suit samples and steps, and stay what a run
began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from series import RECIPE, Series
from written_runs import planned, request, write_run

from fasttune.planning import auto_values
from fasttune.planning.resume import run_to_resume
from fasttune.planning.strategy import Plan
from fasttune.runs import documents
from fasttune.runs.store import Run

SILENT = RECIPE.replace("batch_size = 4\n", "").replace("learning_rate = 2e-3\n", "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """10 samples and a recipe that says nothing of batch_size and epochs."""
    monkeypatch.chdir(Series.new(tmp_path, SILENT).folder)
    return tmp_path


def chosen(plan: Plan) -> list[tuple[Any, str]]:
    """batch_size and epochs with their sources."""
    settings = {one.key: (one.value, one.source) for one in plan.document().settings}
    return [settings["train.batch_size"], settings["train.epochs"]]


def old(run: Run) -> Run:
    """The run as it was written before there was "auto": 16 samples a step and 3 epochs."""
    plan = documents.read_plan(run)
    values = {"train.batch_size": 16, "train.epochs": 3.0}
    settings = tuple(
        replace(one, value=values[one.key], source="default") if one.key in values else one for one in plan.settings
    )
    documents.write(run.plan, replace(plan, settings=settings, steps_per_epoch=1, total_steps=3, epochs=3.0))
    return run


@pytest.mark.parametrize(
    ("samples", "size"), [(1, 1), (7, 1), (10, 2), (18, 4), (60, 4), (64, 4), (119, 8), (486, 16), (5000, 16)]
)
def test_a_training_has_thirty_steps_where_it_can(samples: int, size: int) -> None:
    assert auto_values.batch_size(samples) == size


@pytest.mark.parametrize("given", [(), ("train.batch_size=auto", "train.epochs=auto")])
def test_what_is_left_out_suits_the_samples(folder: Path, given: tuple[str, ...]) -> None:
    """16 samples a step and 3 epochs were 3 steps of these 10 samples."""
    plan = planned(*given)
    assert chosen(plan) == [(2, "default (auto: 10 samples)"), (6.5, "default (auto: 10 samples)")]
    assert plan.total_steps == 33 and not [one for one in plan.findings if one.code == "few-steps"]


def test_an_explicit_number_is_kept(folder: Path) -> None:
    plan = planned("train.batch_size=16", "train.epochs=3")
    assert chosen(plan) == [(16, "override"), (3.0, "override")]
    assert [one.code for one in plan.findings if one.level == "warning"] == ["few-steps"]


def test_a_continued_run_keeps_its_parents_batch_size(folder: Path) -> None:
    run = write_run(request("train.epochs=2"))
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text(encoding="utf-8") * 9, encoding="utf-8")
    more = planned("continue.add_epochs=1", "continue.start=adapter", strategy="custom", allow_overfit=True)
    assert chosen(more)[0] == (2, f"default (auto: {run.id})")


def test_a_continued_old_run_keeps_its_batch_size(folder: Path) -> None:
    old(write_run(request(), steps=3))
    plan = planned("continue.add_epochs=1", strategy="incremental")
    assert chosen(plan)[0] == (16, "parent run persona/001-fresh") and plan.steps_per_epoch == 1


def test_an_old_run_that_was_stopped_is_resumed_with_what_it_began_with(folder: Path) -> None:
    run = old(write_run(request(), "stopped", steps=1))
    plan = planned()
    assert [value for value, _source in chosen(plan)] == [16, 3.0] and plan.total_steps == 3
    assert run_to_resume(Path("runs"), plan, None) == run
    assert planned(on_existing="new").total_steps == 33


# The learning rate --------------------------------------------------------------------------------------------------


def rate(plan: Plan) -> tuple[Any, str]:
    """learning_rate with its source."""
    return next((one.value, one.source) for one in plan.document().settings if one.key == "train.learning_rate")


def test_what_was_chosen_is_said_with_its_reason(folder: Path) -> None:
    assert rate(planned()) == (
        1.6e-3,
        "default (auto: 6.6 epochs of 10 samples, alpha 16)",
    )  # 6.5 epochs end within a step
    assert rate(planned("train.max_steps=5")) == (5e-3, "default (auto: 1 epoch of 10 samples, alpha 16)")


def test_a_given_learning_rate_is_kept(folder: Path) -> None:
    assert rate(planned("train.learning_rate=1e-5")) == (1e-5, "override")


def test_a_continued_run_keeps_its_parents_learning_rate(folder: Path) -> None:
    """More steps suit another one, but a checkpoint's optimizer state belongs to the one that it was trained with."""
    run = write_run(request("train.learning_rate=7e-4"))
    more = planned("continue.add_epochs=3", strategy="incremental", allow_overfit=True)
    assert rate(more) == (7e-4, f"parent run {run.id}")
    auto = planned("train.learning_rate=auto", "continue.add_epochs=3", strategy="incremental", allow_overfit=True)
    assert rate(auto) == (7e-4, f"default (auto: {run.id})")


def test_a_stopped_run_is_resumed_with_its_learning_rate(folder: Path) -> None:
    """One that was begun when the default was 2e-4 goes on with that."""
    run = write_run(request("train.learning_rate=2e-4"), "stopped", steps=1)
    assert rate(planned()) == (2e-4, f"default (auto: {run.id})")
    assert run_to_resume(Path("runs"), planned(), None) == run
