"""Out of memory in a row: recognised, named by its first sample, and handed to whoever plans the step again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fasttune.data.tokenize import Example
from fasttune.training import device
from fasttune.training.packing import Row
from fasttune.training.row_budget import row_samples


@dataclass(frozen=True)
class FailedRow:
    """A row that memory ran out in; `sample` is the id of its first sample."""

    row: Row
    sample: str


class RowOutOfMemory(Exception):
    """Memory ran out while a row was computed."""

    def __init__(self, failed: FailedRow) -> None:
        super().__init__(failed.sample)
        self.failed = failed


@contextlib.contextmanager
def raise_on_oom(row: Row, examples: Sequence[Example]) -> Iterator[None]:
    """Raises RowOutOfMemory where memory runs out in the block; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not device.is_out_of_memory(problem):
            raise
        raise RowOutOfMemory(FailedRow(row, examples[row_samples(row)[0]].sample_id)) from None
