"""Whether `fasttune run` would take a command, found out by planning it: what a message tells a person to type must not
be refused. Nothing is started or written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fasttune.command import OnExisting
from fasttune.console import FasttuneError
from fasttune.data.dataset import Dataset
from fasttune.planning import parents, strategy
from fasttune.planning.resume import run_to_resume
from fasttune.planning.strategy import Plan
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import Recipe
from fasttune.runs import checkpoints

ReadDataset = Callable[[Recipe], Dataset]


def decided(
    recipe: Recipe, root: Path, read: ReadDataset, *, on_existing: OnExisting | None, allow_overfit: bool
) -> Plan:
    """The plan of a recipe as it is given, with what follows from the earlier runs of its series; without advice.

    Raises FasttuneError where recipe, data and earlier runs contradict each other.
    """
    recipe = parents.inherit(recipe, root, on_existing)
    plan = strategy.decide(recipe, read(recipe), root, allow_overfit=allow_overfit, on_existing=on_existing)
    if plan.start.adapter is not None:
        checkpoints.require_whole_adapter(plan.start.adapter)
    return plan


def is_accepted(
    path: Path,
    root: Path,
    overrides: Iterable[str],
    read: ReadDataset,
    *,
    strategy: str | None = None,
    on_existing: OnExisting | None = None,
    allow_overfit: bool = False,
) -> bool:
    """Whether `fasttune run` of a recipe with these arguments would train or resume; False also where the recipe, its
    data or a run that it needs can't be read."""
    changes = [*overrides, *([f"strategy={strategy}"] if strategy else [])]
    try:
        recipe = load_recipe(path, changes)
        plan = decided(recipe, root, read, on_existing=on_existing, allow_overfit=allow_overfit)
        run_to_resume(root, plan, on_existing)
    except FasttuneError:
        return False
    return True
