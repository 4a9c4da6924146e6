"""The verdict on a run, and every threshold that judges a run. Held-out loss decides where there is one:

    the training loss rose far above its best and stayed there          diverged
    the training loss hardly moved                                      nothing-learned
    no held-out loss, fewer than 20 samples, or a single evaluation     cannot-tell
    it ended more than 1 % above its best                               over-fitting
    it ended above its best, by less                                    fair
    it is at its best, and still fell by more than 2 % an epoch         not-enough
    it is at its best                                                   good; below 0.1: excellent

1 % because that is what separates the runs of docs/linzhi.md: from 4.549 the held-out loss went to 4.551 (0.04 %) in a
model that answers, and to 4.773 (4.9 %) in one that babbles. 2 % because the run of its recipe, which ended where a
further epoch over-fits, fell by 0.8 % in its last epoch, and those that another epoch helped by 1.2 to 1.8 %. A loss
that is evaluated several times an epoch and has settled (curves.has_faded) falls no longer, whatever the epoch brought.

A training loss alone can't tell learning from over-fitting. What users take from it (below 0.1 excellent, to 0.3 good,
to 0.5 fair) is `loss_band`, which is shown as theirs and decides nothing. `fasttune diagnose` and `fasttune runs` both
ask here; what the curves show besides is in curves.py, with its thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.runs import curves
from fasttune.runs.bands import RATE_IN_BAND
from fasttune.runs.curves import Curve, Evaluation, Point
from fasttune.runs.history import EpochMeans, last_epoch

BANDS = ((0.1, "excellent"), (0.3, "good"), (0.5, "fair"))
ACCURACY_BANDS = ((0.95, "excellent"), (0.9, "good"), (0.8, "fair"))
NOT_ENOUGH, OVER_FITTING, CANNOT_TELL, NOTHING_LEARNED = "not-enough", "over-fitting", "cannot-tell", "nothing-learned"
DIVERGED = "diverged"
RISE = 1.01  # a held-out loss above this many times its best has risen
STEEP_RISE = 1.05  # above this many times, it is more than an epoch too many
FALL = 0.98  # a held-out loss below this many times what it was an epoch before still falls
MOVED = 0.98  # a training loss above this many times what it was at first has hardly moved
MOVED_SLOWLY = 0.9  # the same, where the learning rate is low
FEW_HELD_OUT = 2  # the loss of fewer held-out samples tells nothing, and is not shown
ENOUGH_HELD_OUT = 20  # the loss of fewer held-out samples moves by chance: no verdict is built on it
GAP = 0.5  # a held-out loss this far above the training loss: the samples are learned, the persona is not
UNDER_TRAINED_LOSS, UNDER_TRAINED_ACCURACY = 0.5, 0.8  # above the one or below the other: too little training
MEMORISED_LOSS, MEMORISED_SHARE = 0.1, 0.25  # of the loss, and of the loss of the first epoch
LOW, HIGH = 0.25, 4.0  # so much of the learning rate that suits (bands.py) is low, and more than so much is high
IDLE = 0.1  # a peak below this share of the one that suits moves nothing by itself: no plateau is told from it


@dataclass(frozen=True)
class Judgement:
    """A verdict and the reason for it.

    The reasons are loss-rose; loss-hardly-moved; no-held-out, one-held-out-sample, few-held-out, not-evaluated and
    evaluated-once; past-best, before-best (an earlier epoch is picked), above-best, still-falling and at-best.
    """

    verdict: str
    reason: str


def judge(
    history: Sequence[Mapping[str, Any]],
    steps_per_epoch: int,
    held_out_samples: int | None,
    *,
    from_base: bool = True,
    keeps_best: bool = False,
    served: float | None = None,
) -> Judgement | None:
    """The verdict on a training by its history lines, oldest first; None where no step was logged.

    `held_out_samples` is None where nobody knows how many there are. `from_base`: the first line is that of a base, so
    that the loss must have fallen since. `keeps_best`: early stopping or the person has made the best one the
    adapter; `served` is the held-out loss of the adapter where that is not the last one.
    """
    if last_epoch(history, steps_per_epoch) is None:
        return None
    curve = curves.curve_of(history)
    evaluated = curve.evaluations
    if not keeps_best and curves.divergence(curve.finite.points):
        return Judgement(DIVERGED, "loss-rose")
    if from_base and not has_learned(curve, steps_per_epoch):
        return Judgement(NOTHING_LEARNED, "loss-hardly-moved")
    if not evaluated or (held_out_samples is not None and held_out_samples < ENOUGH_HELD_OUT):
        return Judgement(CANNOT_TELL, why_nobody_can_tell(held_out_samples, bool(evaluated)))
    reached = min(one.loss for one in evaluated) if keeps_best else served
    if reached is not None and is_before_best(evaluated, reached):
        return Judgement(NOT_ENOUGH, "before-best")
    return judge_held_out(evaluated, steps_per_epoch, evaluated[-1].loss if reached is None else reached)


def why_nobody_can_tell(held_out_samples: int | None, is_evaluated: bool) -> str:
    """The reason of cannot-tell where there is no held-out loss, or one of too few samples."""
    reasons = {0: "no-held-out", 1: "one-held-out-sample"}
    if held_out_samples in reasons:
        return reasons[held_out_samples]
    return "few-held-out" if is_evaluated else "not-evaluated"


def judge_held_out(evaluated: Sequence[Evaluation], steps_per_epoch: int, reached: float) -> Judgement:
    """The verdict by one or more held-out losses, for an adapter that has `reached` one of them."""
    best, last = best_evaluation(evaluated), evaluated[-1]
    if not all(math.isfinite(one.loss) for one in evaluated):
        return Judgement(CANNOT_TELL, "not-evaluated")
    if reached > RISE * best.loss:
        return Judgement(OVER_FITTING, "past-best")
    if reached > best.loss:
        return Judgement("fair", "above-best")
    if len(evaluated) == 1:
        return Judgement(CANNOT_TELL, "evaluated-once")
    if reached < BANDS[0][0]:
        return Judgement("excellent", "at-best")
    before = an_epoch_before(evaluated, steps_per_epoch)
    within = sum(one.step > before.step for one in evaluated)
    has_settled = within > 1 and curves.has_faded(evaluated)
    if last.loss == best.loss and last.loss < FALL * before.loss and not has_settled:
        return Judgement(NOT_ENOUGH, "still-falling")
    return Judgement("good", "at-best")


def is_before_best(evaluated: Sequence[Evaluation], reached: float) -> bool:
    """Whether an adapter that has `reached` one of the held-out losses comes before the best one, and not past it."""
    own = min(reversed(evaluated), key=lambda one: abs(one.loss - reached))  # of equal ones the last
    return own.loss > best_evaluation(evaluated).loss and own.step < best_evaluation(evaluated).step


def an_epoch_before(evaluated: Sequence[Evaluation], steps_per_epoch: int) -> Evaluation:
    """The newest evaluation that is at least an epoch older than the last one; the first one where none is."""
    return next((one for one in reversed(evaluated) if one.step <= evaluated[-1].step - steps_per_epoch), evaluated[0])


def evaluations(history: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """The held-out losses among history lines, oldest first."""
    return [Evaluation(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]


def best_evaluation(evaluated: Sequence[Evaluation]) -> Evaluation:
    """The lowest held-out loss, of equal ones the first."""
    return min(evaluated, key=lambda one: one.loss)


def has_learned(curve: Curve, steps_per_epoch: int) -> bool:
    """Whether the training loss has fallen by more than noise, or is low.

    Compared are the first and the last epoch, which hold the same samples; of a shorter training its first and its last
    quarter. True where there is too little to compare.
    """
    points = curve.points
    steps = points[-1].step - points[0].step + 1 if points else 0
    span = steps_per_epoch if steps >= 2 * steps_per_epoch else max(1, steps // 4)
    if len(points) < 2 or steps < 2:
        return True
    begins, ends = points[0].step + span, points[-1].step - span
    first = [one.loss for one in points if one.step < begins]
    last = [one.loss for one in points if one.step > ends]
    reached = sum(last) / len(last)
    least = MOVED_SLOWLY if is_low_learning_rate(points) and not curves.has_faded(curve.evaluations) else MOVED
    return reached <= UNDER_TRAINED_LOSS or not reached > least * sum(first) / len(first)


def has_plateau(curve: Curve) -> Evaluation | None:
    """From which step on the held-out loss, else the training loss, stands still although the learning rate is at work,
    and that loss; None where none does."""
    curve = curve.finite
    peak = curves.peak_learning_rate(curve.points)
    if not curve.points or (peak is not None and peak < IDLE * RATE_IN_BAND):
        return None
    return curves.plateau(curve, BANDS[1][0])


def is_low_learning_rate(points: Sequence[Point], suits: float = RATE_IN_BAND) -> bool:
    """Whether the highest learning rate of the logged steps is low beside the one that suits; False where none is
    logged."""
    peak = curves.peak_learning_rate(points)
    return peak is not None and peak <= LOW * suits


def loss_band(loss: float | None) -> str | None:
    """What users take from a training loss alone; None where no step was logged."""
    return None if loss is None else next((word for limit, word in BANDS if loss < limit), NOT_ENOUGH)


def accuracy_band(accuracy: float | None) -> str | None:
    """What users take from a token accuracy alone; None where none was logged."""
    if accuracy is None or not math.isfinite(accuracy):
        return None
    return next((word for limit, word in ACCURACY_BANDS if accuracy > limit), NOT_ENOUGH)


def is_memorised(reached: float, first_epoch: float, held_out: float | None) -> bool:
    """Whether a training loss, by that of the first epoch and the held-out loss (None: unknown), says that the samples
    are known by heart and nothing beyond them."""
    is_low = reached < MEMORISED_LOSS and reached < MEMORISED_SHARE * first_epoch
    return is_low and (held_out is None or is_far_above(held_out, reached))


def has_risen(reached: float | None, evaluated: Sequence[float]) -> bool:
    """Whether reached > RISE * min(evaluated): the held-out loss has risen above its best by more than noise."""
    return reached is not None and reached > RISE * min(evaluated, default=reached)


def is_under_trained(means: EpochMeans) -> bool:
    """Whether the last epoch's means say that more training is the first thing to try."""
    return means.loss > UNDER_TRAINED_LOSS or means.accuracy < UNDER_TRAINED_ACCURACY


def is_far_above(held_out: float, loss: float) -> bool:
    """Whether a held-out loss is so far above the training loss that the samples are learned and the persona is not."""
    return held_out - loss > GAP
