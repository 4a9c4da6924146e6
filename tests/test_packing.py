"""Steps depend on seed and epoch alone; rows hold every sample once, within the budget, sharing what may be shared."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from samples import random_examples

from fasttune import packing
from fasttune.packing import Group
from fasttune.render import Example


def members(step: packing.Step) -> list[int]:
    return [i for row in step.rows for group in row.groups for i in group.members]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("budget", [0, 1, 25, 60, 10_000])
def test_every_sample_is_in_one_row_within_the_budget(seed: int, budget: int) -> None:
    examples = random_examples(seed, count=1 + seed % 17)
    step = packing.plan_step(examples, range(len(examples)), budget)
    assert sorted(members(step)) == list(range(len(examples)))
    assert step.supervised == sum(end - start for example in examples for start, end in example.learn)
    assert step.computed_tokens == sum(row.tokens for row in step.rows) <= step.tokens
    for row in step.rows:
        assert row.tokens == sum(packing.group_tokens(examples, group) for group in row.groups)
        alone = len(members(packing.Step((), (row,), 0, 0, 0))) == 1
        assert row.tokens <= budget or alone


@pytest.mark.parametrize("seed", range(40))
def test_a_shared_prefix_is_common_and_leaves_an_unlearned_token(seed: int) -> None:
    examples = random_examples(seed, count=12)
    for row in packing.plan_step(examples, range(12), 80).rows:
        for group in row.groups:
            first = examples[group.members[0]]
            for i in group.members:
                assert examples[i].tokens[: group.prefix] == first.tokens[: group.prefix]
                assert group.prefix < examples[i].learn[0][0]


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


@pytest.mark.parametrize("seed", range(30))
def test_sharing_computes_as_few_tokens_as_any_partition(seed: int) -> None:
    examples = random_examples(seed, count=7)
    groups = packing.share_prefixes(examples, range(7))
    assert sum(packing.group_tokens(examples, group) for group in groups) == cheapest(examples, tuple(range(7)))


def test_a_common_system_prompt_is_computed_once() -> None:
    examples = [Example(f"x:{n}", (*range(100), 200 + n, 7, 8), ((101, 103),)) for n in range(16)]
    step = packing.plan_step(examples, range(16), 4096)
    assert step.rows == (packing.Row((Group(100, tuple(range(16))),), 100 + 16 * 3),)
    assert packing.plan_step(examples, range(16), 4096, shared_prefix=False).computed_tokens == 16 * 103


def test_samples_of_a_step_depend_on_seed_and_epoch_alone() -> None:
    first = packing.epoch_batches(50, 8, seed=1, epoch=0)
    assert first == packing.epoch_batches(50, 8, seed=1, epoch=0)
    assert first != packing.epoch_batches(50, 8, seed=1, epoch=1) != packing.epoch_batches(50, 8, seed=2, epoch=1)
    assert Counter(i for batch in first for i in batch) == Counter(range(50))
    assert [len(batch) for batch in first] == [8] * 6 + [2]
    assert packing.steps_per_epoch(50, 8) == 7
