"""The samples of each step: all of them once an epoch, in an order that seed and epoch alone decide."""

from __future__ import annotations

from collections import Counter

import pytest

from fasttune.data import batches
from fasttune.data.tokenize import Example


def test_samples_of_a_step_depend_on_seed_and_epoch_alone() -> None:
    first = batches.epoch_batches(50, 8, seed=1, epoch=0)
    assert first == batches.epoch_batches(50, 8, seed=1, epoch=0)
    assert first != batches.epoch_batches(50, 8, seed=1, epoch=1) != batches.epoch_batches(50, 8, seed=2, epoch=1)
    assert Counter(i for batch in first for i in batch) == Counter(range(50))
    assert [len(batch) for batch in first] == [8] * 6 + [2]
    assert batches.steps_per_epoch(50, 8) == 7


@pytest.mark.parametrize(("samples", "batch_size", "steps"), [(1, 16, 1), (16, 16, 1), (17, 16, 2), (0, 4, 0)])
def test_steps_per_epoch(samples: int, batch_size: int, steps: int) -> None:
    assert batches.steps_per_epoch(samples, batch_size) == steps
    assert len(batches.epoch_batches(samples, batch_size, seed=0, epoch=0)) == steps


def test_the_order_of_a_seed_never_changes() -> None:
    """A stopped run resumes in the middle of an epoch, maybe under a later version: this order is for ever."""
    assert batches.epoch_batches(7, 3, seed=3407, epoch=0) == ((4, 3, 1), (5, 0, 6), (2,))


def test_supervised_tokens() -> None:
    assert batches.supervised_tokens(Example("t:1", tuple(range(9)), ((1, 3), (5, 9)))) == 6
    assert batches.supervised_tokens(Example("t:1", (1, 2), ())) == 0
