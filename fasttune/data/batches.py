"""Which samples an optimizer step holds; that depends on seed and epoch alone (invariant E1)."""

from __future__ import annotations

import functools
import math
import random

from fasttune.data.tokenize import Example


def supervised_tokens(example: Example) -> int:
    """The number of an example's tokens that the loss is taken on."""
    return sum(end - start for start, end in example.supervised)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps of one epoch: ceil(samples / batch_size); the last one may hold fewer samples."""
    return math.ceil(samples / batch_size)


@functools.lru_cache(maxsize=2)
def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    """The indices of the samples of each step of an epoch (from 0), shuffled by seed and epoch alone."""
    order = list(range(samples))
    random.Random(f"fasttune {seed} {epoch}").shuffle(order)
    return tuple(tuple(order[i : i + batch_size]) for i in range(0, samples, batch_size))
