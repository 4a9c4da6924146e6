"""Useful arithmetic: the matrices of the base by hand, and attention pairs as the dense mask has them."""

from __future__ import annotations

import dataclasses

import torch
from bench_matrix import Matrix
from conftest import REPOSITORY

from fasttune.bench import flops
from fasttune.data.tokenize import Example
from fasttune.recipe.load import load_recipe
from fasttune.training import attention, engine, packing

pytest_plugins = ["bench_matrix"]


def test_useful_flops_are_those_of_the_matrices() -> None:
    """builtin:tiny by hand: 4 layers; q and o 256 x 256, k and v 256 x 128, three of 256 x 768; 5120 tokens."""
    recipe = load_recipe(REPOSITORY / "recipes/quickstart.toml")
    frozen = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768)
    lora = 4 * 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 768))
    work = flops.UsefulWork(tokens=100, supervised_tokens=10, attention_pairs=1000)
    found = flops.useful_flops(REPOSITORY / "fasttune/tiny", recipe.lora, work)
    assert found == 100 * (4 * frozen + 6 * lora) + 10 * 4 * 256 * 5120 + 1000 * 4 * 12 * 256


def test_padding_is_no_use_and_a_shared_prefix_counts_once(matrix: Matrix) -> None:
    measured = dataclasses.replace(matrix.measured("plain"), tokens=[9, 60, 40])
    for computed, useful in ((130, 100), (40, 40)):
        measured = dataclasses.replace(measured, computed_tokens=[9, computed - 10, 10])
        assert flops.useful_work(measured, slice(1, None)).tokens == useful


def test_attention_pairs_are_those_of_the_mask() -> None:
    """Counted in the dense mask that the engine's tests hold attention to."""
    examples = [Example(f"x:{n}", (1, 2, 3, *range(10, 10 + n)), ((4, 3 + n),)) for n in (2, 4, 5)]
    for shared in (True, False):
        (row,) = packing.plan_step(examples, range(3), 100, shared_prefix=shared).rows
        batch = engine.collate(row, examples)
        mask = attention.dense_mask(batch.layout)
        assert flops.attention_pairs(examples, range(3), shared=shared) == int(torch.sum(mask))
        assert (row.tokens < 20) == shared
