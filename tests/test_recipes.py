"""Every shipped recipe loads, plans, begins with the command that runs it, and sets no default."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from fasttune.data import dataset
from fasttune.planning import parents, strategy
from fasttune.recipe import schema
from fasttune.recipe.load import flat, load_recipe
from fasttune.recipe.schema import Recipe
from fasttune.runs import checkpoints, documents, store

RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml"))
EXPECTED = {
    "quickstart", "linzhi", "linzhi_incremental", "linzhi_retune", "linzhi_augment", "linzhi_custom", "qwen2.5-1.5b",
    "qwen2.5-3b", "linzhi_facts", "qin_facts", "nell_facts",
}  # fmt: skip


def test_the_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= EXPECTED


def finished_parent(read: Recipe, root: Path, epochs: float) -> store.Run:
    """A run of the recipe's series as a fresh training leaves it, without weights."""
    fresh = load_recipe(read.path, ["strategy=fresh", f"train.epochs={epochs}"])
    plan = strategy.decide(fresh, dataset.load_dataset(fresh.data, fresh.train.seed), root)
    run = store.create(root, read.name, "fresh")
    documents.write(run.plan, plan.document())
    with checkpoints.writing_checkpoint(run, plan.total_steps) as folder:
        (folder / "weights").write_text("")
    run.adapter.mkdir()
    return run


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_plans(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    name = path.relative_to(REPOSITORY)
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# fasttune run {name}"
    read = load_recipe(name)
    parent = None
    if read.strategy != "fresh":
        parent = finished_parent(read, tmp_path, epochs=2.0)
        read = parents.inherit(read, tmp_path)
    plan = strategy.decide(read, dataset.load_dataset(read.data, read.train.seed), tmp_path)
    assert plan.total_steps > plan.start.step
    assert plan.start.parent == parent
    assert not [finding for finding in plan.dataset.findings if finding.level != "info"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_sets_only_what_differs_from_the_defaults(path: Path) -> None:
    read = load_recipe(path)
    repeated = [
        key for key, source in read.sources.items()
        if source == "recipe" and schema.KEYS[key].default == dict(flat(vars(read)))[key]
    ]  # fmt: skip
    assert repeated == []
