"""Out of memory in a row: recognized, named by its first sample, and raised as an exception of its own, so that the
trainer can plan the step again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttune.console import COMMA, FasttuneError, _, error
from fasttune.data.tokenize import Example
from fasttune.recipe.schema import ModelRecipe, Recipe
from fasttune.training import device, memory
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


@contextlib.contextmanager
def base_too_large(base: Path, recipe: ModelRecipe, *, in_memory: bool = False) -> Iterator[None]:
    """Raises FasttuneError where the base in a local folder needs more memory than is free, before the block that loads
    it is entered, and where memory runs out in the block all the same. `in_memory`: it is there already, and what it
    takes counts as free."""
    needed = memory.weight_bytes(memory.read_size(base), recipe, device.device_type())
    free = device.free_memory() + (needed if in_memory else 0)
    if needed > free:
        raise base_error(recipe, needed, free)
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as problem:
        if not device.is_out_of_memory(problem):
            raise
        raise base_error(recipe, needed, free) from None


def base_error(recipe: ModelRecipe, needed: int, free: int) -> FasttuneError:
    """The error for a base that does not fit, with the remedies that are not in use yet."""
    is_gpu = device.device_type() == "cuda"
    remedies = [
        *(['dtype = "bfloat16"'] if str(device.compute_dtype(recipe)) == "torch.float32" else []),
        *(["load_in_4bit = true"] if is_gpu and not recipe.load_in_4bit else []),
        _("a smaller base"),
        _("fewer other programs in that memory"),
    ]
    what = _("{base} does not fit into memory: it needs about {needed:.1f} GiB, and {free:.1f} GiB were free",
             base=recipe.base, needed=needed / GIB, free=free / GIB)  # fmt: skip
    why = "" if needed > free else _("a limit on this process (`ulimit -v`) or another program took the rest")
    fix = _("what helps: {ways}", ways=_(COMMA).join(remedies))
    return error("base-too-large", what, where="model.base", why=why, fix=fix)


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
        fix=_("what helps: {ways}", ways=_(COMMA).join(remedies)),
    )
