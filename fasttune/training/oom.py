"""Out of memory in a row: recognized, named by its first sample, and raised as an exception of its own, so that the
trainer can plan the step again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fasttune.console import FasttuneError, _, error
from fasttune.data.tokenize import Example
from fasttune.recipe.schema import Recipe
from fasttune.training import device
from fasttune.training.packing import Row
from fasttune.training.row_budget import GIB, row_samples


@dataclass(frozen=True)
class FailedRow:
    """A row that ran out of memory; `sample` is the id (`file:line`) of its first sample."""

    row: Row
    sample: str


class RowOutOfMemory(Exception):
    """Memory ran out while a row was computed."""

    def __init__(self, failed: FailedRow) -> None:
        super().__init__(failed.sample)
        self.failed = failed


@contextlib.contextmanager
def raise_on_oom(row: Row, examples: Sequence[Example]) -> Iterator[None]:
    """Raises RowOutOfMemory where memory runs out in the block; other errors pass through."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not device.is_out_of_memory(problem):
            raise
        raise RowOutOfMemory(FailedRow(row, examples[row_samples(row)[0]].sample_id)) from None


def sample_too_large(
    failed: FailedRow, recipe: Recipe, gradient_checkpointing: bool, has_checkpoint: bool
) -> FasttuneError:
    """The error for a single sample that does not fit into memory, with the remedies that are not in use yet."""
    can_quantize = device.device_type() == "cuda" and not recipe.model.load_in_4bit
    remedies = [
        _("a shorter sample"),
        *([] if gradient_checkpointing else ["train.gradient_checkpointing = true"]),
        *(["model.load_in_4bit = true"] if can_quantize else []),
        _("a smaller lora.r"),
        _("fewer other programs in that memory"),
    ]
    return error(
        "sample-too-large",
        _(
            "a single sample of {tokens} tokens does not fit into memory ({free:.1f} GiB are free without it)",
            tokens=failed.row.tokens,
            free=device.free_memory() / GIB,
        ),
        where=failed.sample,
        why=_("the newest checkpoint is kept") if has_checkpoint else "",
        fix=_("what helps: {ways}", ways=", ".join(remedies)),
    )
