"""The self-check of shared prefixes on a card: the same samples once behind one prefix, and once each on its own.

Unsloth's kernel for shared prefixes was made for another task and is compiled for each card anew. Before the first
step its loss and LoRA gradients are compared with those of ordinary attention, on real samples and the real model;
where they differ by more than rounding, prefixes are not shared (E1 goes before speed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fasttune.data.tokenize import Example
from fasttune.training.packing import Group, Row

SAMPLES = 4
# Relative difference that rounding makes. Of 16 bit much remains in a gradient; a mask that is wrong by one token
# changes it by more (tests/test_sharing.py).
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class Difference:
    """How far two ways to compute the same samples are apart, relative to the second one."""

    loss: float
    gradient: float

    def within(self, tolerance: float) -> bool:
        """Whether both are rounding; not-a-number is none."""
        return self.loss <= tolerance and self.gradient <= tolerance


def pair(examples: Sequence[Example], rows: Sequence[Row]) -> tuple[list[Row], list[Row]] | None:
    """Some samples that share a prefix, in one row, and the same ones each in a row of its own; None where none
    share."""
    group = next((group for row in rows for group in row.groups if group.prefix), None)
    if group is None:
        return None
    members = group.members[:SAMPLES]
    sizes = [len(examples[i].tokens) for i in members]
    shared = Row((Group(group.prefix, members),), group.prefix + sum(size - group.prefix for size in sizes))
    return [shared], [Row((Group(0, (i,)),), size) for i, size in zip(members, sizes, strict=True)]


def difference(
    shared: tuple[torch.Tensor, Sequence[torch.Tensor]], plain: tuple[torch.Tensor, Sequence[torch.Tensor]]
) -> Difference:
    """The difference of two losses, and of two lists of gradients over all their values together."""
    (loss, gradients), (expected, others) = shared, plain
    apart = sum((a.double() - b.double()).square().sum().item() for a, b in zip(gradients, others, strict=True))
    whole = sum(b.double().square().sum().item() for b in others)
    return Difference(abs(loss.item() - expected.item()) / abs(expected.item()), (apart / whole) ** 0.5)
