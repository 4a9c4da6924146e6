"""How many tokens a row may hold, and what to do when memory ran out: arithmetic on bytes and tokens.

This file does not know torch, devices or models: device.py and model.py measure, trainer.py acts.

A step that runs out of memory is planned again in smaller rows (E3). The budget and the moments at which it changed are
recorded, so that a resumed run lays every step out as before (E2). A moment is the number of the step that is being
trained (from 1); half a step later is the evaluation after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fasttune.runs.documents import RowRecord, RowsFrom
from fasttune.training.packing import Row

GIB = 1024**3
BLOCK = 128  # budgets are multiples of it
LONGEST_ROW = 65536  # longer rows are no faster on any device
MEASURED_ROW = 1024  # what a shorter row takes is mostly what is loaded once, not what grows with the row
SMALL_ROW = 2048  # shorter rows leave a GPU idle and compute a shared prefix many times
SMALLEST_ROW = 256

Remedy = Literal["smaller rows", "gradient checkpointing", "none"]


@dataclass(frozen=True)
class MemoryShape:
    """What decides the activation memory of a row: the number of decoder layers, the widths of their hidden states and
    of their feed-forward (`intermediate`), and the bytes of one value of a hidden state (`value_bytes`).

    For each token a layer keeps `states` vectors of the hidden width and `inner` ones of the feed-forward's, counted
    in float32; the layer that is being computed backward holds `working_states` and `working_inner` ones more.
    """

    layers: int
    hidden: int
    intermediate: int
    value_bytes: int
    states: float
    inner: float
    working_states: float = 0
    working_inner: float = 0

    def layer_bytes(self) -> float:
        """Bytes a token that one decoder layer keeps for its backward pass."""
        return (self.states * self.hidden + self.inner * self.intermediate) * 4

    def working_bytes(self) -> float:
        """Bytes a token that the layer at work holds beside what it has kept."""
        return (self.working_states * self.hidden + self.working_inner * self.intermediate) * 4

    def token_bytes(self) -> float:
        """Bytes a token without gradient checkpointing: every layer keeps all."""
        return self.layers * self.layer_bytes() + self.working_bytes()

    def input_bytes(self) -> int:
        """Bytes a token of the inputs of all layers."""
        return self.layers * self.hidden * self.value_bytes

    def checkpointed_token_bytes(self) -> float:
        """Bytes a token with gradient checkpointing: every layer keeps its input, one at a time keeps all."""
        return self.input_bytes() + self.layer_bytes() + self.working_bytes()


def estimated_budget(free: int, shape: MemoryShape, gradient_checkpointing: bool | Literal["auto"]) -> int:
    """Tokens of a row before anything was measured: those whose activations take half of `free` bytes.

    With "auto", rows without gradient checkpointing are preferred unless they would be shorter than SMALL_ROW.
    """
    budget = round_to_blocks(free / 2 / shape.token_bytes())
    if gradient_checkpointing is False or (gradient_checkpointing == "auto" and budget >= SMALL_ROW):
        return budget
    return round_to_blocks(free / 2 / shape.checkpointed_token_bytes())


def needs_gradient_checkpointing(free: int, shape: MemoryShape, rows: Sequence[Row]) -> bool:
    """Whether the activations of the longest row would take more than 0.6 of `free` bytes (the estimated budget plans
    with 0.5)."""
    return shape.token_bytes() * longest_row(rows) > 0.6 * free


def measured_budget(free: int, tokens: int, taken: float) -> int:
    """usable x tokens / taken: a row of `tokens` tokens took `taken` bytes, and usable = free - max(free / 5, GiB / 2).

    The reserve is for a desktop that uses the same GPU, and for fragmentation. The part of `taken` that does not
    depend on the row's length counts as if it did, which makes the budget smaller, never larger.
    """
    usable = free - max(free // 5, GIB // 2)
    return round_to_blocks(usable * tokens / max(taken, 1))


def budget_without_checkpointing(free: int, tokens: int, taken: int, shape: MemoryShape) -> int | None:
    """The measured budget without gradient checkpointing, where a row of `tokens` tokens took `taken` of `free` bytes
    with it and none is needed after all: the row itself would fit, or rows of SMALL_ROW tokens. Else None.

    What it would take is as much more as the shape says; the part of `taken` that is no activation counts as if it
    grew too, so that the budget is too small rather than too large.
    """
    budget = measured_budget(free, tokens, taken * shape.token_bytes() / shape.checkpointed_token_bytes())
    return budget if budget >= min(SMALL_ROW, math.ceil(tokens / BLOCK) * BLOCK) else None


def round_to_blocks(tokens: float) -> int:
    """`tokens` rounded down to a multiple of BLOCK, within SMALLEST_ROW and LONGEST_ROW."""
    return min(LONGEST_ROW, max(SMALLEST_ROW, int(tokens) // BLOCK * BLOCK))


def row_samples(row: Row) -> list[int]:
    """The indices of the samples that a row computes."""
    return [member for group in row.groups for member in group.members]


def choose_remedy(row: Row, *, may_checkpoint: bool) -> Remedy:
    """What to do about a row that ran out of memory; `may_checkpoint`: gradient checkpointing is off and may be used.

    Halving comes first: it costs one more computation of a prefix. Gradient checkpointing costs a third more time in
    every later row, but below SMALL_ROW tokens halving costs more than that. "none" where a single sample is left.
    """
    several = len(row_samples(row)) > 1
    if several and (row.tokens > SMALL_ROW or not may_checkpoint):
        return "smaller rows"
    return "gradient checkpointing" if may_checkpoint else "none"


@dataclass
class RowBudget:
    """The most tokens of a row: `chosen` at the start, `measured` as (moment, tokens) from step 2 on, and `cuts` of the
    same form where memory ran out."""

    chosen: int
    cuts: list[tuple[float, int]] = field(default_factory=list)
    measured: tuple[float, int] | None = None

    def at(self, moment: float) -> int:
        """The most tokens of a row at a moment; 0 is one sample a row."""
        known = self.measured[1] if self.measured and self.measured[0] <= moment else self.chosen
        return min([known, *(tokens for since, tokens in self.cuts if since <= moment)])

    @property
    def now(self) -> int:
        """The most tokens of a row after all changes."""
        return self.at(math.inf)

    def cut(self, moment: float, tokens: int) -> None:
        """Let no row hold more than `tokens` from a moment on."""
        self.cuts.append((moment, tokens))

    def record(self, requested: int | str, *, checkpointing: bool) -> RowRecord:
        """The budget as provenance.json holds it; `requested` is the recipe's tokens_per_row."""
        return RowRecord(
            tokens_per_row=self.now,
            rows_chosen=self.chosen,
            rows_measured=RowsFrom(*self.measured) if self.measured else None,
            rows_cut=tuple(RowsFrom(*cut) for cut in self.cuts),
            rows_asked=requested,
            gradient_checkpointing=checkpointing,
        )

    @classmethod
    def read(cls, record: RowRecord) -> RowBudget:
        """The budget that a run's provenance.json holds."""
        measured = record.rows_measured
        return cls(
            record.rows_chosen or record.tokens_per_row,
            [(cut.step, cut.tokens_per_row) for cut in record.rows_cut],
            (measured.step, measured.tokens_per_row) if measured else None,
        )


def halved(row: Row) -> int:
    """The budget after this row ran out of memory: half of its tokens."""
    return max(1, row.tokens // 2)


def longest_row(rows: Sequence[Row]) -> int:
    """Tokens of the longest row, 0 where there is none."""
    return max((row.tokens for row in rows), default=0)
