"""The Trainer's data set: an item is the samples of one optimizer step, laid out in rows when it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.planning.strategy import Plan
from fasttune.training import device, distributed, packing
from fasttune.training.packing import Step


class StepDataset(torch.utils.data.Dataset[tuple[int, ...]]):
    """The sample indices of each optimizer step of an epoch; `epoch` is set at its beginning."""

    def __init__(self, examples: Sequence[Example], plan: Plan) -> None:
        self.examples = examples
        self.settings = plan.recipe.train
        self.can_share = self.settings.shared_prefix and device.shares_prefixes()
        self.has_dropout = plan.recipe.lora.dropout > 0  # in a shared prefix the mask would be the same for all samples
        self.epoch = 0

    def __len__(self) -> int:
        return batches.steps_per_epoch(len(self.examples), self.settings.batch_size)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return batches.epoch_batches(len(self.examples), self.settings.batch_size, self.settings.seed, self.epoch)[
            index
        ]

    @property
    def shares(self) -> bool:
        """Whether training rows share prefixes."""
        return self.can_share and not self.has_dropout

    def plan(self, samples: Sequence[int], budget: int) -> Step:
        """Lay a step's samples out in rows."""
        return self.plan_of_rank(self.examples, samples, budget, self.shares)

    def plan_held_out(self, examples: Sequence[Example], budget: int) -> Step:
        """Lay held-out samples out in rows; there is no dropout in evaluation."""
        return self.plan_of_rank(examples, range(len(examples)), budget, self.can_share)

    def plan_of_rank(self, examples: Sequence[Example], samples: Sequence[int], budget: int, shares: bool) -> Step:
        """A step with the rows of this rank."""
        rank, world_size = distributed.rank(), distributed.world_size()
        return packing.plan_step(examples, samples, budget, shared_prefix=shares, rank=rank, world_size=world_size)
