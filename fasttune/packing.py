"""Which samples make a step, and how a step's samples are laid out in rows: lists only, no tensors.

    samples of one step              groups (shared prefix + suffixes)          rows under a token budget
    S S S q a                        [S S S | q a | q b b | r c]                [S S S | q a | q b b | r c , X d]
    S S S q b b            ──►                                          ──►
    S S S r c                        [X d]
    X d

A group computes its prefix once; each suffix sees the prefix and, causally, itself, at the positions it had in its own
sample. A prefix holds no supervised token, and the first token after it is unsupervised too: then no target is
predicted from a shared position and the gradients are those of one sample per row (DESIGN section 7, research: Prefix
Grouper, arXiv 2506.05433).

What this file does not know: tokens' meaning, tensors, models. Steps depend on seed and epoch alone (E1); the token
budget only changes how a step is cut into rows.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from fasttune.render import Example


@dataclass(frozen=True)
class Group:
    """Samples that begin with the same `prefix` tokens (0 = nothing shared); `members` index the examples."""

    prefix: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Groups that are computed together in one forward pass; `tokens` is its length."""

    groups: tuple[Group, ...]
    tokens: int


@dataclass(frozen=True)
class Step:
    """One optimizer step: the samples that count in it and the rows that compute them.

    `tokens` are the samples' own, `computed_tokens` what the rows hold after sharing, `supervised` the tokens the
    loss is averaged over. With several processes the rows are those of one of them; all else counts for all.
    """

    samples: tuple[int, ...]
    rows: tuple[Row, ...]
    tokens: int
    computed_tokens: int
    supervised: int


def supervised_tokens(example: Example) -> int:
    """How many tokens of a sample the loss is taken on."""
    return sum(end - start for start, end in example.learn)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps of one pass over the data; the last one may hold fewer samples."""
    return math.ceil(samples / batch_size)


@functools.lru_cache(maxsize=2)
def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    """The samples of each step of an epoch: a shuffle that depends on seed and epoch alone."""
    order = list(range(samples))
    random.Random(f"fasttune {seed} {epoch}").shuffle(order)
    return tuple(tuple(order[i : i + batch_size]) for i in range(0, samples, batch_size))


def plan_step(
    examples: Sequence[Example],
    samples: Sequence[int],
    budget: int,
    *,
    shared_prefix: bool = True,
    process: int = 0,
    processes: int = 1,
) -> Step:
    """Lay the samples of one step out in rows of at most `budget` tokens (0 = one sample a row), for one of several
    processes.

    A sample longer than the budget gets a row of its own: nothing is cut (E7).
    """
    parts = [lay_out(examples, part, budget, shared_prefix) for part in divide(examples, samples, processes)]
    return Step(
        samples=tuple(samples),
        rows=tuple(parts[process]),
        tokens=sum(len(examples[i].tokens) for i in samples),
        computed_tokens=sum(row.tokens for rows in parts for row in rows),
        supervised=sum(supervised_tokens(examples[i]) for i in samples),
    )


def divide(examples: Sequence[Example], samples: Sequence[int], processes: int) -> list[list[int]]:
    """A step's samples in parts of about equal tokens, one a process; samples that begin alike stay together, so that
    few prefixes are computed twice."""
    if processes == 1:
        return [list(samples)]
    order = sorted(samples, key=lambda i: (examples[i].tokens[: shareable(examples[i])], i))
    whole, before = sum(len(examples[i].tokens) for i in samples), 0
    parts: list[list[int]] = [[] for _ in range(processes)]
    for i in order:
        size = len(examples[i].tokens)
        parts[(2 * before + size) * processes // (2 * whole)].append(i)  # where its middle lies
        before += size
    return parts


def lay_out(examples: Sequence[Example], samples: Sequence[int], budget: int, shared_prefix: bool) -> list[Row]:
    """The rows of one process."""
    if budget == 0:
        return [Row((Group(0, (i,)),), len(examples[i].tokens)) for i in samples]
    shares = shared_prefix and samples
    groups = share_prefixes(examples, samples) if shares else [Group(0, (i,)) for i in samples]
    return fill_rows(examples, groups, budget)


def group_tokens(examples: Sequence[Example], group: Group) -> int:
    """Tokens a group computes: its prefix once and every suffix."""
    return group.prefix + sum(len(examples[i].tokens) - group.prefix for i in group.members)


def shareable(example: Example) -> int:
    """The longest prefix of a sample that may be shared: it and the token after it are unsupervised."""
    return example.learn[0][0] - 1


@dataclass(frozen=True)
class Sharing:
    """A way to share inside one branch: tokens computed, groups formed, and members that join the group above it."""

    cost: int
    groups: tuple[Group, ...]
    joining: tuple[int, ...]


def share_prefixes(examples: Sequence[Example], samples: Sequence[int]) -> list[Group]:
    """The partition into groups that computes the fewest tokens, deterministic for given samples.

    The samples, sorted, are the leaves of a tree of common prefixes. A branch with a group of `shared` tokens open
    above it either opens one at its own, deeper fork or passes the open one down; the cheaper way is found bottom up.
    Time is forks x depth of the tree, which is small for one step's samples.
    """
    heads = {i: tuple(examples[i].tokens[: shareable(examples[i])]) for i in samples}
    lengths = {i: len(examples[i].tokens) for i in samples}
    order = tuple(sorted(samples, key=lambda i: (heads[i], i)))

    @functools.cache
    def cheapest(branch: tuple[int, ...], shared: int) -> Sharing:
        if len(branch) == 1:
            return Sharing(lengths[branch[0]] - shared, (), branch)
        depth = common_prefix(heads[branch[0]], heads[branch[-1]])
        parts = branches(heads, branch, depth)
        passed = together([cheapest(part, shared) for part in parts])
        if depth == shared:
            return passed
        inside = together([cheapest(part, depth) for part in parts])
        if depth + inside.cost >= passed.cost:
            return passed
        return Sharing(depth + inside.cost, (*inside.groups, Group(depth, inside.joining)), ())

    best = cheapest(order, 0)
    return [*best.groups, *(Group(0, (i,)) for i in best.joining)]


def together(parts: Sequence[Sharing]) -> Sharing:
    """Branches side by side."""
    return Sharing(
        sum(part.cost for part in parts),
        tuple(group for part in parts for group in part.groups),
        tuple(i for part in parts for i in part.joining),
    )


def branches(heads: dict[int, tuple[int, ...]], order: Sequence[int], depth: int) -> list[tuple[int, ...]]:
    """Sorted samples cut where the token after `depth` changes; one that ends at `depth` is a branch of its own."""
    found: list[list[int]] = []
    last: object = None
    for i in order:
        token = heads[i][depth] if len(heads[i]) > depth else None
        if token is None or token != last or not found:
            found.append([])
        found[-1].append(i)
        last = token
    return [tuple(branch) for branch in found]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def fill_rows(examples: Sequence[Example], groups: Sequence[Group], budget: int) -> list[Row]:
    """First-fit decreasing of groups into rows of at most `budget` tokens; a larger group is cut, its prefix
    repeated."""
    pieces = [piece for group in groups for piece in cut_group(examples, group, budget)]
    pieces.sort(key=lambda piece: -group_tokens(examples, piece))
    rows: list[tuple[list[Group], int]] = []
    for piece in pieces:
        size = group_tokens(examples, piece)
        fits = next((n for n, (_, used) in enumerate(rows) if used + size <= budget), None)
        if fits is None:
            rows.append(([piece], size))
        else:
            rows[fits] = ([*rows[fits][0], piece], rows[fits][1] + size)
    return [Row(tuple(pieces), used) for pieces, used in rows]


def cut_group(examples: Sequence[Example], group: Group, budget: int) -> list[Group]:
    """The group in pieces of at most `budget` tokens, longest suffixes first; one sample is never cut."""
    if group_tokens(examples, group) <= budget:
        return [group]
    pieces: list[tuple[list[int], int]] = []
    for i in sorted(group.members, key=lambda i: -len(examples[i].tokens)):
        suffix = len(examples[i].tokens) - group.prefix
        fits = next((n for n, (_, used) in enumerate(pieces) if used + suffix <= budget), None)
        if fits is None:
            pieces.append(([i], group.prefix + suffix))
        else:
            pieces[fits] = ([*pieces[fits][0], i], pieces[fits][1] + suffix)
    return [Group(group.prefix if len(members) > 1 else 0, tuple(members)) for members, _ in pieces]
