"""What every arm trains on: the same samples a step, and so many steps whatever the recipe says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from conftest import REPOSITORY

from fasttune.bench import workload
from fasttune.bench.jobs import Job
from fasttune.data import batches
from fasttune.data.tokenize import Example


def job(**changes: object) -> Job:
    """Three steps of the quick start."""
    start = Job("plain", str(REPOSITORY / "recipes/quickstart.toml"), (), "", steps=3, started=0.0)
    return dataclasses.replace(start, **changes)  # type: ignore[arg-type]


def test_a_benchmark_neither_evaluates_nor_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipe, dataset = workload.read_recipe(job(overrides=("train.eval_steps=1", "train.learning_rate=0.5")))
    assert (recipe.train.max_steps, recipe.train.eval_steps, recipe.train.learning_rate) == (3, 0, 0.5)
    assert recipe.export.gguf == () and recipe.probe.questions == ()
    assert dataset.train and not dataset.held_out


def test_steps_go_through_epochs_as_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipe, _dataset = workload.read_recipe(job(overrides=("train.batch_size=4",)))
    examples = [Example(f"x:{n}", (1, 2), ((1, 2),)) for n in range(6)]
    steps = workload.step_samples(examples, recipe, 3)
    assert steps == [
        *batches.epoch_batches(6, 4, recipe.train.seed, 0),
        batches.epoch_batches(6, 4, recipe.train.seed, 1)[0],
    ]


def test_the_first_step_can_be_shortened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = [batches.epoch_batches(8, 4, 1, epoch) for epoch in (0, 1)]
    monkeypatch.setattr(batches, "epoch_batches", batches.epoch_batches)  # put back when the test ends
    workload.shorten_first_step(2)
    assert batches.epoch_batches(8, 4, 1, 0) == (whole[0][0][:2], whole[0][1])
    assert batches.epoch_batches(8, 4, 1, 1) == whole[1]
