"""Whether the samples of now are those of an earlier training with some more behind them: a run keeps the fingerprint
and the number of its samples, and not the samples themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fasttune.console import FasttuneError
from fasttune.data.dataset import Dataset, Sample, fingerprint, replayed, split
from fasttune.recipe.schema import DataRecipe


@dataclass(frozen=True)
class Trained:
    """What a run keeps of its data: the fingerprint, how many samples were trained on and held out, and data.val."""

    fingerprint: str
    train: int
    held_out: int
    val: str | float

    @property
    def samples(self) -> int:
        """How many stood in its training files."""
        return self.train + (0 if isinstance(self.val, str) else self.held_out)


def added_since(then: Trained, dataset: Dataset, recipe: DataRecipe, seed: int) -> int | None:
    """How many samples stand behind those of then, which are unchanged; None where it can't be told, since some of them
    are changed, moved or gone."""
    known = trained_on(then, dataset, recipe, seed)
    return None if known is None else len(in_file_order(dataset, recipe)) - then.samples


def held_out_of_trained(then: Trained, dataset: Dataset, recipe: DataRecipe, seed: int) -> int | None:
    """How many of the samples that are held out now were trained on then: a share that is held out of more samples is
    another one. None where it can't be told."""
    known = trained_on(then, dataset, recipe, seed)
    if known is None:
        return None
    trained = {sample.id for sample in known}
    return sum(sample.id in trained for sample in dataset.held_out)


def trained_on(then: Trained, dataset: Dataset, recipe: DataRecipe, seed: int) -> Sequence[Sample] | None:
    """The samples of now that were trained on then; None where some of those of then are changed, moved or gone.

    The first samples of now, as many as there were, are held out and mixed as they were then: the same fingerprint
    means the same samples.
    """
    if isinstance(then.val, str) and then.val not in ("", recipe.val):
        return None  # another file was held out
    first = in_file_order(dataset, recipe)[: then.samples]
    try:
        train, held_out = split(first, then.val, seed) if isinstance(then.val, float) else (first, dataset.held_out)
    except FasttuneError:
        return None
    mixed_in, _too_few = replayed(train, recipe.replay, seed)
    same = fingerprint([*train, *mixed_in], held_out if then.val else ()) == then.fingerprint
    return train if same else None


def in_file_order(dataset: Dataset, recipe: DataRecipe) -> Sequence[Sample]:
    """The samples of data.train, as they stand in its files: those of a share that is held out among the others."""
    if isinstance(recipe.val, str):
        return dataset.train
    return sorted([*dataset.train, *dataset.held_out], key=lambda sample: place(sample, recipe.train))


def place(sample: Sample, files: Sequence[str]) -> tuple[int, int, int]:
    """The file, the line and the number in the line of a sample, by its id (`my.jsonl:17`, `my.json:1#3`)."""
    path, _colon, where = sample.id.rpartition(":")
    line, _hash, number = where.partition("#")
    return files.index(path), int(line), int(number or 0)
