"""Seams: continued, restarted, a learning rate that jumps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trainings

from fasttune.runs import seams
from fasttune.runs.curves import Curve, Point, curve_of
from fasttune.runs.seams import Jump


def rates(values: list[float]) -> list[Point]:
    return [Point(step, 1.0, None, rate) for step, rate in enumerate(values, 1)]


def test_a_warmup_is_no_jump_and_a_rise_after_a_fall_is_one() -> None:
    once = [trainings.linear(step) for step in range(1, 301)]
    assert seams.learning_rate_jumps(rates(once)) == []
    (jump,) = seams.learning_rate_jumps(rates([*once, *[1e-4] * 5]))
    assert (jump.step, jump.after) == (301, 1e-4) and jump.before < 1e-6
    slowly = [*once, *[n * 1e-5 for n in range(1, 15)]]
    assert [one.step for one in seams.learning_rate_jumps(rates(slowly))] == [301], "a second warmup begins there"
    assert seams.learning_rate_jumps(rates([2e-4] * 50)) == []


def test_cycles_by_plan_are_no_jumps() -> None:
    cycle = [2e-4 * (1 - n / 50) for n in range(50)]
    assert seams.learning_rate_jumps(rates(cycle * 4)) == []
    assert seams.learning_rate_jumps(rates(cycle * 2)) == [Jump(51, cycle[-1], 2e-4)]
    assert len(seams.learning_rate_jumps(rates([*cycle, *cycle[25:], *cycle]))) == 2, "not to the same peak"


def test_a_seam_by_the_epoch_counter() -> None:
    points = [Point(step, 1.0, step / 10 if step < 50 else (step - 30) / 20, 1e-4) for step in range(1, 100)]
    (seam,) = seams.seams(Curve(tuple(points)))
    assert (seam.step_before, seam.step, seam.loss) == (49, 50, 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_restarts_within_one_counter(seed: int) -> None:
    """Weights were lost and the counter kept: at 84 and 168, whatever the noise."""
    curve = curve_of(trainings.restarted(seed, step_counter_falls=False))
    assert [one.step for one in seams.restarts(curve)] == [85, 169]
    assert all(abs(one.loss_before - 0.5) < 0.1 and one.loss > 2.5 for one in seams.restarts(curve))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("made", [*trainings.HEALTHY, trainings.diverged, trainings.too_high, trainings.lengthened])
def test_what_is_no_restart(made: Callable[[int], trainings.Rows], seed: int) -> None:
    assert seams.restarts(curve_of(made(seed))) == []


def test_a_single_hard_batch_is_no_restart() -> None:
    losses = [3.0 - 0.05 * n for n in range(50)]
    losses[30] = 2.9
    assert seams.restarts(Curve(tuple(Point(n, loss) for n, loss in enumerate(losses, 1)))) == []


def test_joined_trainings_hold_each_step_once() -> None:
    rows = trainings.continued(1)
    parts = (curve_of(rows[:180]), curve_of(rows[180:]))
    whole = seams.joined(parts)
    assert [one.step for one in whole.points] == list(range(1, 301))
    assert whole.points[150:] == parts[1].points
    assert seams.began_again(*parts, first_loss=3.0) is None
    again = (curve_of(trainings.restarted(1)[:84]), curve_of(trainings.restarted(1)[84:168]))
    found = seams.began_again(*again, first_loss=3.7)
    assert found is not None and (found.step_before, found.step) == (84, 1)
