"""An arm that is not the reference's training is named and has no speed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from bench_matrix import Matrix

from fasttune.bench import comparison
from fasttune.bench.arms import ARMS
from fasttune.bench.comparison import Outcome
from fasttune.bench.jobs import Measured

pytest_plugins = ["bench_matrix"]
ALLOWED = comparison.TOLERANCES["float32"]
TIMED = slice(1, None)
Spoil = Callable[[Measured], dict[str, Any]]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: {"losses": [m.losses[0] * 1.0002, *m.losses[1:]]}, "first_loss off by 2.0e-04"),
        (lambda m: {"losses": [*m.losses[:-1], m.losses[-1] * 1.003]}, "later_losses off by 3.0e-03"),
        (lambda m: {"losses": [math.nan, *m.losses[1:]]}, "not finite"),
        (lambda m: {"grad_norms": [0.0, *m.grad_norms[1:]]}, "gradient is zero"),
        (lambda m: {"grad_norms": [m.grad_norms[0] * 0.99, *m.grad_norms[1:]]}, "grad_norm off by 1.0e-02"),
        (lambda m: {"supervised_tokens": [count + 1 for count in m.supervised_tokens]}, "supervised_tokens a step"),
        (lambda m: {"precision": "bfloat16"}, "computes in bfloat16"),
        (lambda m: {"samples": [count - 1 for count in m.samples]}, "samples a step"),
    ],
)
def test_what_is_not_the_reference_is_named(matrix: Matrix, spoil: Spoil, why: str) -> None:
    reference, arm = matrix.measured("plain"), matrix.measured("fasttune")
    assert comparison.differences(arm, reference, ALLOWED) == []
    spoiled = dataclasses.replace(arm, **spoil(arm))
    assert any(why in text for text in comparison.differences(spoiled, reference, ALLOWED))


def test_an_arm_that_is_wrong_in_a_later_round_is_invalid(matrix: Matrix) -> None:
    reference, good = matrix.measured("plain"), matrix.measured("fasttune")
    bad = dataclasses.replace(good, losses=[loss * 2 for loss in good.losses])
    plain = Outcome(ARMS["plain"], (reference,))
    entry = comparison.arm_entry(Outcome(ARMS["fasttune"], (good, bad)), TIMED, plain, ALLOWED)
    assert entry["status"] == "invalid"


def test_rates_are_those_of_the_median_round(matrix: Matrix) -> None:
    rounds = [dataclasses.replace(matrix.measured("plain"), step_seconds=[9.0, seconds]) for seconds in (4.0, 1.0, 2.0)]
    fields = comparison.speed_fields(rounds, TIMED)
    assert fields["rounds_seconds"] == [4.0, 1.0, 2.0] and fields["seconds"] == 2.0
    assert fields["samples_per_second"] == {"median": 2.0, "min": 1.0, "max": 4.0}  # 4 samples
    assert fields["steps_per_second"]["median"] == 0.5


def test_only_valid_arms_are_compared_with_stock() -> None:
    entries = [
        {"name": name, "status": status, "seconds": seconds, "computed_tokens": tokens}
        for name, status, seconds, tokens in (
            ("stock", "ok", 6.0, 300), ("fasttune", "ok", 2.0, 100), ("wrong", "invalid", 1.0, 100),
        )
    ]  # fmt: skip
    comparison.add_speedups(entries)
    assert (entries[1]["speedup"], entries[1]["arithmetic_ratio"]) == (3.0, 3.0)
    assert "speedup" not in entries[2]


def test_the_reference_is_the_plainest_arm_that_ran(matrix: Matrix) -> None:
    ran = (matrix.measured("plain"),)
    outcomes = [Outcome(ARMS["fasttune"], ran), Outcome(ARMS["stock"], ran), Outcome(ARMS["plain"], failed="x")]
    assert comparison.choose_reference(outcomes) is outcomes[1]
    assert comparison.choose_reference(outcomes[:1]) is outcomes[0]
    assert comparison.choose_reference(outcomes[2:]) is None
