"""model.dtype, train.batch_size and train.epochs where they are "auto": what suits the processor, and the number of
samples.

A fixed default fits no data set of another size: 16 samples a step and 3 epochs are 3 steps of 10 samples. A run that
continues keeps its parent's batch_size and number type, and a resumed one all that it began with, also where it began
before there was "auto", or on another machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fasttune.data.dataset import Dataset
from fasttune.planning import number_type, parents
from fasttune.recipe.schema import ModelRecipe, Recipe
from fasttune.runs import documents
from fasttune.runs.store import Run

Value = TypeVar("Value")
AUTO = "auto"
LARGEST_BATCH = 16
STEPS_AN_EPOCH = 4  # at least, where there are so many samples


def batch_size(samples: int) -> int:
    """The largest power of two, up to LARGEST_BATCH, that gives an epoch STEPS_AN_EPOCH steps."""
    return next((size for size in (LARGEST_BATCH, 8, 4, 2) if samples >= size * STEPS_AN_EPOCH), 1)


def resolved(recipe: Recipe, dataset: Dataset, parent: Run | None, stopped: Run | None, epochs: float) -> Recipe:
    """The recipe with a value for each "auto"; `epochs` is the one for its samples, `stopped` the run that is
    resumed."""
    model, train, samples, sources = recipe.model, recipe.train, len(dataset.train), dict(recipe.sources)
    reason = f"{samples} sample{'s' * (samples != 1)}"
    if model.dtype == AUTO:
        model, sources["model.dtype"] = with_number_type(
            model, stopped or parent, sources.get("model.dtype", "default")
        )
    if train.batch_size == AUTO:
        size, source = as_before("train.batch_size", stopped or parent, batch_size(samples), reason)
        train, sources["train.batch_size"] = replace(train, batch_size=size), source
    if train.epochs == AUTO:
        passes, source = as_before("train.epochs", stopped, epochs, reason)
        train, sources["train.epochs"] = replace(train, epochs=passes), source
    return replace(recipe, model=model, train=train, sources=sources)


def with_number_type(model: ModelRecipe, run: Run | None, source: str) -> tuple[ModelRecipe, str]:
    """The model with the number type that a run began with, else the one that suits this machine; and its source, which
    is the given one where "auto" stays: 16 bits on a GPU, float32 on a CPU."""
    dtype, found = number_type.suited(model) if run is None else as_before("model.dtype", run, model.dtype, "")
    return replace(model, dtype=dtype), source if dtype == AUTO else found


def as_before(key: str, run: Run | None, suited: Value, reason: str) -> tuple[Value, str]:
    """The value that a run began with, else the one that suits for this reason; and its source."""
    if run is not None and (known := documents.read_plan(run).values.get(key)) is not None:
        return known, f"default (auto: {run.id})"
    return suited, f"default (auto: {reason})"


def run_to_follow(root: Path, recipe: Recipe) -> Run | None:
    """The newest run of the recipe's series where it was stopped and of the same strategy: it may be resumed."""
    newest = parents.unfinished(root, recipe.name)
    if newest is None or not newest.plan.is_file():
        return None
    return newest if documents.read_plan(newest).strategy == recipe.strategy else None
