"""Steps depend on seed and epoch alone; rows hold every sample once, within the budget, sharing what may be shared."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from samples import random_examples, random_forest, random_tree

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.training import attention, engine, packing
from fasttune.training.packing import Group, Row


def members(step: packing.Step) -> list[int]:
    return [i for row in step.rows for group in row.groups for i in group.members]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("budget", [0, 1, 25, 60, 10_000])
def test_every_sample_is_in_one_row_within_the_budget(seed: int, budget: int) -> None:
    examples = random_examples(seed, count=1 + seed % 17)
    step = packing.plan_step(examples, range(len(examples)), budget)
    assert sorted(members(step)) == list(range(len(examples)))
    assert step.supervised == sum(end - start for example in examples for start, end in example.supervised)
    assert step.computed_tokens == sum(row.tokens for row in step.rows) <= step.tokens
    for row in step.rows:
        assert row.tokens == sum(packing.group_tokens(examples, group) for group in row.groups)
        alone = len(members(packing.Step((), (row,), 0, 0, 0))) == 1
        assert row.tokens <= budget or alone


@pytest.mark.parametrize("seed", range(40))
def test_a_shared_prefix_is_common_and_leaves_an_unsupervised_token(seed: int) -> None:
    examples = random_examples(seed, count=12)
    for row in packing.plan_step(examples, range(12), 80).rows:
        for group in row.groups:
            first = examples[group.members[0]]
            for i in group.members:
                assert examples[i].tokens[: group.prefix] == first.tokens[: group.prefix]
                assert group.prefix < examples[i].supervised[0][0]


def cheapest(examples: list[Example], samples: tuple[int, ...]) -> int:
    """The fewest tokens over all partitions into groups, by trying every one."""
    if not samples:
        return 0
    first, rest = samples[0], samples[1:]
    best = None
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            group = (first, *others)
            heads = [examples[i].tokens[: packing.shareable(examples[i])] for i in group]
            prefix = 0 if len(group) == 1 else min(packing.common_prefix(heads[0], head) for head in heads)
            cost = packing.group_tokens(examples, Group(prefix, group))
            total = cost + cheapest(examples, tuple(i for i in rest if i not in others))
            best = total if best is None else min(best, total)
    assert best is not None
    return best


@pytest.mark.parametrize("make", [random_examples, random_tree])
@pytest.mark.parametrize("seed", range(30))
def test_sharing_computes_as_few_tokens_as_any_partition(seed: int, make: Callable[[int, int], list[Example]]) -> None:
    examples = make(seed, 7)
    groups = packing.share_prefixes(examples, range(7))
    assert sum(packing.group_tokens(examples, group) for group in groups) == cheapest(examples, tuple(range(7)))


def context(tokens: Any) -> bytes:
    """Tokens to compare with others."""
    return np.asarray(tokens, dtype=np.int64).tobytes()


def contexts(examples: list[Example], rows: Iterable[Row]) -> Counter[tuple[bytes, int]]:
    """What is predicted from what: (all tokens a position may attend to, label), by the plain mask of the layout."""
    found: Counter[tuple[bytes, int]] = Counter()
    for row in rows:
        batch = engine.collate(row, examples)
        seen = attention.dense_mask(batch.layout)[0, 0].numpy()
        tokens, positions = batch.input_ids[0].numpy(), batch.position_ids[0].numpy()
        for position, label in zip(batch.label_positions.tolist(), batch.labels.tolist(), strict=True):
            sees = np.flatnonzero(seen[position])
            assert (positions[sees] == np.arange(len(sees))).all()
            found[context(tokens[sees]), label] += 1
    return found


@pytest.mark.parametrize("make", [random_examples, random_tree, random_forest])
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 12)) for seed in range(40)])
def test_every_supervised_token_counts_once_in_its_own_context(
    seed: int, make: Callable[[int, int], list[Example]]
) -> None:
    chance = random.Random(seed)
    examples = make(seed, chance.randint(1, 24))
    samples = chance.sample(range(len(examples)), chance.randint(1, len(examples)))
    expected = Counter(
        (context(examples[i].tokens[:at]), examples[i].tokens[at])
        for i in samples for start, end in examples[i].supervised for at in range(start, end)
    )  # fmt: skip
    for budget in (0, 1, chance.randint(2, 40), chance.randint(40, 200), 4096):
        step = packing.plan_step(examples, samples, budget)
        assert contexts(examples, step.rows) == expected
        assert step == packing.plan_step(examples, samples, budget)  # deterministic


def test_the_order_of_samples_does_not_change_the_groups() -> None:
    examples = random_tree(3, 40)
    backwards = packing.share_prefixes(examples, range(39, -1, -1))
    assert packing.share_prefixes(examples, range(40)) == backwards


def fewest(sizes: list[int], capacity: int) -> int:
    """Bins of at most `capacity` that the sizes need, by trying everything."""

    def place(n: int, loads: tuple[int, ...]) -> int:
        if n == len(sizes):
            return len(loads)
        ways = [(*loads, sizes[n])]
        ways += [(*loads[:b], load + sizes[n], *loads[b + 1 :]) for b, load in enumerate(loads)
                 if load + sizes[n] <= capacity]  # fmt: skip
        return min(place(n + 1, way) for way in ways)

    return place(0, ())


def test_rows_are_filled_nearly_as_well_as_can_be() -> None:
    chance, best = random.Random(1), 0
    for _case in range(100):
        sizes = [chance.randint(5, 60) for _item in range(chance.randint(1, 7))]
        bins = packing.best_fit(sizes, 60)
        assert sorted(n for bin in bins for n in bin) == list(range(len(sizes)))
        assert all(sum(sizes[n] for n in bin) <= 60 for bin in bins)
        best += len(bins) == (optimum := fewest(sizes, 60))
        assert len(bins) <= optimum + 1
    assert best >= 97


def bins_at_least(sizes: Sequence[int], capacity: int) -> int:
    """A lower bound on the bins that sizes need (Martello and Toth's L2); each size above the capacity needs its own."""
    own = sum(size > capacity for size in sizes)
    sizes = [size for size in sizes if size <= capacity]
    bounds = [0]
    for small in {0, *(size for size in sizes if 2 * size <= capacity)}:
        alone = sum(size > capacity - small for size in sizes)
        over_half = [size for size in sizes if capacity - small >= size > capacity / 2]
        free = len(over_half) * capacity - sum(over_half)
        rest = sum(size for size in sizes if small <= size <= capacity / 2) - free
        bounds.append(alone + len(over_half) + max(0, math.ceil(rest / capacity)))
    return own + max(bounds)


@pytest.mark.parametrize("budget", [60, 61, 100])
def test_the_lower_bound_is_one(budget: int) -> None:
    """What the next test measures by: never more than trying everything finds."""
    chance = random.Random(budget)
    for _case in range(60):
        sizes = [chance.randint(5, 60) for _item in range(chance.randint(1, 7))]
        assert bins_at_least(sizes, budget) <= fewest(sizes, budget)


def test_random_forests_fill_their_rows() -> None:
    """Whatever the data and the budget: each sample once, nothing beyond the budget but a sample alone, no two rows that
    would fit into one, and in all hardly more rows than any way to fill them needs."""
    rows_used = rows_needed = 0
    for seed in range(150):
        chance = random.Random(seed)
        examples = random_forest(seed, chance.choice([1, 2, 30, 150]))
        samples = chance.sample(range(len(examples)), chance.randint(0, len(examples)))
        budget = chance.choice([1, chance.randint(2, 100), chance.randint(100, 1000), 4096])
        step = packing.plan_step(examples, samples, budget)
        assert sorted(members(step)) == sorted(samples) == sorted(step.samples)
        assert step.supervised == sum(batches.supervised_tokens(examples[i]) for i in samples)
        assert step.tokens == sum(len(examples[i].tokens) for i in samples)
        assert step.computed_tokens == sum(row.tokens for row in step.rows) <= step.tokens
        for row in step.rows:
            assert row.groups and all(group.members for group in row.groups)
            assert row.tokens == sum(packing.group_tokens(examples, group) for group in row.groups)
            assert row.tokens <= budget or len(row.groups) == len(row.groups[0].members) == 1
        least = sorted(row.tokens for row in step.rows)[:2]
        assert len(least) < 2 or sum(least) > budget
        pieces = [packing.group_tokens(examples, group) for row in step.rows for group in row.groups]
        needed = bins_at_least(pieces, budget)
        assert needed <= len(step.rows) <= needed + max(1, needed // 9)
        rows_used, rows_needed = rows_used + len(step.rows), rows_needed + needed
    assert rows_used <= 1.001 * rows_needed


def test_a_step_of_no_samples_has_no_rows() -> None:
    for budget in (0, 1, 4096):
        assert packing.plan_step(random_forest(1, 3), [], budget) == packing.Step((), (), 0, 0, 0)


def smallest(examples: list[Example], samples: tuple[int, ...], budget: int) -> int:
    """The fewest tokens over all partitions into groups that fit a row; a sample alone may be longer."""
    if not samples:
        return 0
    first, rest = samples[0], samples[1:]
    totals = []
    for others in itertools.chain.from_iterable(itertools.combinations(rest, n) for n in range(len(rest) + 1)):
        group = (first, *others)
        prefix = min((packing.shared_tokens(examples[first], examples[i]) for i in others), default=0)
        size = packing.group_tokens(examples, Group(prefix, group))
        if size <= budget or not others:
            totals.append(size + smallest(examples, tuple(i for i in rest if i not in others), budget))
    return min(totals)


def test_groups_are_cut_so_that_few_tokens_are_computed() -> None:
    found = optimum = 0
    for seed in range(60):
        examples = (random_examples if seed % 2 else random_tree)(seed, 7)
        budget = random.Random(seed).randint(15, 60)
        computed = packing.plan_step(examples, range(7), budget).computed_tokens
        least = smallest(examples, tuple(range(7)), budget)
        assert least <= computed <= least * 1.2
        found, optimum = found + computed, optimum + least
    assert found <= optimum * 1.01


def persona(number: int, chance: random.Random) -> Example:
    """A sample under one of three system prompts of 100 tokens, its question and answer its own."""
    prompt = range(1000 * (number % 3), 1000 * (number % 3) + 100)
    tokens = [*prompt, *(chance.randrange(9000) for _token in range(chance.randint(10, 60)))]
    return Example(f"x:{number}", tuple(tokens), ((len(tokens) - 5, len(tokens)),))


def test_twenty_thousand_samples_fill_their_rows() -> None:
    chance = random.Random(2)
    examples = [persona(number, chance) for number in range(20_000)]
    for budget in (1024, 16_384):
        step = packing.plan_step(examples, range(20_000), budget)
        assert sorted(members(step)) == list(range(20_000))
        assert len(step.rows) <= 1.01 * math.ceil(step.computed_tokens / budget) + 1
        repeated = sum(group.prefix * (len(group.members) - 1) for row in step.rows for group in row.groups)
        assert step.tokens - step.computed_tokens == repeated >= 100 * (20_000 - 4 * len(step.rows))


def test_three_thousand_samples_that_begin_with_each_other() -> None:
    tokens = tuple(range(3_100))
    examples = [Example(f"x:{n}", tokens[: n + 5], ((n + 3, n + 5),)) for n in range(3_000)]
    for budget in (0, 4096, 1_000_000):
        step = packing.plan_step(examples, range(3_000), budget)
        assert sorted(members(step)) == list(range(3_000))
        assert step.tokens == sum(len(example.tokens) for example in examples)
    assert step.computed_tokens < step.tokens / 10


def test_what_is_left_of_a_cut_group_shares_a_row() -> None:
    """Five samples of 10 + 10 tokens, two in a row of 30: the fifth goes in with the sample that stands alone."""
    examples = [Example(f"x:{n}", (*range(10), *range(50 * n + 50, 50 * n + 60)), ((15, 20),)) for n in range(5)]
    examples.append(Example("alone", tuple(range(500, 510)), ((5, 10),)))
    rows = packing.plan_step(examples, range(6), 30).rows
    assert [[group.members for group in row.groups] for row in rows] == [[(0, 1)], [(2, 3)], [(4,), (5,)]]


def test_neighbours_in_the_tree_are_cut_together_where_that_computes_less() -> None:
    """All share 20 tokens and are one group; cut into rows of two samples, two may share 30."""
    pairs = [(*range(20), *range(100 * pair, 100 * pair + 10)) for pair in (1, 2, 3)]
    examples = [Example(f"x:{n}", (*pairs[n % 3], 900 + n, 7, 8), ((32, 33),)) for n in range(6)]
    assert packing.share_prefixes(examples, range(6)) == [Group(20, tuple(range(6)))]
    step = packing.plan_step(examples, range(6), 46)
    assert {group for row in step.rows for group in row.groups} == {Group(30, (n, n + 3)) for n in range(3)}


def test_a_common_system_prompt_is_computed_once() -> None:
    examples = [Example(f"x:{n}", (*range(100), 200 + n, 7, 8), ((101, 103),)) for n in range(16)]
    step = packing.plan_step(examples, range(16), 4096)
    assert step.rows == (packing.Row((Group(100, tuple(range(16))),), 100 + 16 * 3),)
    assert packing.plan_step(examples, range(16), 4096, shared_prefix=False).computed_tokens == 16 * 103


# The division of a step among ranks ---------------------------------------------------------------------------------


def prompted(rng: random.Random, name: int) -> Example:
    """A sample below one of three prompts."""
    prompt = [rng.randrange(3)] * rng.randrange(1, 30)
    tokens = (*prompt, *(rng.randrange(9) for _ in range(rng.randrange(3, 40))))
    return Example(str(name), tokens, ((len(prompt) + 1, len(tokens)),))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_sample_is_computed_by_one_rank(seed: int, world_size: int) -> None:
    rng = random.Random(seed)
    examples = [prompted(rng, n) for n in range(rng.randrange(1, 40))]
    samples = rng.sample(range(len(examples)), rng.randrange(1, len(examples) + 1))
    steps = [packing.plan_step(examples, samples, 100, rank=n, world_size=world_size) for n in range(world_size)]
    computed = [i for step in steps for row in step.rows for group in row.groups for i in group.members]
    assert sorted(computed) == sorted(samples)
    assert sum(row.tokens for step in steps for row in step.rows) == steps[0].computed_tokens
    whole = packing.plan_step(examples, samples, 100)
    for step in steps:
        assert (step.samples, step.tokens, step.supervised) == (whole.samples, whole.tokens, whole.supervised)
    sizes = [sum(len(examples[i].tokens) for i in part) for part in packing.divide(examples, samples, world_size)]
    longest = max(len(examples[i].tokens) for i in samples)
    assert max(sizes) - min(sizes) <= 2 * longest


def test_samples_that_begin_alike_stay_together() -> None:
    examples = [Example(str(n), (*([n % 2] * 50), 7, 8, n), ((52, 53),)) for n in range(8)]
    assert [sorted(part) for part in packing.divide(examples, range(8), 2)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
