"""A continuation has one length: train.max_steps of the first run neither hides add_epochs nor augment's total."""

from __future__ import annotations

from pathlib import Path

import pytest
from series import RECIPE, Series
from written_runs import planned, refusal, write_run

from fasttune.pipeline import Planner, RunRequest
from fasttune.planning import lengths
from fasttune.planning.strategy import Plan

PER_EPOCH = 3  # 10 samples, 4 a step


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run of 3 steps, as its recipe says by max_steps, in the working directory."""
    series = Series.new(tmp_path, RECIPE.replace("batch_size = 4", "batch_size = 4\nmax_steps = 3"))
    monkeypatch.chdir(series.folder)
    write_run(RunRequest(Path("persona.toml")))


def left_out(plan: Plan) -> list[str]:
    return [one.what for one in plan.findings if one.code == "length-left-out"]


def test_epochs_to_add_count_where_the_recipe_says_max_steps() -> None:
    plan = planned("continue.add_epochs=2", strategy="incremental")
    assert (plan.start.step, plan.total_steps) == (3, 3 + 2 * PER_EPOCH)
    assert left_out(plan) == [
        "train.max_steps = 3 of the recipe is left out: continue.add_epochs says how long this run trains"
    ]
    assert plan.recipe.sources["train.max_steps"] == "left out (continue.add_epochs counts)"


def test_augment_has_the_total_that_suits_the_samples() -> None:
    plan = planned(strategy="augment")
    assert plan.total_steps == 20  # 6.5 epochs suit 10 samples
    assert len(left_out(plan)) == 1


def test_what_is_typed_counts() -> None:
    assert planned("train.max_steps=8", strategy="augment").total_steps == 8
    Path("more.toml").write_text(
        Path("persona.toml").read_text(encoding="utf-8").replace("max_steps = 3", "")
        + '[continue]\nadd_epochs = 2\n', encoding="utf-8",
    )  # fmt: skip
    plan = Planner().plan(RunRequest(Path("more.toml"), ("train.max_steps=5", "strategy=incremental")))
    assert plan.total_steps == 5 and "continue.add_epochs = 2 of the recipe is left out" in left_out(plan)[0]


def test_two_lengths_in_one_place_are_refused() -> None:
    (finding,) = refusal("continue.add_epochs=2", "train.max_steps=9", strategy="incremental")
    assert (finding.code, finding.where) == ("contradiction", "persona.toml: train.max_steps")
    assert "train.max_steps and continue.add_epochs both say how long" in finding.what


def test_a_total_that_was_trained_already_names_the_key_that_says_so() -> None:
    (finding,) = refusal(strategy="custom")
    assert (finding.code, finding.where) == ("nothing-to-train", "persona.toml: train.max_steps")


def test_a_first_run_of_no_step_is_told_without_a_parent() -> None:
    (finding,) = refusal("name=other", "train.max_steps=0", "train.epochs=1e-9")
    assert (finding.code, finding.where) == ("nothing-to-train", "persona.toml: train.epochs")
    assert "comes to no step" in finding.what and "parent" not in finding.what + finding.fix


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"),
    [(1.5, 3, 5), (1.1, 50, 55), (1.1, 10, 11), (1.11, 10, 12), (29 / 7, 7, 29), (2.0, 7, 14), (0.01, 3, 1),
     (8 / 3, 3, 8), (2.6666, 3, 8)],
)  # fmt: skip
def test_a_begun_step_counts_and_a_rounding_error_does_not(epochs: float, per_epoch: int, steps: int) -> None:
    assert lengths.steps_in(epochs, per_epoch) == steps
