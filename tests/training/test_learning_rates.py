"""Which learning rate every step has: the schedule's closed form over the total, across continued and resumed runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import Shared
from series import Series, copied, largest_difference, rates, steps, trained_parent

from fasttune.runs import documents
from fasttune.runs.documents import Provenance

PEAK = 2e-3  # learning rate of the recipe in series.py


def schedule(kind: str, warmup: float, total: int) -> list[float]:
    """The closed form: the learning rate of each of `total` steps. `warmup` is a number of steps, below 1 a share."""
    rising = math.ceil(warmup * total) if warmup < 1 else int(warmup)
    found = []
    for step in range(total):
        done = (step - rising) / (total - rising)
        after = {
            "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0, "constant_with_warmup": 1.0,
        }[kind]  # fmt: skip
        found.append(PEAK * ((step + 1) / (rising + 1) if step < rising else after))
    return found


def continued(run: Path) -> tuple[float | None, float | None, float | None]:
    """Of a run's last start from a checkpoint: its step, and the learning rates before and after it."""
    shown = documents.read(run / "provenance.json", Provenance).continuations[-1]
    return shown.step, shown.learning_rate_before, shown.learning_rate


@pytest.mark.parametrize(
    ("kind", "warmup"),
    [
        ("linear", 0.3), ("cosine", 3), ("constant_with_warmup", 0.3),
        pytest.param("constant", 0, marks=pytest.mark.slow),
        pytest.param("linear", 3, marks=pytest.mark.slow), pytest.param("cosine", 0.3, marks=pytest.mark.slow),
        pytest.param("constant_with_warmup", 3, marks=pytest.mark.slow),
        pytest.param("linear", 0, marks=pytest.mark.slow), pytest.param("cosine", 8, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_step_has_its_rate(tmp_path: Path, kind: str, warmup: float) -> None:
    """At first 6 steps; then, over an incremental run that is stopped and resumed, 11. Each start from a checkpoint
    records the learning rates of the step before it and of the step after it."""
    series, more = Series.new(tmp_path), ("continue.add_epochs=1.5",)
    given = () if kind == "constant" else (f"train.warmup_steps={warmup}",)
    short, long = schedule(kind, warmup, 6), schedule(kind, warmup, 11)
    series.train("train.epochs=2", f"train.lr_scheduler_type={kind}", *given)
    series.stop(*more, flags="--continue incremental")
    assert continued(series.run(2)) == pytest.approx((6, short[5], long[6]), abs=1e-15)
    stopped_at = steps(series.run(2))[-1]
    series.train(*more, flags="--continue incremental")
    assert continued(series.run(2)) == pytest.approx((stopped_at, long[stopped_at - 1], long[stopped_at]), abs=1e-15)
    assert rates(series.run(1)) == pytest.approx(short, abs=1e-15)
    assert rates(series.run(2)) == pytest.approx(long[6:], abs=1e-15)


def test_custom_changes_the_rate_of_a_checkpoint(shared: Shared, tmp_path: Path) -> None:
    series = copied(trained_parent(shared), tmp_path / "series")
    series.train("continue.add_epochs=1", "train.learning_rate=1e-4", flags="--continue custom")
    expected = [rate * 1e-4 / PEAK for rate in schedule("linear", 0.03, 9)[6:]]
    assert rates(series.run(2)) == pytest.approx(expected, abs=1e-15)
    assert continued(series.run(2)) == pytest.approx((6, rates(series.run(1))[-1], expected[0]), abs=1e-15)


def test_the_first_new_step_is_taken_at_the_rate_that_is_shown(shared: Shared, tmp_path: Path) -> None:
    """Adam moves a weight by about the learning rate. Where the parent's schedule ended at 0 the first new step moves,
    and where the recipe's learning rate is next to nothing it does not: neither is taken at a learning rate that the
    checkpoint brought along."""
    moving, still = (copied(trained_parent(shared), tmp_path / name) for name in ("moving", "still"))
    moving.train("continue.add_epochs=0.3", flags="--continue incremental")
    assert steps(moving.run(2)) == [7] and rates(moving.run(2)) == pytest.approx([PEAK / 6])
    assert 1e-4 < largest_difference(moving.run(1), moving.run(2)) < 1e-3
    still.train("continue.add_epochs=0.3", "train.learning_rate=1e-9", flags="--continue custom")
    assert largest_difference(still.run(1), still.run(2)) < 1e-8

    constant = Series.new(tmp_path / "constant")
    constant.train("train.epochs=2", "train.lr_scheduler_type=constant")
    constant.train("continue.add_epochs=0.3", "train.learning_rate=1e-9", flags="--continue custom")
    assert largest_difference(constant.run(1), constant.run(2)) < 1e-8
