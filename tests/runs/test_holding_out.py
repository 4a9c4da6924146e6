"""One rule says how many samples to hold out, and everything that proposes a share proposes that one."""

from __future__ import annotations

import pytest

from fasttune.planning.init import val_line
from fasttune.runs.holding_out import HOLD_OUT_FROM, LEFT_TO_TRAIN, share_to_choose_by, share_to_hold_out
from fasttune.runs.judgement import ENOUGH_HELD_OUT, FEW_HELD_OUT

EVERY = range(1, 3001)


def held_out(samples: int) -> int:
    """As dataset.split counts them."""
    return max(1, round(share_to_hold_out(samples) * samples))


def test_a_verdict_is_possible_as_soon_as_a_third_is_enough_and_enough_is_left_to_train() -> None:
    assert all(held_out(n) >= ENOUGH_HELD_OUT for n in EVERY if n >= 3 * ENOUGH_HELD_OUT)
    assert all(held_out(n) >= FEW_HELD_OUT and n - held_out(n) >= LEFT_TO_TRAIN for n in EVERY if n >= HOLD_OUT_FROM)
    assert all(held_out(n) <= n / 3 + 1 for n in EVERY)


@pytest.mark.parametrize(
    ("samples", "count"),
    [(22, 2), (25, 5), (30, 10), (60, 20), (100, 20), (200, 20), (500, 50), (1000, 100), (3000, 120)],
)
def test_the_table(samples: int, count: int) -> None:
    assert held_out(samples) == count


@pytest.mark.parametrize("samples", [22, 30, 60, 300, 2000])
def test_the_same_share_everywhere(samples: int) -> None:
    share = share_to_hold_out(samples)
    assert val_line(["my.jsonl"], samples).value == share_to_choose_by(samples) == share


@pytest.mark.parametrize(("samples", "share"), [(1000, 0.1), (200, 0.1), (100, 0.2), (58, 0.33), (1, 0.33)])
def test_a_hundred_samples_hold_out_a_fifth(samples: int, share: float) -> None:
    assert share_to_hold_out(samples) == share


@pytest.mark.parametrize("samples", [2, 3, 5, 10, 21])
def test_two_can_be_compared_by_two_samples(samples: int) -> None:
    assert round(share_to_choose_by(samples) * samples) >= min(FEW_HELD_OUT, samples // 2)
    assert share_to_choose_by(samples) <= 0.5
