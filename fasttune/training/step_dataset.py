"""The Trainer's data set: an item is the samples of one optimizer step, laid out in rows when the step is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.planning.strategy import Plan
from fasttune.training import distributed, packing
from fasttune.training.packing import Step


class StepDataset(torch.utils.data.Dataset[tuple[int, ...]]):
    """The indices of the samples of each optimizer step of an epoch. Set `epoch` (from 0) before it begins."""

    def __init__(self, examples: Sequence[Example], plan: Plan) -> None:
        self.examples = examples
        self.settings = plan.recipe.train
        self.can_share, self.can_pack = self.settings.shared_prefix, True
        self.has_dropout = plan.recipe.lora.dropout > 0  # a shared prefix would have one dropout mask for all samples
        self.epoch = 0

    def __len__(self) -> int:
        return batches.steps_per_epoch(len(self.examples), self.settings.samples_per_step)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        size, seed = self.settings.samples_per_step, self.settings.seed
        return batches.epoch_batches(len(self.examples), size, seed, self.epoch)[index]

    def tokens_of_steps(self, total_steps: int) -> list[int]:
        """How many tokens the first n steps of a training have, for n from 0 to `total_steps`; those of the samples
        themselves, whatever is shared."""
        size, seed, sums = self.settings.samples_per_step, self.settings.seed, [0]
        lengths = [len(example.tokens) for example in self.examples]
        for epoch in range(-(-total_steps // len(self))):
            for batch in batches.epoch_batches(len(lengths), size, seed, epoch):
                sums.append(sums[-1] + sum(lengths[index] for index in batch))
        return sums[: total_steps + 1]

    @property
    def shares(self) -> bool:
        """Whether rows of training share prefixes."""
        return self.can_share and not self.has_dropout

    def plan(self, samples: Sequence[int], budget: int) -> Step:
        """Lay a training step out in rows of at most `budget` tokens; the rows are those of this rank."""
        return self._plan(self.examples, samples, budget, self.shares)

    def plan_held_out(self, examples: Sequence[Example], budget: int) -> Step:
        """The same for held-out samples, which share prefixes whatever lora.dropout is: evaluation has no dropout."""
        return self._plan(examples, range(len(examples)), budget, self.can_share)

    def _plan(self, examples: Sequence[Example], samples: Sequence[int], budget: int, shares: bool) -> Step:
        rank, world_size = distributed.rank(), distributed.world_size()
        budget = budget if self.can_pack else packing.ONE_SAMPLE
        return packing.plan_step(examples, samples, budget, shared_prefix=shares, rank=rank, world_size=world_size)


def single_item(items: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Collate a batch of one item: the item."""
    (item,) = items
    return item
