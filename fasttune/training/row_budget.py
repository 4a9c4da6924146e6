"""How many tokens a row may hold, and what to do when memory ran out: arithmetic on bytes and tokens.

What this file does not know: torch, devices, models. model.py measures, trainer.py acts.

A step that does not fit is planned again in smaller rows (E3). What a row may hold from which moment on is written
down, so that a run that is resumed cuts every step as it was cut before (E2). A moment is the number of the step that
is being trained; half a step later is the evaluation after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fasttune.runs.documents import RowRecord, RowsFrom
from fasttune.training.packing import Row

GIB = 1024**3
BLOCK = 128  # rows are sized in blocks of Unsloth's shared-prefix kernel
LONGEST_ROW = 65536  # longer rows keep no device busier
MEASURED_ROW = 1024  # what a shorter row takes says more about what is loaded once than about rows
SMALL_ROW = 2048  # shorter rows leave a card idle and compute prefixes again and again
SMALLEST_ROW = 256

Recourse = Literal["smaller rows", "recompute", "none"]


@dataclass(frozen=True)
class Shape:
    """What decides the memory of a row: decoder layers, their widths, and bytes of a hidden state's value.

    `states` and `inner` are how many values of 4 bytes and of either width a layer keeps of a token, what it needs for
    a moment included.
    """

    layers: int
    hidden: int
    intermediate: int
    width: int
    states: int
    inner: int

    def layer(self) -> int:
        """Bytes that one decoder layer keeps of a token for its backward pass."""
        return (self.states * self.hidden + self.inner * self.intermediate) * 4

    def kept(self) -> int:
        """Bytes a token takes where every layer keeps all."""
        return self.layers * self.layer()

    def recomputed(self) -> int:
        """Bytes a token takes where layers keep their input only and one at a time is computed again."""
        return self.layers * self.hidden * self.width + self.layer()


def estimated_budget(free: int, shape: Shape, recomputes: bool | Literal["auto"]) -> int:
    """Tokens of a row before anything was measured: what half of the free memory holds.

    Where recomputation is left to us, rows that need none come first, unless they would be short.
    """
    kept = rounded(free / 2 / shape.kept())
    if recomputes is False or (recomputes == "auto" and kept >= SMALL_ROW):
        return kept
    return rounded(free / 2 / shape.recomputed())


def needs_recomputation(free: int, shape: Shape, rows: Sequence[Row]) -> bool:
    """Whether what the longest row keeps is too much for the free memory (somewhat more than half of it)."""
    return shape.kept() * longest(rows) > 0.6 * free


def measured_budget(free: int, tokens: int, taken: int) -> int:
    """Tokens of a row where one of `tokens` tokens took `taken` bytes and `free` bytes can be had.

    A fifth of the free memory, at least half a GiB, is left alone: the card of a desktop is shared with it, and memory
    is never handed out without gaps. What a row takes whatever its length counts as if it grew with it, which errs on
    the safe side.
    """
    usable = free - max(free // 5, GIB // 2)
    return rounded(usable * tokens / max(taken, 1))


def rounded(tokens: float) -> int:
    """Whole blocks within what makes sense."""
    return min(LONGEST_ROW, max(SMALLEST_ROW, int(tokens) // BLOCK * BLOCK))


def row_samples(row: Row) -> list[int]:
    """The samples a row computes."""
    return [member for group in row.groups for member in group.members]


def recourse(row: Row, *, may_recompute: bool) -> Recourse:
    """What to do about a row that did not fit.

    Halving comes first: it costs a prefix computed once more. Recomputation costs a third more time in every row from
    then on, but below SMALL_ROW tokens halving costs more than that.
    """
    several = len(row_samples(row)) > 1
    if several and (row.tokens > SMALL_ROW or not may_recompute):
        return "smaller rows"
    return "recompute" if may_recompute else "none"


@dataclass
class RowBudget:
    """Tokens a row may hold: as chosen, as measured from some moment on, and made smaller at others."""

    chosen: int
    cuts: list[tuple[float, int]] = field(default_factory=list)
    measured: tuple[float, int] | None = None

    def at(self, moment: float) -> int:
        """The tokens of a row at a moment; 0 is one sample a row."""
        known = self.measured[1] if self.measured and self.measured[0] <= moment else self.chosen
        return min([known, *(tokens for since, tokens in self.cuts if since <= moment)])

    @property
    def now(self) -> int:
        """The tokens of a row after all that has happened."""
        return self.at(math.inf)

    def cut(self, moment: float, tokens: int) -> None:
        """No row may hold more than this from now on."""
        self.cuts.append((moment, tokens))

    def record(self, asked: int | str, *, checkpointing: bool) -> RowRecord:
        """What provenance.json holds of it; `asked` is the recipe's tokens_per_row."""
        return RowRecord(
            tokens_per_row=self.now,
            rows_chosen=self.chosen,
            rows_measured=RowsFrom(*self.measured) if self.measured else None,
            rows_cut=tuple(RowsFrom(*cut) for cut in self.cuts),
            rows_asked=asked,
            gradient_checkpointing=checkpointing,
        )

    @classmethod
    def read(cls, record: RowRecord) -> RowBudget:
        """The budget of a run that is resumed, from its provenance.json."""
        measured = record.rows_measured
        return cls(
            record.rows_chosen or record.tokens_per_row,
            [(cut.step, cut.tokens_per_row) for cut in record.rows_cut],
            (measured.step, measured.tokens_per_row) if measured else None,
        )


def half(row: Row) -> int:
    """The tokens a row may hold after one like this did not fit: half of it."""
    return max(1, row.tokens // 2)


def longest(rows: Sequence[Row]) -> int:
    """Tokens of the longest row."""
    return max((row.tokens for row in rows), default=0)
