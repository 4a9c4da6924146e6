"""The tensor functions that know how a row is packed: collate and loss. Pure torch, runs on every device.

    row of two groups       [P P P | a a | b b b | c c c c]      groups: (prefix 3: a, b), (prefix 0: c)
    position_ids             0 1 2   3 4   3 4 5   0 1 2 3
    who attends to what      P: itself, causally   a, b: P and itself, causally   c: itself, causally

Attention over such a row is in attention.py, the cross-entropy of its supervised tokens in cross_entropy.py. This file
does not know Unsloth, PEFT or chat templates.

Shapes: T tokens of a row, N supervised ones, C width of the model, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fasttune.data.tokenize import Example
from fasttune.training import attention
from fasttune.training.attention import Layout
from fasttune.training.cross_entropy import SupervisedCrossEntropy, pad_rows
from fasttune.training.packing import Group, Row


@dataclass(frozen=True)
class Batch:
    """One row as tensors.

    input_ids, position_ids: [1, T]. label_positions: [N], the positions whose hidden state predicts a supervised token
    (its own position less 1). labels: [N], the token ids to predict. layout: how it is packed, for the attention.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    label_positions: torch.Tensor
    labels: torch.Tensor
    layout: Layout

    def to(self, device: torch.device) -> Batch:
        """The same row on a device, by one copy."""
        own = [self.input_ids, self.position_ids, self.label_positions, self.labels]
        ids, positions, label_positions, labels, *starts = move_together([*own, *self.layout.tensors()], device)
        return Batch(ids, positions, label_positions, labels, self.layout.with_tensors(starts))


def move_together(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tensors of the host on a device, by one copy; those of eight bytes a value come first."""
    if device.type == "cpu":
        return list(tensors)
    whole = to_device(torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors]), device)
    parts = whole.split([tensor.nbytes for tensor in tensors])
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device. For a GPU it is pinned first: a copy from pageable memory would wait until
    the GPU has done all that was queued before."""
    return (pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in pinned memory, or itself where that is refused. WSL2 has little of it, and says "out of memory": of
    the computer's, which smaller rows would not mend (E3)."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor


def collate(row: Row, examples: Sequence[Example]) -> Batch:
    """Lay a planned row out as tensors on the host, in the order that attention.layout asks for."""
    shared, alone = [group for group in row.groups if group.prefix], [group for group in row.groups if not group.prefix]
    tokens: list[int] = []
    positions: list[int] = []
    label_positions: list[int] = []
    labels: list[int] = []
    for sample, first, end in [*prefixes(shared), *suffixes(examples, shared), *suffixes(examples, alone)]:
        example, shift = examples[sample], len(tokens) - first  # place in the row = index in the sample + shift
        tokens += example.tokens[first:end]
        positions += range(first, end)
        for start, stop in example.supervised:
            if first < start < end:  # a prefix holds no supervised token
                label_positions += range(start - 1 + shift, stop - 1 + shift)
                labels += example.tokens[start:stop]
    lengths = [(group.prefix, [len(examples[i].tokens) - group.prefix for i in group.members]) for group in shared]
    return Batch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        label_positions=torch.tensor(label_positions),
        labels=torch.tensor(labels),
        layout=attention.layout(lengths, [len(examples[i].tokens) for group in alone for i in group.members]),
    )


def prefixes(groups: Sequence[Group]) -> list[tuple[int, int, int]]:
    """The prefix of each group as (sample, 0, end)."""
    return [(group.members[0], 0, group.prefix) for group in groups]


def suffixes(examples: Sequence[Example], groups: Sequence[Group]) -> list[tuple[int, int, int]]:
    """The members of each group behind its prefix, as (sample, first token, end)."""
    return [(i, group.prefix, len(examples[i].tokens)) for group in groups for i in group.members]


def pad_row(batch: Batch, multiple: int) -> Batch:
    """The row, lengthened to a multiple of `multiple` tokens by some that hold no supervised token and that no sample
    sees."""
    missing = -batch.input_ids.shape[1] % multiple
    if not missing:
        return batch
    positions = torch.arange(missing, device=batch.position_ids.device)
    return replace(
        batch,
        input_ids=pad_rows(batch.input_ids[0], multiple)[None],
        position_ids=torch.cat((batch.position_ids, positions[None]), dim=1),
        layout=batch.layout.padded(missing),
    )


def loss(hidden: torch.Tensor, head: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of a row's supervised tokens, and how many of them were ranked first.

    hidden [1, T, C] are the states after the final norm, head [V, C] the frozen output embedding. Divide by the step's
    supervised tokens before backward: then rows add up to the step's mean, however it was cut (E1).
    """
    states = hidden[0].index_select(0, batch.label_positions)
    return SupervisedCrossEntropy.apply(states, head, batch.labels)
