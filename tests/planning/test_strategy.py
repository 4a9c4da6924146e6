"""What a recipe comes to: steps, the served system prompt, and which earlier run is gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune import files
from fasttune.console import UsageError
from fasttune.data import dataset
from fasttune.planning import strategy
from fasttune.planning.strategy import Plan
from fasttune.recipe.load import load_recipe
from fasttune.runs import store


def planned(folder: Path, *overrides: str) -> Plan:
    (folder / "train.jsonl").write_text(
        "".join(f'{{"system": "S", "instruction": "q{n}", "output": "a{n}"}}\n' for n in range(10)), encoding="utf-8"
    )
    path = folder / "x.toml"
    path.write_text(f'name = "x"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{folder}/train.jsonl"\n')
    read = load_recipe(path, overrides)
    return strategy.decide(read, dataset.load_dataset(read.data, read.train.seed), folder / "runs")


@pytest.mark.parametrize(
    ("overrides", "per_epoch", "total"),
    [
        (["train.batch_size=4"], 3, 9),
        (["train.batch_size=4", "train.epochs=0.5"], 3, 2),
        (["train.batch_size=16"], 1, 3),
        (["train.batch_size=5", "train.max_steps=7"], 2, 7),
    ],
)
def test_steps(tmp_path: Path, overrides: list[str], per_epoch: int, total: int) -> None:
    plan = planned(tmp_path, *overrides)
    assert (plan.steps_per_epoch, plan.total_steps) == (per_epoch, total)
    assert plan.document()["total_steps"] == total
    assert plan.epochs == total / per_epoch


def test_the_commonest_system_prompt_is_served(tmp_path: Path) -> None:
    assert planned(tmp_path).system == "S"


def begin(root: Path, plan: Plan) -> store.Run:
    """A run folder as it is after a training was killed."""
    run = store.create(root, plan.recipe.name, plan.recipe.strategy)
    files.write_json(run.plan, plan.document())
    files.write_json(run.provenance, {})
    return run


def test_what_happens_to_an_existing_series(tmp_path: Path) -> None:
    plan, root = planned(tmp_path), tmp_path / "runs"
    assert strategy.run_to_resume(root, plan, None) is None
    stopped = begin(root, plan)
    assert strategy.run_to_resume(root, plan, None) == stopped
    assert strategy.run_to_resume(root, plan, "resume") == stopped
    assert strategy.run_to_resume(root, plan, "new") is None
    with pytest.raises(UsageError, match="x has 1 run"):
        strategy.run_to_resume(root, plan, "stop")
    stopped.adapter.mkdir()
    assert strategy.run_to_resume(root, plan, None) == stopped  # trained, its files not made yet
    files.write_json(stopped.scores, {"answered_by": None})
    for choice in (None, "resume", "stop"):
        with pytest.raises(UsageError, match="the newest is x/001-fresh"):
            strategy.run_to_resume(root, plan, choice)  # type: ignore[arg-type]
    assert strategy.run_to_resume(root, plan, "new") is None


def test_a_changed_recipe_does_not_resume_and_names_every_difference(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    begin(root, planned(tmp_path))
    with pytest.raises(UsageError) as caught:
        strategy.run_to_resume(root, planned(tmp_path, "lora.r=4", "train.batch_size=3", "train.save_steps=1"), None)
    assert [finding.where for finding in caught.value.findings] == [
        "x/001-fresh: lora.r", "x/001-fresh: lora.alpha", "x/001-fresh: train.batch_size",
    ]  # fmt: skip
    changed = planned(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"instruction": "other", "output": "a"}\n')
    read = changed.recipe
    other = strategy.decide(read, dataset.load_dataset(read.data, read.train.seed), root)
    with pytest.raises(UsageError, match="x/001-fresh: samples: the stopped run began with"):
        strategy.run_to_resume(root, other, None)
