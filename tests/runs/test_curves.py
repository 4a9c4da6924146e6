"""What curves show by themselves: each measure by a curve that has it, and one that nearly has."""

from __future__ import annotations

import math

import trainings

from fasttune.runs import curves
from fasttune.runs.curves import Curve, Evaluation, Point, curve_of


def points(losses: list[float], rate: float | None = 1e-4, norm: float = 1.0) -> list[Point]:
    return [Point(step, loss, None, rate, norm) for step, loss in enumerate(losses, 1)]


def test_divergence_stays_up_and_noise_does_not() -> None:
    falls = [3.0 - 0.02 * n for n in range(100)]
    assert curves.divergence(points(falls)) is None
    rise = curves.divergence(points([*falls, *[6.0] * 20]))
    assert rise is not None and rise.best < 1.2 and rise.worst == rise.last == 6.0
    assert curves.divergence(points([*falls, *[6.0] * 10, *[1.0] * 60])) is None, "it came back"
    memorised = [*falls, *[0.010, 0.018, 0.012, 0.022] * 10]
    assert curves.divergence(points(memorised)) is None, "twice very little is little"
    assert curves.divergence(points([1.0, 9.0])) is None, "two rows are no curve"


def test_a_plateau_needs_a_learning_rate_at_work() -> None:
    losses = [max(2.4, 3.6 - 0.02 * n) for n in range(200)]
    found = curves.plateau(Curve(tuple(points(losses))), 0.3)
    assert found is not None and 40 < found.step <= 101
    ends = [Point(p.step, p.loss, None, 1e-4 * max(0.0, 1 - p.step / 60)) for p in points(losses)]
    assert curves.plateau(Curve(tuple(ends)), 0.3) is None, "the schedule was over by then"
    assert curves.plateau(Curve(tuple(points(losses))), 3.0) is None, "it stands where it should"


def test_a_held_out_plateau_beside_a_falling_training_loss_is_none() -> None:
    """Then it learns its samples, and over-fitting begins."""
    evaluated = tuple(Evaluation(step, 2.0) for step in range(20, 201, 20))
    flat = Curve(tuple(points([1.0] * 200)), evaluated)
    assert curves.plateau(flat, 0.3) == Evaluation(20, 2.0)
    assert curves.plateau(Curve(tuple(points([2.0 - 0.009 * n for n in range(200)])), evaluated), 0.3) is None


def test_what_has_settled() -> None:
    settled = [Evaluation(n * 100, 1 + math.exp(-n)) for n in range(1, 11)]
    assert curves.has_faded(settled)
    assert not curves.has_faded([Evaluation(n * 100, 3 - 0.01 * n) for n in range(1, 11)]), "slow is not settled"
    assert not curves.has_faded([Evaluation(n * 100, 3 - 0.2 * n) for n in range(1, 11)])
    assert not curves.has_faded(settled[:3])


def test_spikes_stand_out_of_their_neighbours_and_of_all() -> None:
    rows = points([1.0] * 100)
    spiked = [Point(p.step, p.loss, None, None, 40.0 if p.step in (2, 60) else 1.0) for p in rows]
    assert [one.step for one in curves.gradient_spikes(spiked)] == [60], "the first steps are rough by nature"
    spread = [Point(p.step, p.loss, None, None, 25.0 if p.step < 50 or p.step % 7 == 0 else 0.01) for p in rows]
    assert curves.gradient_spikes(spread) == [], "memorised data: norms over three orders of magnitude"


def test_a_gradient_that_the_scaler_skips_is_no_illness() -> None:
    rows = points([1.0] * 100)
    skipped = [Point(p.step, p.loss, None, None, math.inf if p.step in (1, 16) else 1.0) for p in rows]
    assert curves.lost_updates(skipped) == []
    to_the_end = [Point(p.step, p.loss, None, None, math.nan if p.step > 97 else 1.0) for p in rows]
    assert [one.step for one in curves.lost_updates(to_the_end)] == [98, 99, 100]
    assert len(curves.lost_updates(points([1.0] * 20 + [math.nan]))) == 1


def test_no_gradient_or_a_loss_of_exactly_zero() -> None:
    assert len(curves.zero_gradients(points([0.0] * 3, norm=0.0))) == 3
    assert curves.zero_gradients(points([0.0] * 3, norm=math.nan)) == []
    assert len(curves.zero_gradients([Point(1, 0.0), Point(2, 1.0)])) == 1


def test_lines_of_a_history_are_a_curve() -> None:
    rows = trainings.good(1)
    curve = curve_of(rows)
    assert len(curve.points) == 300 and [one.step for one in curve.evaluations] == [50, 100, 150, 200, 250, 300]
    assert curve.before(51).evaluations == curve.evaluations[:1] and curve.since(300).points == curve.points[-1:]
    assert Curve(tuple(points([1.0, math.nan]))).finite.losses == [1.0]
