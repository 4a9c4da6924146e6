"""What every arm of a benchmark trains on: the recipe with fixed values, its samples, and the samples of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fasttune.bench.jobs import Job
from fasttune.data import batches
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.data.tokenize import Example
from fasttune.planning import auto_values
from fasttune.recipe.load import load_recipe, with_values
from fasttune.recipe.schema import MOST_STEPS, Recipe


def read_recipe(job: Job) -> tuple[Recipe, Dataset]:
    """The job's recipe with the benchmark's fixed values, and its data without held-out samples.

    Raises FasttuneError for mistakes in the recipe or in the data.
    """
    recipe = with_values(load_recipe(job.recipe, job.overrides), fixed_values(job.steps), "bench")
    dataset = replace(load_dataset(recipe.data, recipe.train.seed), held_out=())
    recipe = auto_values.resolved(recipe, dataset, parent=None, stopped=None)
    return auto_values.with_learning_rate(recipe, recipe.train.passes, len(dataset.train)), dataset


def fixed_values(steps: int) -> dict[str, Any]:
    """What every arm trains with, whatever the recipe says: so many whole steps, no evaluation, no checkpoint.

    The learning rate is constant from the first step, so that this step moves the weights and the later losses tell
    whether every arm moved them in the same direction.
    """
    return {
        "strategy": "fresh",
        "train.max_steps": steps,
        "train.lr_scheduler_type": "constant",
        "train.warmup_steps": 0.0,
        "train.logging_steps": 1,
        "train.save_steps": MOST_STEPS,
        "train.eval_steps": 0,
        "train.early_stopping_patience": 0,
        "train.until.loss": None,
        "train.until.token_accuracy": None,
        "train.report_to": ["none"],
        "export.gguf": [],
        "probe.questions": [],
    }


def step_samples(examples: Sequence[Example], recipe: Recipe, steps: int) -> list[tuple[int, ...]]:
    """The indices of each step's samples, over as many epochs as the steps take: those that fasttune trains on."""
    size, seed = recipe.train.samples_per_step, recipe.train.seed
    per_epoch = batches.steps_per_epoch(len(examples), size)
    return [
        batches.epoch_batches(len(examples), size, seed, step // per_epoch)[step % per_epoch] for step in range(steps)
    ]


def shorten_first_step(samples: int) -> None:
    """Cut the first step of this process to so many samples, for every engine: all take steps from `epoch_batches`.

    Where a whole step of stock Unsloth takes minutes, a few samples do what a warmup step is for: imports, memory and
    kernels.
    """
    whole = batches.epoch_batches

    def shortened(count: int, size: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
        first, *others = whole(count, size, seed, epoch)
        return (first if epoch else first[:samples], *others)

    batches.epoch_batches = shortened  # type: ignore[assignment]
