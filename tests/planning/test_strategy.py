"""What a recipe's run will do: its steps, and the system prompt its model is served with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import SHEET

from fasttune.console import UsageError
from fasttune.data import dataset
from fasttune.planning import strategy
from fasttune.planning.strategy import Plan
from fasttune.recipe.load import load_recipe
from fasttune.runs import documents, store


def planned(folder: Path, *overrides: str, systems: list[str | None] | None = None) -> Plan:
    """The plan for ten samples, or one for each of the system prompts."""
    lines = []
    for number, system in enumerate(["S"] * 10 if systems is None else systems):
        turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
        lines.append({"messages": [{"role": "system", "content": system}, *turns] if system is not None else turns})
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    path = folder / "x.toml"
    path.write_text(f'name = "x"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{folder}/train.jsonl"\n')
    recipe = load_recipe(path, overrides)
    return strategy.decide(recipe, dataset.load_dataset(recipe.data, recipe.train.seed), folder / "runs")


@pytest.mark.parametrize(
    ("overrides", "per_epoch", "total"),
    [
        ([], 5, 33),  # batch_size 2 and 6.5 epochs suit 10 samples
        (["train.batch_size=4", "train.epochs=3"], 3, 9),
        (["train.batch_size=4", "train.epochs=0.5"], 3, 2),
        (["train.batch_size=16", "train.epochs=3"], 1, 3),
        (["train.batch_size=5", "train.max_steps=7"], 2, 7),
    ],
)
def test_steps(tmp_path: Path, overrides: list[str], per_epoch: int, total: int) -> None:
    plan = planned(tmp_path, *overrides)
    assert (plan.steps_per_epoch, plan.total_steps) == (per_epoch, total)
    assert plan.document().total_steps == total
    assert plan.epochs == total / per_epoch


@pytest.mark.parametrize(
    ("systems", "served"),
    [
        (["A", "B", "B", "C"], "B"),
        (["A", "B", "B", "A"], "A"),  # a tie: the one that stands first
        (["A", None, None, None], "A"),  # samples without one are not counted
        ([None, None], None),
    ],
)
def test_the_commonest_system_prompt_is_served(tmp_path: Path, systems: list[str | None], served: str | None) -> None:
    plan = planned(tmp_path, "train.batch_size=1", systems=systems)
    assert plan.system == served and plan.document().system == served


def test_general_conversations_make_steps_and_choose_nothing(tmp_path: Path) -> None:
    """They are trained on; batch size, epochs and the system prompt are by the user's samples alone. (The learning rate
    is by what they come to: 39 steps of 6 an epoch are 6.5 epochs, 33 of 5 are 6.6.)"""
    rate = "train.learning_rate=1e-3"
    plain, mixed = planned(tmp_path, rate), planned(tmp_path, rate, "data.replay=0.2")
    assert (mixed.steps_per_epoch, plain.steps_per_epoch) == (6, 5) and mixed.total_steps == 39
    assert mixed.recipe.train == plain.recipe.train and mixed.system == "S"
    document = mixed.document()
    assert (document.train_samples, document.general_samples) == (10, 2) and plain.document().general_samples == 0
    assert document.data_fingerprint != plain.document().data_fingerprint


def test_held_out_samples_do_not_choose_the_system_prompt(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text(
        "".join(f'{{"system": "V", "instruction": "v{n}", "output": "a"}}\n' for n in range(3))
    )
    assert planned(tmp_path, f"data.val={tmp_path}/val.jsonl", systems=["A", "B"]).system == "A"


def test_the_plan_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    document = planned(tmp_path, "export.gguf=['f16', 'q8_0']").document()
    documents.write(tmp_path / "plan.json", document)
    assert documents.read(tmp_path / "plan.json", documents.PlanDocument) == document


def test_the_served_prompt_has_the_facts_where_the_recipe_asks_for_them(tmp_path: Path) -> None:
    sheet = tmp_path / "facts.toml"
    sheet.write_text(SHEET, encoding="utf-8")
    trained = planned(tmp_path, f"facts.file={sheet}")
    assert (trained.served_system, trained.document().with_facts, trained.document().served_system) == ("S", None, "S")
    plan = planned(tmp_path, f"facts.file={sheet}", "export.prompt=facts")
    assert plan.system == plan.document().system == "S"
    assert (
        plan.served_system is not None and plan.served_system.startswith("S\n\n") and "猫叫定影。" in plan.served_system
    )
    run = store.create(tmp_path / "runs", "x", "fresh")
    documents.write(run.plan, plan.document())
    assert documents.read_plan(run).served_system == plan.served_system


def test_facts_that_were_trained_are_not_served_twice(tmp_path: Path) -> None:
    sheet = tmp_path / "facts.toml"
    sheet.write_text(SHEET, encoding="utf-8")
    trained = (f"data.system_facts={sheet}", "export.prompt=facts")
    for same in (sheet, tmp_path / "." / ".." / tmp_path.name / "facts.toml"):
        plan = planned(tmp_path, f"facts.file={same}", *trained)
        assert plan.served_system == plan.system and str(plan.system).count("猫叫定影") == 1
    other = tmp_path / "more.toml"
    other.write_text(SHEET.replace("猫叫定影", "狗叫显影"), encoding="utf-8")
    served = str(planned(tmp_path, f"facts.file={other}", *trained).served_system)
    assert "猫叫定影" in served and "狗叫显影" in served


def test_a_sheet_that_is_missing_is_told_with_the_plan(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        planned(tmp_path, f"facts.file={tmp_path}/none.toml", "export.prompt=facts").document()
    assert refused.value.findings[0].code == "facts-not-found"
