"""train.batch_size and train.epochs where they are "auto": numbers that suit the number of samples.

A fixed default fits no data set of another size: 16 samples a step and 3 epochs are 3 steps of 10 samples. A run that
continues keeps its parent's batch_size, and a resumed one all that it began with, also where it began before there was
"auto".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fasttune.data.dataset import Dataset
from fasttune.planning import parents
from fasttune.recipe.schema import Recipe
from fasttune.runs import documents
from fasttune.runs.store import Run

Number = TypeVar("Number", int, float)
AUTO = "auto"
LARGEST_BATCH = 16
STEPS_AN_EPOCH = 4  # at least, where there are so many samples


def batch_size(samples: int) -> int:
    """The largest power of two, up to LARGEST_BATCH, that gives an epoch STEPS_AN_EPOCH steps."""
    return next((size for size in (LARGEST_BATCH, 8, 4, 2) if samples >= size * STEPS_AN_EPOCH), 1)


def resolved(recipe: Recipe, dataset: Dataset, parent: Run | None, stopped: Run | None, epochs: float) -> Recipe:
    """The recipe with a number for each "auto"; `epochs` is the one for its samples, `stopped` the run that is
    resumed."""
    train, samples, sources = recipe.train, len(dataset.train), dict(recipe.sources)
    if train.batch_size == AUTO:
        size, source = as_before("train.batch_size", stopped or parent, batch_size(samples), samples)
        train, sources["train.batch_size"] = replace(train, batch_size=size), source
    if train.epochs == AUTO:
        passes, source = as_before("train.epochs", stopped, epochs, samples)
        train, sources["train.epochs"] = replace(train, epochs=passes), source
    return replace(recipe, train=train, sources=sources)


def as_before(key: str, run: Run | None, suited: Number, samples: int) -> tuple[Number, str]:
    """The value that a run began with, else the one that suits so many samples; and its source."""
    if run is not None and (known := documents.read_plan(run).values.get(key)) is not None:
        return known, f"default (auto: {run.id})"
    return suited, f"default (auto: {samples} sample{'s' * (samples != 1)})"


def run_to_follow(root: Path, recipe: Recipe) -> Run | None:
    """The newest run of the recipe's series where it was stopped and of the same strategy: it may be resumed."""
    newest = parents.unfinished(root, recipe.name)
    if newest is None or not newest.plan.is_file():
        return None
    return newest if documents.read_plan(newest).strategy == recipe.strategy else None
