"""Which samples make a step, and how a step's samples are laid out in rows: lists only, no tensors.

    samples of one step              groups (shared prefix + suffixes)          rows under a token budget
    S S S q a                        [S S S | q a | q b b | r c]                [S S S | q a | q b b | r c , X d]
    S S S q b b            ──►                                          ──►
    S S S r c                        [X d]
    X d

A prefix group computes its prefix once; each suffix attends to the prefix and, causally, to itself, at the positions it
had in its own sample. A prefix holds no supervised token, and the first token after it is unsupervised too: then no
label is predicted from a shared position and the gradients are those of one sample a row (Prefix Grouper, arXiv
2506.05433).

This file does not know what tokens mean, tensors or models. The samples of a step depend on seed and epoch alone (E1);
the token budget only changes how a step is cut into rows.
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

ONE_SAMPLE = 0  # the token budget that puts each sample into a row of its own


@dataclass(frozen=True)
class Group:
    """A prefix group: samples that share their first `prefix` tokens (0: none); `members` are their indices."""

    prefix: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Prefix groups that one forward pass computes; `tokens` is the row's length."""

    groups: tuple[Group, ...]
    tokens: int


@dataclass(frozen=True)
class Step:
    """One optimizer step: its samples and the rows that compute them.

    `tokens` counts the samples' own tokens, `computed_tokens` those of the rows after sharing, `supervised` the tokens
    the loss is averaged over. With several ranks `rows` are those of one rank; all else is of the whole step.
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
    """Lay the samples of one step out in rows of at most `budget` tokens (ONE_SAMPLE: one sample a row); the result has
    the rows of one rank.

    A sample longer than the budget has a row of its own: nothing is cut off (E7).
    """
    parts = [lay_out(examples, part, budget, shared_prefix) for part in divide(examples, samples, world_size)]
    return Step(
        samples=tuple(samples),
        rows=tuple(parts[rank]),
        tokens=sum(len(examples[i].tokens) for i in samples),
        computed_tokens=sum(row.tokens for rows in parts for row in rows),
        supervised=sum(supervised_tokens(examples[i]) for i in samples),
    )


def divide(examples: Sequence[Example], samples: Sequence[int], world_size: int) -> list[list[int]]:
    """A step's samples in parts of about equal tokens, one a rank; samples that begin alike stay together, so that few
    prefixes are computed by two ranks."""
    if world_size == 1:
        return [list(samples)]
    order = sort_by_prefix(examples, samples)
    whole, before = sum(len(examples[i].tokens) for i in samples), 0
    parts: list[list[int]] = [[] for _ in range(world_size)]
    for i in order:
        size = len(examples[i].tokens)
        parts[(2 * before + size) * world_size // (2 * whole)].append(i)  # the part that holds the sample's middle
        before += size
    return parts


def lay_out(examples: Sequence[Example], samples: Sequence[int], budget: int, shared_prefix: bool) -> list[Row]:
    """The rows of one rank."""
    if budget == ONE_SAMPLE:
        return [Row((Group(0, (i,)),), len(examples[i].tokens)) for i in samples]
    shares = shared_prefix and samples
    groups = share_prefixes(examples, samples) if shares else [Group(0, (i,)) for i in samples]
    return fill_rows(examples, groups, budget)


def group_tokens(examples: Sequence[Example], group: Group) -> int:
    """Tokens that a group computes: prefix + sum over its members of (length - prefix)."""
    return group.prefix + sum(len(examples[i].tokens) - group.prefix for i in group.members)


def shareable(example: Example) -> int:
    """The longest prefix of a sample that may be shared: neither it nor the token after it is supervised."""
    return example.supervised[0][0] - 1


def sort_by_prefix(examples: Sequence[Example], samples: Sequence[int]) -> list[int]:
    """The samples sorted so that those with a common prefix are neighbours; deterministic."""

    def prefix(i: int) -> bytes:  # bytes sort fast; their order has no meaning beyond putting neighbours together
        return array("I", examples[i].tokens[: shareable(examples[i])]).tobytes()

    return sorted(samples, key=lambda i: (prefix(i), i))


def shared_tokens(a: Example, b: Example) -> int:
    """The length of the prefix that two samples may share."""
    return min(common_prefix(a.tokens, b.tokens), shareable(a), shareable(b))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading tokens that are equal."""
    return next(compress(count(), map(operator.ne, a, b)), min(len(a), len(b)))


# Which samples share: the tree of common prefixes ---------------------------------------------------------------------


@dataclass(eq=False)
class Fork:
    """A node of the tree of common prefixes, below which the samples differ after `depth` common tokens.

    `samples` are leaves directly below it, `forks` the nodes below it. Let s be the prefix of the group that is open
    above: where s < `opens_below`, a group opens here, and `members` are its samples. `breakpoints` describe, as a
    piecewise-linear function of s, what the group above saves in this subtree (see `find_breakpoints`).
    """

    depth: int
    samples: list[int] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    breakpoints: Counter[int] = field(default_factory=Counter)
    opens_below: int = 0
    members: list[int] = field(default_factory=list)


def share_prefixes(examples: Sequence[Example], samples: Sequence[int]) -> list[Group]:
    """The partition into prefix groups that computes the fewest tokens; the same for every order of the samples.

    Dynamic programming over the tree of common prefixes: each fork either opens a group of its own or leaves its
    samples to the group that is open above. From the leaves to the root each fork's saving is found as a function of
    the prefix of the group above; from the root to the leaves the better of both is chosen.
    """
    *forks, root = prefix_tree(examples, samples)
    for fork in forks:
        find_breakpoints(fork)
    group_above = {root: root}
    for fork in [root, *reversed(forks)]:
        above = group_above.pop(fork)
        group = fork if above.depth < fork.opens_below else above
        group.members += fork.samples
        group_above |= dict.fromkeys(fork.forks, group)
    shared = [Group(fork.depth, tuple(sorted(fork.members))) for fork in forks if fork.members]
    return sorted([*shared, *(Group(0, (i,)) for i in root.members)], key=lambda group: group.members)


def prefix_tree(examples: Sequence[Example], samples: Sequence[int]) -> list[Fork]:
    """The forks of the samples' shareable prefixes in post-order: those below a fork come before it, the root last."""
    order = sort_by_prefix(examples, samples)
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


def find_breakpoints(fork: Fork) -> None:
    """Find for which groups above a fork a group of its own saves more; the forks below it come before.

    Let S(s) be the tokens saved in the fork's subtree by the best choice there, where the group above has a prefix of s
    tokens (s <= depth). S is piecewise linear, convex and non-decreasing: each member of the group above saves s
    tokens, and the more tokens it shares, the more samples join it. `breakpoints[b]` is by how much the slope grows at
    s = b. The sum of the branches' functions, taken at s = depth less `depth` (one prefix more is computed), is what a
    group at this fork saves, whatever s is. Hence

        S(s) = max(sum of branches at s, sum of branches at depth - depth),

    which is constant below s = opens_below. The sum loses at least one token for each lower s and sample, and stops at
    a loss of depth, so a fork keeps at most about sqrt(2 depth) breakpoints.
    """
    breakpoints = Counter({0: len(fork.samples)})
    for below in fork.forks:
        breakpoints.update(below.breakpoints)
    s, lost, slope = fork.depth, 0, sum(growth for at, growth in breakpoints.items() if at < fork.depth)
    for at in sorted((at for at in breakpoints if at < fork.depth), reverse=True):
        if lost + slope * (s - at) > fork.depth:
            tokens, rest = divmod(fork.depth - lost, slope)
            fork.opens_below = s - tokens
            fork.breakpoints.update({s - tokens: slope - rest, s - tokens - 1: rest})
            return
        s, lost, slope = at, lost + slope * (s - at), slope - breakpoints[at]
        fork.breakpoints[at] = breakpoints[at]


# How groups fill rows ------------------------------------------------------------------------------------------------


def fill_rows(examples: Sequence[Example], groups: Sequence[Group], budget: int) -> list[Row]:
    """Lay groups out in rows of at most `budget` tokens. A larger group is cut; its last part may share a row with
    others."""
    parts = [part for group in groups for part in cut_group(examples, group, budget)]
    sizes = [group_tokens(examples, part) for part in parts]
    bins = best_fit(sizes, budget)
    return [Row(tuple(parts[n] for n in row), sum(sizes[n] for n in row)) for row in bins]


def cut_group(examples: Sequence[Example], group: Group, budget: int) -> list[Group]:
    """The group in parts of at most `budget` tokens, each with a prefix of its own; one sample is never cut.

    Of two ways the one that computes fewer tokens: best-fit makes the fewest parts, hence the fewest repeated
    prefixes; parts of neighbours in the tree of prefixes may share more than the whole group does.
    """
    if group_tokens(examples, group) <= budget:
        return [group]
    suffixes = [len(examples[i].tokens) - group.prefix for i in group.members]
    bins = [[group.members[n] for n in bin] for bin in best_fit(suffixes, budget - group.prefix)]
    fewest = [Group(group.prefix if len(members) > 1 else 0, tuple(members)) for members in bins]
    neighbours = cut_in_order(examples, sort_by_prefix(examples, group.members), budget)
    return min(fewest, neighbours, key=lambda parts: sum(group_tokens(examples, part) for part in parts))


def cut_in_order(examples: Sequence[Example], order: Sequence[int], budget: int) -> list[Group]:
    """Samples in parts of neighbours, each as long as fits and with the prefix that its samples share."""
    parts: list[tuple[int, list[int]]] = []  # (prefix, members)
    tokens = 0  # of the last part's samples, nothing shared
    for i in order:
        tokens += len(examples[i].tokens)
        if parts:
            before, members = parts[-1]
            prefix = shared_tokens(examples[members[-1]], examples[i])
            prefix = prefix if len(members) == 1 else min(prefix, before)
            if tokens - len(members) * prefix <= budget:
                parts[-1] = (prefix, members)
                members.append(i)
                continue
        parts.append((0, [i]))
        tokens = len(examples[i].tokens)
    return [Group(prefix, tuple(members)) for prefix, members in parts]


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: indices of `sizes` in bins of at most `capacity`, largest first, each into the
    fullest bin that can take it.

    A size above the capacity has a bin of its own.
    """
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (free, bin) of the bins that can take one more, ascending
    smallest = min(sizes, default=0)
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        at = bisect_left(open_bins, (sizes[n], 0))
        free, chosen = open_bins.pop(at) if at < len(open_bins) else (capacity, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(n)
        if free - sizes[n] >= smallest:
            insort(open_bins, (free - sizes[n], chosen))
    return bins
