"""The check of packed rows on a GPU: the same samples computed in one row, and once each on its own.

Attention over packed rows (attention.py) calls kernels that differ from GPU to GPU. Before the first step its loss and
LoRA gradients are compared with those of Unsloth's attention to one sample a row, on real samples and the real model;
where they differ by more than rounding, prefixes are not shared, and where samples that share nothing differ too, a row
holds one sample (E1 goes before speed).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fasttune.console import Finding, _, show_findings
from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.runs import documents
from fasttune.runs.documents import PrefixDifference
from fasttune.training import device, distributed, loss_scale, packing, row_budget
from fasttune.training import model as models
from fasttune.training.packing import Group, Row

if TYPE_CHECKING:
    from fasttune.training.trainer import StepTrainer

FIRST_SAMPLES = 64  # the training samples among which those to compare are looked for
SAMPLES = 4  # how many are compared
# Relative difference that rounding makes. In 16 bit it is large in a gradient; a mask that is wrong by one token
# changes it by more (tests/training/test_prefix_check.py).
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}

# Of the loss, as training scales it in float16 (loss_scale.py), where small gradients have steps of 6e-8; a smaller one
# where they overflow.
SCALES = {torch.float16: (loss_scale.FIRST_SCALE, 2.0**6, loss_scale.SMALLEST_SCALE)}

Pair = tuple[list[Row], list[Row]]  # the same samples in one row, and each in a row of its own


@dataclass(frozen=True)
class Difference:
    """How far two computations of the same samples are apart, relative to the second one."""

    loss: float
    gradient: float

    def within(self, tolerance: float) -> bool:
        """Whether both are at most `tolerance`; false for not-a-number."""
        return self.loss <= tolerance and self.gradient <= tolerance


def switch_off_what_differs(trainer: StepTrainer) -> None:
    """Before the first step on a GPU: stop sharing prefixes, and packing, where that changes loss or gradients (E1)."""
    if not device.needs_prefix_check():
        return
    steps, first = trainer.steps, trainer.examples[:FIRST_SAMPLES]
    if steps.can_share and (figures := difference(trainer, shared_pair(first), "sharing_check")):
        steps.can_share = False
        what = _("shared prefixes give another loss or gradient than plain attention here; they are switched off")
        show_findings([Finding("sharing-differs", "warning", "train.shared_prefix", what, figures)])
    if figures := difference(trainer, packed_pair(first), "packing_check"):
        steps.can_pack = False
        what = _("packed rows give another loss or gradient than plain attention here; each row holds one sample now")
        show_findings([Finding("packing-differs", "warning", "train.tokens_per_row", what, figures)])


def difference(trainer: StepTrainer, pair: Pair | None, record: str) -> str:
    """How far the two are apart, in words, where that is more than rounding in any rank; else empty. The figures are
    kept in provenance.json under `record`."""
    found = measure(trainer, pair) if pair else None
    if pair and found is None:
        what = _("packed rows were not compared with plain attention here: memory ran out, or there was no gradient")
        show_findings([Finding("rows-unchecked", "warning", "train.tokens_per_row", what)])
    if trainer.is_rank_zero:
        kept = PrefixDifference(found.loss, found.gradient) if found else None
        documents.update_provenance(trainer.run, **{record: kept})
    tolerance = TOLERANCE[device.compute_dtype(trainer.plan.recipe.model)]
    if not distributed.any_rank(found is not None and not found.within(tolerance)):
        return ""
    if found is None:
        return _("another process found it")
    return _("relative difference: loss {loss:.1e}, gradient {gradient:.1e}", loss=found.loss, gradient=found.gradient)


def measure(trainer: StepTrainer, pair: Pair) -> Difference | None:
    """Compare the rows of a pair, leaving no gradient behind. None where memory runs out, or the gradient of plain
    attention is 0 or not finite: the first step will report that."""
    dtype = device.compute_dtype(trainer.plan.recipe.model)
    try:
        with without_dropout(trainer.model):
            for scale in SCALES.get(dtype, (1.0,)):
                packed, plain = (loss_and_gradients(trainer, rows, scale) for rows in pair)
                if is_finite_and_not_zero(packed[1]) and is_finite_and_not_zero(plain[1]):
                    break
            return relative_difference(packed, plain) if is_finite_and_not_zero(plain[1]) else None
    except (RuntimeError, MemoryError) as problem:
        if not device.is_out_of_memory(problem):
            raise
    finally:
        models.drop_gradients(trainer.model)
    return None


@contextlib.contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """No dropout in the block: it would draw other masks for each layout."""
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    before = [module.p for module in dropouts]
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(dropouts, before, strict=True):
            module.p = p


def shared_pair(examples: Sequence[Example]) -> Pair | None:
    """The shortest samples of one group with a shared prefix, of the group where these are shortest: in one row that
    shares it, and each in a row of its own. None where no row shares a prefix."""
    rows = packing.plan_step(examples, range(len(examples)), row_budget.LONGEST_ROW).rows
    groups = [Group(group.prefix, shortest(examples, group.members)) for row in rows for group in row.groups]
    shared = [Row((group,), packing.group_tokens(examples, group)) for group in groups if group.prefix]
    if not shared:
        return None
    row = min(shared, key=lambda row: row.tokens)
    return [row], alone(examples, row.groups[0].members)


def packed_pair(examples: Sequence[Example]) -> Pair | None:
    """The shortest samples: in one row that shares nothing, and each in a row of its own. None for a single sample."""
    members = shortest(examples, range(len(examples)))
    if len(members) < 2:
        return None
    single = alone(examples, members)
    return [Row(tuple(group for row in single for group in row.groups), sum(row.tokens for row in single))], single


def shortest(examples: Sequence[Example], members: Iterable[int]) -> tuple[int, ...]:
    """SAMPLES of these, those with the fewest tokens."""
    return tuple(sorted(members, key=lambda i: len(examples[i].tokens))[:SAMPLES])


def alone(examples: Sequence[Example], members: Sequence[int]) -> list[Row]:
    """Each of these samples in a row of its own."""
    return [Row((Group(0, (i,)),), len(examples[i].tokens)) for i in members]


def loss_and_gradients(
    trainer: StepTrainer, rows: Sequence[Row], scale: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mean loss of the rows' samples (nats a supervised token), and `scale` times its gradient for each LoRA matrix."""
    trainer.model.train()
    models.drop_gradients(trainer.model)
    samples = [i for row in rows for i in row_budget.row_samples(row)]
    supervised = sum(batches.supervised_tokens(trainer.examples[i]) for i in samples)
    losses = []
    for row in rows:
        loss = trainer.row_loss(trainer.examples, row)[0] / supervised
        (loss * scale).backward()
        models.collect_gradients(trainer.model)
        losses.append(loss.detach())
    gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    return sum(losses, torch.zeros_like(losses[0])), gradients


def is_finite_and_not_zero(gradients: Sequence[torch.Tensor]) -> bool:
    """Whether the norm of all gradients together can be divided by."""
    return bool(gradients) and 0 < torch.stack(torch._foreach_norm(gradients)).norm().item() < math.inf


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
