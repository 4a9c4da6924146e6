"""The Trainer's data set: a step's samples by seed and epoch, rows that share prefixes where that is allowed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.training.step_dataset import StepDataset, single_item

EXAMPLES = [Example(f"x:{n}", (*range(100), 200 + n, 7, 8), ((101, 103),)) for n in range(9)]


def dataset(*, shared_prefix: bool = True, dropout: float = 0.0) -> StepDataset:
    """9 samples of 103 tokens that share 100, 4 a step."""
    train = SimpleNamespace(shared_prefix=shared_prefix, samples_per_step=4, seed=3)
    plan: Any = SimpleNamespace(recipe=SimpleNamespace(train=train, lora=SimpleNamespace(dropout=dropout)))
    return StepDataset(EXAMPLES, plan)


@pytest.mark.parametrize("epoch", [0, 1])
def test_items_are_the_steps_of_the_epoch_in_order(epoch: int) -> None:
    steps = dataset()
    steps.epoch = epoch
    loader = torch.utils.data.DataLoader(steps, batch_size=1, shuffle=False, collate_fn=single_item)
    assert tuple(loader) == batches.epoch_batches(9, 4, 3, epoch)
    assert len(steps) == 3 and [len(step) for step in loader] == [4, 4, 1]


@pytest.mark.parametrize(
    ("shared_prefix", "budget", "lengths"),
    [(True, 4096, [127]), (False, 4096, [927]), (True, 120, [118, 109]), (True, 0, [103] * 9)],
)
def test_evaluation_is_packed_as_training_is(shared_prefix: bool, budget: int, lengths: list[int]) -> None:
    steps = dataset(shared_prefix=shared_prefix, dropout=0.5)  # dropout does not matter in evaluation
    assert [row.tokens for row in steps.plan_held_out(EXAMPLES, budget).rows] == lengths
    assert not steps.plan_held_out([], budget).rows


@pytest.mark.parametrize(
    ("shared_prefix", "dropout", "shares"), [(True, 0.0, True), (False, 0.0, False), (True, 0.1, False)]
)
def test_training_shares_prefixes_without_dropout_only(shared_prefix: bool, dropout: float, shares: bool) -> None:
    steps = dataset(shared_prefix=shared_prefix, dropout=dropout)
    step = steps.plan(range(9), 4096)
    assert steps.shares is shares and (step.computed_tokens < step.tokens) is shares
    steps.can_share = False  # what the check of shared prefixes sets
    assert steps.plan(range(9), 4096).computed_tokens == step.tokens


def test_tokens_are_counted_step_by_step_over_all_epochs() -> None:
    """4, 4 and 1 of the samples a step; the sums do not depend on what is shared."""
    assert dataset().tokens_of_steps(5) == [0, 412, 824, 927, 1339, 1751]
