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

import operator
from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress, count, zip_longest

from fasttune.data.batches import supervised_tokens
from fasttune.data.tokenize import Example


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


def plan_step(
    examples: Sequence[Example],
    samples: Sequence[int],
    budget: int,
    *,
    shared_prefix: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> Step:
    """Lay the samples of one step out in rows of at most `budget` tokens (0 = one sample a row), for one of several
    processes.

    A sample longer than the budget gets a row of its own: nothing is cut (E7).
    """
    parts = [lay_out(examples, part, budget, shared_prefix) for part in divide(examples, samples, world_size)]
    return Step(
        samples=tuple(samples),
        rows=tuple(parts[rank]),
        tokens=sum(len(examples[i].tokens) for i in samples),
        computed_tokens=sum(row.tokens for rows in parts for row in rows),
        supervised=sum(supervised_tokens(examples[i]) for i in samples),
    )


def divide(examples: Sequence[Example], samples: Sequence[int], processes: int) -> list[list[int]]:
    """A step's samples in parts of about equal tokens, one a process; samples that begin alike stay together, so that
    few prefixes are computed twice."""
    if processes == 1:
        return [list(samples)]
    order = by_beginning(examples, samples)
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
    return example.supervised[0][0] - 1


def by_beginning(examples: Sequence[Example], samples: Sequence[int]) -> list[int]:
    """The samples with those that begin alike side by side; deterministic, in no order that means more."""

    def beginning(i: int) -> bytes:  # bytes sort quickly
        return array("I", examples[i].tokens[: shareable(examples[i])]).tobytes()

    return sorted(samples, key=lambda i: (beginning(i), i))


def shared_tokens(a: Example, b: Example) -> int:
    """How many tokens at their beginning two samples may share."""
    return min(common_prefix(a.tokens, b.tokens), shareable(a), shareable(b))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    return next(compress(count(), map(operator.ne, a, b)), min(len(a), len(b)))


# Which samples share: the tree of common prefixes --------------------------------------------------------------------


@dataclass(eq=False)
class Fork:
    """A place in the tree of common prefixes: the branches below it part after `depth` tokens.

    `samples` branch off alone, `forks` are the branches of several. A group opens here where the one that is open above
    shares fewer than `opens_below` tokens; `bends` say what such a group saves in this branch (see `weigh`).
    `members` are the samples of the group that opens here.
    """

    depth: int
    samples: list[int] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    bends: Counter[int] = field(default_factory=Counter)
    opens_below: int = 0
    members: list[int] = field(default_factory=list)


def share_prefixes(examples: Sequence[Example], samples: Sequence[int]) -> list[Group]:
    """The partition into groups that computes the fewest tokens, deterministic for given samples.

    Each fork either opens a group of its own or leaves its samples to the one that is open above it. What is cheaper
    is weighed from the leaves to the root for whatever group may be open, then chosen from the root to the leaves.
    """
    *forks, root = prefix_tree(examples, samples)
    for fork in forks:
        weigh(fork)
    open_above = {root: root}
    for fork in [root, *reversed(forks)]:
        above = open_above.pop(fork)
        home = fork if above.depth < fork.opens_below else above
        home.members += fork.samples
        open_above |= dict.fromkeys(fork.forks, home)
    shared = [Group(fork.depth, tuple(sorted(fork.members))) for fork in forks if fork.members]
    return sorted([*shared, *(Group(0, (i,)) for i in root.members)], key=lambda group: group.members)


def prefix_tree(examples: Sequence[Example], samples: Sequence[int]) -> list[Fork]:
    """The forks of the samples' shareable beginnings, each after those below it; the last is the root, of depth 0."""
    order = by_beginning(examples, samples)
    path, done = [Fork(0)], []
    for i, following in zip_longest(order, order[1:]):
        depth = 0 if following is None else shared_tokens(examples[i], examples[following])
        if depth > path[-1].depth:
            path.append(Fork(depth))
        path[-1].samples.append(i)
        while path[-1].depth > depth:
            done.append(path.pop())
            if path[-1].depth < depth:
                path.append(Fork(depth))
            path[-1].forks.append(done[-1])
    return [*done, *path]


def weigh(fork: Fork) -> None:
    """Find the groups above a fork that are worse for its branch than one of its own, once its branches are weighed.

    What a branch saves under a group that shares s tokens grows with s, ever faster as more of its samples join that
    group: `bends` are the s from where on how many more join. With a group at this fork the saving is that at s =
    depth, less the depth once, and the same for all s. Below some s that is more; there the branch is flat.
    A bend costs a sample a token at each lower s, so a fork keeps no more than sqrt(2 x depth) of them.
    """
    bends = Counter({0: len(fork.samples)})
    for below in fork.forks:
        bends.update(below.bends)
    s, lost, joining = fork.depth, 0, sum(more for at, more in bends.items() if at < fork.depth)
    for at in sorted((at for at in bends if at < fork.depth), reverse=True):
        if lost + joining * (s - at) > fork.depth:
            tokens, rest = divmod(fork.depth - lost, joining)
            fork.opens_below = s - tokens
            fork.bends.update({s - tokens: joining - rest, s - tokens - 1: rest})
            return
        s, lost, joining = at, lost + joining * (s - at), joining - bends[at]
        fork.bends[at] = bends[at]


# How groups fill rows ------------------------------------------------------------------------------------------------


def fill_rows(examples: Sequence[Example], groups: Sequence[Group], budget: int) -> list[Row]:
    """Rows of at most `budget` tokens; a larger group is cut and what is left of it shares a row with others."""
    pieces = [piece for group in groups for piece in cut_group(examples, group, budget)]
    sizes = [group_tokens(examples, piece) for piece in pieces]
    filled = best_fit(sizes, budget)
    return [Row(tuple(pieces[n] for n in row), sum(sizes[n] for n in row)) for row in filled]


def cut_group(examples: Sequence[Example], group: Group, budget: int) -> list[Group]:
    """The group in pieces of at most `budget` tokens, each with its prefix; one sample is never cut.

    Best-fit makes the fewest pieces, hence the fewest repeated prefixes; neighbours in the tree may share more than
    the group does. The way that computes fewer tokens is taken.
    """
    if group_tokens(examples, group) <= budget:
        return [group]
    suffixes = [len(examples[i].tokens) - group.prefix for i in group.members]
    fitted = [[group.members[n] for n in piece] for piece in best_fit(suffixes, budget - group.prefix)]
    fewest = [Group(group.prefix if len(piece) > 1 else 0, tuple(piece)) for piece in fitted]
    alike = cut_in_order(examples, by_beginning(examples, group.members), budget)
    return min(fewest, alike, key=lambda pieces: sum(group_tokens(examples, piece) for piece in pieces))


def cut_in_order(examples: Sequence[Example], order: Sequence[int], budget: int) -> list[Group]:
    """Samples in pieces of neighbours, each as long as fits and with the prefix that all of it shares."""
    pieces: list[tuple[int, list[int]]] = []  # (prefix, members)
    tokens = 0  # of the last piece's samples, nothing shared
    for i in order:
        tokens += len(examples[i].tokens)
        if pieces:
            before, members = pieces[-1]
            prefix = shared_tokens(examples[members[-1]], examples[i])
            prefix = prefix if len(members) == 1 else min(prefix, before)
            if tokens - len(members) * prefix <= budget:
                pieces[-1] = (prefix, members)
                members.append(i)
                continue
        pieces.append((0, [i]))
        tokens = len(examples[i].tokens)
    return [Group(prefix, tuple(members)) for prefix, members in pieces]


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `sizes` in few bins of at most `capacity`: largest first, each into the fullest bin that has room.

    A size above the capacity has a bin of its own.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free, bin) of the bins that can take one more, ascending
    smallest = min(sizes, default=0)
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        fits = bisect_left(rooms, (sizes[n], 0))
        free, chosen = rooms.pop(fits) if fits < len(rooms) else (capacity, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(n)
        if free - sizes[n] >= smallest:
            insort(rooms, (free - sizes[n], chosen))
    return bins
