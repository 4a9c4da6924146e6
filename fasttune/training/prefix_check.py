"""The check of shared prefixes on a GPU: the same samples computed once behind one prefix, and once each on its own.

Attention over packed rows (attention.py) calls kernels that differ from GPU to GPU. Before the first step its loss and
LoRA gradients are compared with those of Unsloth's attention to one sample a row, on real samples and the real model;
where they differ by more than rounding, prefixes are not shared (E1 goes before speed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.training import device, row_budget
from fasttune.training import model as models
from fasttune.training.packing import Group, Row

FIRST_SAMPLES = 64  # the training samples among which a shared prefix is looked for
SAMPLES = 4  # how many of those that share it are compared
# Relative difference that rounding makes. In 16 bit it is large in a gradient; a mask that is wrong by one token
# changes it by more (tests/training/test_prefix_check.py).
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}


class RowComputer(Protocol):
    """What the check needs of a trainer (trainer.StepTrainer)."""

    model: Any
    examples: Sequence[Example]

    def row_loss(self, examples: Sequence[Example], row: Row) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class Difference:
    """How far two computations of the same samples are apart, relative to the second one."""

    loss: float
    gradient: float

    def within(self, tolerance: float) -> bool:
        """Whether both are at most `tolerance`; false for not-a-number."""
        return self.loss <= tolerance and self.gradient <= tolerance


def first_samples(examples: Sequence[Example]) -> range:
    """The indices of the samples among which a shared prefix is looked for."""
    return range(min(len(examples), FIRST_SAMPLES))


def measure(trainer: RowComputer, rows: Sequence[Row]) -> Difference | None:
    """Compare some samples of these rows with their prefix shared and without, leaving no gradient behind.

    None where no row shares a prefix, or where memory runs out: the first step will report that.
    """
    pair = paired_rows(trainer.examples, rows)
    if pair is None:
        return None
    try:
        shared, plain = (loss_and_gradients(trainer, one) for one in pair)
    except (RuntimeError, MemoryError) as problem:
        if not device.is_out_of_memory(problem):
            raise
        return None
    finally:
        models.drop_gradients(trainer.model)
    return relative_difference(shared, plain)


def paired_rows(examples: Sequence[Example], rows: Sequence[Row]) -> tuple[list[Row], list[Row]] | None:
    """Samples of the first group with a shared prefix: in one row that shares it, and each in a row of its own. None
    where no row shares a prefix."""
    group = next((group for row in rows for group in row.groups if group.prefix), None)
    if group is None:
        return None
    members = group.members[:SAMPLES]
    sizes = [len(examples[i].tokens) for i in members]
    shared = Row((Group(group.prefix, members),), group.prefix + sum(size - group.prefix for size in sizes))
    return [shared], [Row((Group(0, (i,)),), size) for i, size in zip(members, sizes, strict=True)]


def loss_and_gradients(trainer: RowComputer, rows: Sequence[Row]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mean loss of the rows' samples (nats a supervised token), and its gradient for each LoRA matrix."""
    trainer.model.train()
    models.drop_gradients(trainer.model)
    samples = [i for row in rows for i in row_budget.row_samples(row)]
    supervised = sum(batches.supervised_tokens(trainer.examples[i]) for i in samples)
    losses = []
    for row in rows:
        loss = trainer.row_loss(trainer.examples, row)[0] / supervised
        loss.backward()
        models.collect_gradients(trainer.model)
        losses.append(loss.detach())
    gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    return sum(losses, torch.zeros_like(losses[0])), gradients


def relative_difference(
    shared: tuple[torch.Tensor, Sequence[torch.Tensor]], plain: tuple[torch.Tensor, Sequence[torch.Tensor]]
) -> Difference:
    """|loss - loss'| / |loss'| of two losses, and |g - g'| / |g'| (2-norms over all gradients' values together)."""
    (loss, gradients), (expected_loss, expected) = shared, plain
    squares = sum((a.double() - b.double()).square().sum().item() for a, b in zip(gradients, expected, strict=True))
    norm = sum(b.double().square().sum().item() for b in expected)
    return Difference(
        abs(loss.item() - expected_loss.item()) / abs(expected_loss.item()), float((squares / norm) ** 0.5)
    )
