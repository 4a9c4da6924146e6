"""model.dtype, train.batch_size, train.epochs and train.learning_rate where they are "auto": what suits the processor,
the number of samples, and the epochs.

A fixed default fits no data set of another size: 16 samples a step and 3 epochs are 3 steps of 10 samples, and 2e-4
moves little in one epoch. docs/defaults.md has the measurements. A run that continues keeps its parent's number type,
batch_size and learning_rate, and a resumed one all that it began with, also where it began before there was "auto", or
on another machine.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fasttune.data.dataset import Dataset
from fasttune.planning import number_type, parents
from fasttune.recipe.schema import ModelRecipe, Recipe
from fasttune.runs import documents
from fasttune.runs.bands import band_epochs, suiting_learning_rate
from fasttune.runs.store import Run

Value = TypeVar("Value")
AUTO = "auto"
LARGEST_BATCH = 16
LEAST_STEPS = 30  # of a whole training, where there are so many samples: fewer hardly move a base


def batch_size(samples: int) -> int:
    """The largest power of two, up to LARGEST_BATCH, with which the epochs that suit so many samples have LEAST_STEPS
    steps."""
    epochs = band_epochs(samples)
    return next((size for size in (LARGEST_BATCH, 8, 4, 2) if epochs * math.ceil(samples / size) >= LEAST_STEPS), 1)


def resolved(recipe: Recipe, dataset: Dataset, parent: Run | None, stopped: Run | None) -> Recipe:
    """The recipe with values for number type, batch_size and epochs; `stopped` is the run that is resumed."""
    model, train, samples, sources = recipe.model, recipe.train, len(dataset.train), dict(recipe.sources)
    if model.dtype == AUTO:
        model, sources["model.dtype"] = with_number_type(
            model, stopped or parent, sources.get("model.dtype", "default")
        )
    if train.batch_size == AUTO:
        size, source = as_before("train.batch_size", stopped or parent, batch_size(samples), counted(samples))
        train, sources["train.batch_size"] = replace(train, batch_size=size), source
    if train.epochs == AUTO:
        passes, source = as_before("train.epochs", stopped, band_epochs(samples), counted(samples))
        train, sources["train.epochs"] = replace(train, epochs=passes), source
    return replace(recipe, model=model, train=train, sources=sources)


def with_learning_rate(
    recipe: Recipe, epochs: float, samples: int, parent: Run | None = None, stopped: Run | None = None
) -> Recipe:
    """The recipe with a number for learning_rate; `epochs` are those that this run trains."""
    if recipe.train.learning_rate != AUTO:
        return recipe
    suited = suiting_learning_rate(epochs, samples, recipe.lora.alpha, recipe.model.base)
    reason = f"{epochs:.3g} epoch{'s' * (epochs != 1)} of {counted(samples)}, alpha {recipe.lora.alpha}"
    rate, source = as_before("train.learning_rate", stopped or parent, suited, reason)
    train, sources = replace(recipe.train, learning_rate=rate), {**recipe.sources, "train.learning_rate": source}
    return replace(recipe, train=train, sources=sources)


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


def counted(samples: int) -> str:
    """`1 sample`, `17 samples`."""
    return f"{samples} sample{'s' * (samples != 1)}"


def run_to_follow(root: Path, recipe: Recipe) -> Run | None:
    """The newest run of the recipe's series where it was stopped and of the same strategy: it may be resumed."""
    newest = parents.unfinished(root, recipe.name)
    if newest is None or not newest.plan.is_file():
        return None
    return newest if documents.read_plan(newest).strategy == recipe.strategy else None
