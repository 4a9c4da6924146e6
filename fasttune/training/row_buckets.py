"""Rows padded to a bucket, so that rows of different lengths are computed by the same sequence of kernels
(cuda_graphs.py). Tensors of the host only.

    a row              [P P P | a a | b b b | c c]              groups: (prefix 3: a, b), alone: c
    padded             [P P P . | a a | b b b . . | c c . .]    one prefix group more, (prefix 1: 2), and 2 alone

The padding is laid out as samples are: as prefix groups behind those of the row, whose suffixes attend to no prefix but
their own, and as samples alone. No token of the row attends to it, and it holds no supervised token, so it contributes
exactly nothing to loss and gradients. A kernel's sequence depends on a bucket's sizes alone: each of the three parts of
the row and the number of its segments and of its groups are rounded up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from fasttune.training import attention
from fasttune.training.attention import Layout
from fasttune.training.attention_kernels import Segments
from fasttune.training.engine import Batch

SEGMENTS = 16  # the number of segments is a multiple of it
# Lengths up to the first number are multiples of the second: at most 6 % of a long row is padding.
MULTIPLES = ((1024, 64), (2048, 128), (4096, 256))
LONGEST = 512


@dataclass(frozen=True)
class Bucket:
    """The sizes of a padded row: the tokens of the prefixes, of their suffixes and of the samples alone, the segments
    that attend to themselves and the groups (0: nothing is shared), and the most tokens that a segment may have."""

    prefixes: int
    suffixes: int
    alone: int
    segments: int
    groups: int
    longest: int

    @property
    def tokens(self) -> int:
        """The tokens of a row."""
        return self.prefixes + self.suffixes + self.alone


def rounded(tokens: int) -> int:
    """A length, rounded up to that of a bucket."""
    multiple = next((multiple for most, multiple in MULTIPLES if tokens <= most), LONGEST)
    return -(-tokens // multiple) * multiple


def power_of_two(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()


def bucket_of(layout: Layout) -> Bucket:
    """The bucket of a row that is packed so.

    It has room for at least one token in each segment of padding, in this row and in one of padding alone.
    """
    count, groups = len(layout.own.query_starts) - 1, group_count(layout)
    prefixes, suffixes = layout.prefix_tokens, layout.sharing_tokens - layout.prefix_tokens
    alone = layout.own.queries - layout.sharing_tokens
    more_groups = power_of_two(groups + 1) - groups if groups else 0
    segments = -(-(count + more_groups + 2) // SEGMENTS) * SEGMENTS
    behind = segments - count  # segments of padding, those of prefixes too
    if groups:
        prefixes, suffixes = rounded(prefixes + more_groups), rounded(max(suffixes + behind, segments))
        alone = rounded(alone + 1) if alone else 0
    else:
        alone = rounded(max(alone + behind, segments))
    bucket = Bucket(prefixes, suffixes, alone, segments, groups + more_groups, longest=0)
    longest = max(*own_lengths(layout, bucket), *own_lengths(empty().layout, bucket))
    return replace(bucket, longest=power_of_two(longest))


def group_count(layout: Layout) -> int:
    """The prefix groups of a row."""
    return len(layout.shared.query_starts) - 1 if layout.shared else 0


def empty() -> Batch:
    """A row of no token."""
    none, ids = torch.zeros(0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)
    starts = torch.zeros(1, dtype=torch.int32)
    return Batch(ids, ids, none, none, Layout(Segments(starts, starts, 0, 0, 0)))


def placeholder(bucket: Bucket) -> Batch:
    """The row of a bucket that is padding alone."""
    return padded(empty(), bucket)


def padded(batch: Batch, bucket: Bucket) -> Batch:
    """A row, lengthened to the sizes of a bucket that has room for it; `labels` stay as they are."""
    where = batch.layout
    cuts, more = (where.prefix_tokens, where.sharing_tokens), missing(where, bucket)
    shift = more[0] * (batch.label_positions >= cuts[0]) + more[1] * (batch.label_positions >= cuts[1])
    return replace(
        batch,
        input_ids=with_zeros(batch.input_ids, cuts, more),
        position_ids=with_zeros(batch.position_ids, cuts, more),
        label_positions=batch.label_positions + shift,
        layout=padded_layout(where, bucket),
    )


def missing(layout: Layout, bucket: Bucket) -> tuple[int, int, int]:
    """The tokens of padding behind each part of a row."""
    suffixes = layout.sharing_tokens - layout.prefix_tokens
    alone = layout.own.queries - layout.sharing_tokens
    return bucket.prefixes - layout.prefix_tokens, bucket.suffixes - suffixes, bucket.alone - alone


def with_zeros(values: torch.Tensor, cuts: tuple[int, int], more: tuple[int, int, int]) -> torch.Tensor:
    """Values [1, T] of a row with so many zeros behind each of its three parts."""
    parts = values.tensor_split(cuts, dim=1)
    zeros = (values.new_zeros(1, count) for count in more)
    return torch.cat([*itertools.chain.from_iterable(zip(parts, zeros, strict=True))], dim=1)


def padded_layout(layout: Layout, bucket: Bucket) -> Layout:
    """How the padded row is packed; the longest segments are the bucket's, whatever this row has."""
    own = attention.segments(own_lengths(layout, bucket))
    own = replace(own, longest_query=bucket.longest, longest_key=bucket.longest)
    if not bucket.groups:
        return Layout(own)
    more, padding = missing(layout, bucket), bucket.groups - group_count(layout)
    queries = [*lengths(layout.shared.query_starts if layout.shared else None), *parts(more[1], padding)]
    keys = [*lengths(layout.shared.key_starts if layout.shared else None), *parts(more[0], padding)]
    shared = replace(attention.segments(queries, keys), longest_query=bucket.suffixes, longest_key=bucket.prefixes)
    return Layout(own, shared, bucket.prefixes, bucket.prefixes + bucket.suffixes)


def own_lengths(layout: Layout, bucket: Bucket) -> list[int]:
    """The lengths of the segments of a padded row that attend to themselves."""
    own, groups = lengths(layout.own.query_starts), group_count(layout)
    before = int((layout.own.query_starts[:-1] < layout.sharing_tokens).sum())  # prefixes and suffixes
    more, in_prefixes = missing(layout, bucket), bucket.groups - groups
    in_alone = bucket.segments - len(own) if not bucket.groups else min(1, bucket.alone)
    in_suffixes = bucket.segments - len(own) - in_prefixes - in_alone
    return [
        *own[:groups], *parts(more[0], in_prefixes), *own[groups:before], *parts(more[1], in_suffixes),
        *own[before:], *parts(more[2], in_alone),
    ]  # fmt: skip


def lengths(starts: torch.Tensor | None) -> list[int]:
    """The lengths of segments with these starts."""
    return [] if starts is None else starts.diff().tolist()


def parts(tokens: int, count: int) -> list[int]:
    """Tokens in so many parts of about the same length."""
    return [tokens // count + (n < tokens % count) for n in range(count)]
