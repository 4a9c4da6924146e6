"""Padded rows: the loss and gradients of the row as it was, whatever the padding holds, and few sizes for many rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fasttune.data.tokenize import Example
from fasttune.training import attention, engine, row_buckets
from fasttune.training.attention import Layout
from fasttune.training.engine import Batch
from fasttune.training.packing import plan_step

LAYOUTS = {
    "one group": attention.layout([(176, [34] * 16)], []),
    "several groups": attention.layout([(20, [11, 19]), (7, [13, 5, 2])], []),
    "groups and alone": attention.layout([(21, [11, 19]), (13, [5, 3])], [9, 170]),
    "alone": attention.layout([], [11, 29, 2]),
    "one sample": attention.layout([], [40]),
    "a prefix of one token": attention.layout([(1, [2, 3]), (1, [4, 2])], [2]),
    "full to the brim": attention.layout([(62, [30, 16])], [63]),
}


def drawn(seed: int) -> Layout:
    """A random row."""
    chance = random.Random(seed)
    groups = [
        (chance.randint(1, 300), [chance.randint(1, 80) for _suffix in range(chance.randint(2, 20))])
        for _group in range(chance.randint(0, 5))
    ]
    return attention.layout(groups, [chance.randint(2, 300) for _one in range(chance.randint(not groups, 9))])


@pytest.mark.parametrize("row", [*LAYOUTS.values(), *map(drawn, range(60))])
def test_a_row_of_a_bucket_has_its_sizes(row: Layout) -> None:
    """The row itself, and the one of padding alone: every segment has a token, no segment is longer than is said."""
    bucket = row_buckets.bucket_of(row)
    for one in (row, row_buckets.empty().layout):
        made = row_buckets.padded_layout(one, bucket)
        own = made.own.query_starts.diff()
        assert len(own) == bucket.segments and own.min() > 0 and own.max() <= bucket.longest
        assert made.own.queries == bucket.tokens == own.sum()
        assert bool(made.shared) == bool(bucket.groups)
        if made.shared:
            queries, keys = made.shared.query_starts.diff(), made.shared.key_starts.diff()
            assert len(queries) == len(keys) == bucket.groups and min(queries.min(), keys.min()) > 0
            assert (queries.sum(), keys.sum()) == (bucket.suffixes, bucket.prefixes)


def masked(row: Layout) -> torch.Tensor:
    return attention.dense_mask(row)[0, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_token_of_the_row_attends_to_padding(name: str) -> None:
    row = LAYOUTS[name]
    batch = tokens_of(row)
    made = row_buckets.padded(batch, row_buckets.bucket_of(row))
    places = made.input_ids[0].nonzero()[:, 0]  # padding is 0, the row's tokens are not
    assert made.input_ids[0, places].tolist() == batch.input_ids[0].tolist()
    assert made.position_ids[0, places].tolist() == batch.position_ids[0].tolist()
    assert made.input_ids[0, made.label_positions].tolist() == batch.input_ids[0, batch.label_positions].tolist()
    mask = masked(made.layout)
    assert torch.equal(mask[places][:, places], masked(row))
    mask[:, places] = False
    assert not mask[places].any()


def tokens_of(row: Layout) -> Batch:
    """A row of tokens 1, 2, 3 … whose last tokens, and one behind the prefixes, predict something."""
    count = row.own.queries
    ids, where = torch.arange(1, count + 1)[None], torch.tensor([row.prefix_tokens, row.sharing_tokens - 1, count - 1])
    return Batch(ids, ids - 1, where[where >= 0], where[where >= 0], row)


def test_rows_of_one_prompt_fall_into_few_buckets() -> None:
    """Steps of 16 samples behind one prompt of 176 tokens, with answers of 10 to 60: a tenth of padding at most."""
    chance, buckets, padding = random.Random(0), set(), []
    for _step in range(200):
        row = attention.layout([(176, [chance.randint(10, 60) for _sample in range(16)])], [])
        buckets.add(row_buckets.bucket_of(row))
        padding.append(row_buckets.bucket_of(row).tokens / row.own.queries)
    assert len(buckets) <= 8 and sum(padding) / len(padding) < 1.25


def examples() -> Sequence[Example]:
    """Five samples on a prefix of 30 tokens, two on another, two that share nothing."""
    chance = random.Random(1)

    def draw(count: int) -> list[int]:
        return [chance.randint(5, 499) for _token in range(count)]

    made: list[Example] = []
    for prefix, suffixes in ((draw(30), (11, 23, 5, 40, 17)), (draw(20), (9, 14)), ([], (30, 9))):
        for count in suffixes:
            whole = (*prefix, *draw(count))
            made.append(Example(f"x:{len(made)}", whole, ((len(prefix) + 2, len(whole)),)))
    return made


@pytest.mark.parametrize("shares", [True, False])
def test_padding_contributes_nothing(shares: bool) -> None:
    """A layer of attention and the loss in float64: the same loss and the same gradients as without padding, also where
    the padding's tokens are others."""
    (row,) = plan_step(examples(), range(9), 4096, shared_prefix=shares).rows
    batch = engine.collate(row, examples())
    bucket = row_buckets.bucket_of(batch.layout)
    made = row_buckets.padded(batch, bucket)
    noise = torch.where(made.input_ids == 0, torch.randint(5, 500, made.input_ids.shape), made.input_ids)
    expected = computed(batch)
    for one in (made, replace(made, input_ids=noise)):
        for found, value in zip(computed(one), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def computed(batch: Batch) -> list[torch.Tensor]:
    """Loss and hits of one layer of packed attention over an embedding, and the gradients of its four matrices."""
    torch.manual_seed(3)
    table = torch.randn(500, 32, dtype=torch.float64)
    weights = [torch.randn(32, 32, dtype=torch.float64).mul_(0.2).requires_grad_() for _part in range(4)]
    x = table[batch.input_ids[0]] + batch.position_ids[0, :, None] / 50
    query, key, value = ((x @ weight).unflatten(1, (4, 8)) for weight in weights[:3])
    attended = attention.packed_attention(query, key, value, batch.layout, 0.35).flatten(1)
    loss, hits = engine.loss((attended @ weights[3])[None], table, batch)
    return [loss.detach(), hits, *torch.autograd.grad(loss, weights)]
