"""The engines: real arms in real processes compute the same training, each in its own way."""

from __future__ import annotations

import pytest
from bench_matrix import STARTED, Matrix

from fasttune.bench import engines

pytest_plugins = ["bench_matrix"]


@pytest.mark.parametrize("name", ["stock", "fasttune"])
def test_every_arm_computes_the_same_training(matrix: Matrix, name: str) -> None:
    plain, arm = matrix.arms["plain"], matrix.arms[name]
    assert matrix.entry["reference"] == "plain"
    assert arm["status"] == "ok"
    assert arm["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert arm["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert plain["grad_norm"] > 0 and plain["losses"][1] != plain["losses"][0]
    assert arm["work"] == plain["work"]
    assert arm["work"]["samples"] == 4


def test_the_plain_arm_knows_no_unsloth(matrix: Matrix) -> None:
    assert {name: arm.get("unsloth") for name, arm in matrix.arms.items()} == {
        "plain": False, "stock": True, "fasttune": True, "stock-padding-free": None,
    }  # fmt: skip


def test_computed_tokens_are_padded_or_shared(matrix: Matrix) -> None:
    stock, ours = matrix.arms["stock"], matrix.arms["fasttune"]
    assert stock["computed_tokens"] == matrix.arms["plain"]["computed_tokens"] >= stock["work"]["tokens"]
    assert ours["computed_tokens"] < ours["work"]["tokens"] / 2  # four samples share three quarters of their tokens
    assert ours["arithmetic_ratio"] == stock["computed_tokens"] / ours["computed_tokens"]


def test_the_warmup_step_is_short_and_not_counted(matrix: Matrix) -> None:
    for name in STARTED[:-1]:
        assert matrix.measured(name).samples == [3, 4]
        assert matrix.arms[name]["work"]["samples"] == 4
        assert matrix.arms[name]["seconds"] == matrix.measured(name).step_seconds[1]


def test_a_step_in_parts_loses_no_sample() -> None:
    assert engines.even_parts(64, 4) == [16] * 4 and engines.even_parts(7, 3) == [3, 2, 2]
    with pytest.raises(ValueError, match="can't be trained in 3"):
        engines.even_parts(2, 3)
