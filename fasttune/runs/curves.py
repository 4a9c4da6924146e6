"""What the curves of a training show by themselves, whoever trained it, and the thresholds of it; judgement.py makes
the verdict of them.

A `Curve` holds the logged steps and the held-out losses of one training, oldest first. Nothing here knows a file or a
person. Levels of a loss differ from base to base and from tokenizer to tokenizer (some trainers even log the sum over
accumulated batches), so nearly every rule compares a run with itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any, NamedTuple

FEW_ROWS = 10  # logged steps: fewer are no curve
PARTS, ROWS_A_PART = 20, 5  # a curve is smoothed by at most so many means, of at least so many rows
# Diverged: the smoothed loss has risen to WORSE times its best, has stayed at STAYED times it to the end, and lost more
# than LOST of what had been learned. Real logs: 1.5 times and more at the end of those that diverged; noise of single
# batches comes to 1.1 times.
WORSE, STAYED, LOST = 1.5, 1.25, 0.25
# A plateau: over half of the steps or more the loss falls by less than FLAT, while the learning rate is on average
# AT_WORK of its peak; at the end of a schedule each curve is flat.
FLAT, TAILS, AT_WORK = 0.01, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), 0.3
TAIL_ROWS, TAIL_EVALUATIONS = 8, 4
MEMORISING = 0.1  # a training loss that falls by more than this on a held-out plateau: it learns, the samples alone
# A spike: a gradient norm of so many times the median of the rows around it, and of so many times the largest such
# median: where norms spread over three orders of magnitude, as they do in memorised data, none of them is one.
SPIKE, ABOVE_ALL, AROUND, SETTLING = 10.0, 3.0, 10, 0.05
SEAM_ROWS = 5  # rows on both sides of a seam that are compared
UNHARMED = 1.25  # a loss after a seam below this many times the one before it was not harmed
FADED, EVEN_SHARE = 0.01, 0.5  # what the last tenth of the steps brings where a held-out loss has settled
SKIPPED = 0.1  # the share of updates with a gradient that is no number, which 16-bit scaling may skip


class Point(NamedTuple):
    """A logged step: loss in nats a supervised token, the rest where the trainer logs it. A named tuple, for a history
    may have 100,000 of them."""

    step: int
    loss: float
    epoch: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A held-out loss (nats a supervised token) and the step after which it was computed."""

    step: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """The logged steps and the held-out losses of one training, oldest first."""

    points: tuple[Point, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()

    @cached_property
    def losses(self) -> list[float]:
        return [point.loss for point in self.points]

    @cached_property
    def finite(self) -> Curve:
        """The curve without losses that are no finite number."""
        points = tuple(one for one in self.points if math.isfinite(one.loss))
        return Curve(points, tuple(one for one in self.evaluations if math.isfinite(one.loss)))

    def since(self, step: int) -> Curve:
        """The curve from a step on."""
        points = tuple(one for one in self.points if one.step >= step)
        return Curve(points, tuple(one for one in self.evaluations if one.step >= step))

    def before(self, step: int) -> Curve:
        """The curve up to a step, that one not included."""
        points = tuple(one for one in self.points if one.step < step)
        return Curve(points, tuple(one for one in self.evaluations if one.step < step))


@dataclass(frozen=True)
class Rise:
    """A smoothed loss at its best and at its worst afterwards, with the steps, and at the end."""

    best: float
    best_step: int
    worst: float
    worst_step: int
    last: float


def curve_of(history: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve of lines of history.jsonl, or of Hugging Face's log history."""
    points = [
        Point(
            int(line["step"]), line["loss"], line.get("epoch"), line.get("learning_rate"), line.get("grad_norm"),
            line.get("mean_token_accuracy"),
        )
        for line in history if "loss" in line
    ]  # fmt: skip
    evaluated = [Evaluation(int(line["step"]), line["eval_loss"]) for line in history if "eval_loss" in line]
    return Curve(tuple(points), tuple(evaluated))


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The curve as means of equal parts, each with the last step of its part; empty below FEW_ROWS rows."""
    if len(points) < FEW_ROWS:
        return []
    count = min(PARTS, len(points) // ROWS_A_PART)
    parts = [points[n * len(points) // count : (n + 1) * len(points) // count] for n in range(count)]
    return [Point(part[-1].step, fmean(one.loss for one in part)) for part in parts]


def divergence(points: Sequence[Point]) -> Rise | None:
    """Where a training loss rose far above its best and stayed there; None where it did not."""
    parts = smoothed(points)
    if len(parts) < 2:
        return None
    at = min(range(len(parts)), key=lambda index: parts[index].loss)
    best, last, learned = parts[at], parts[-1].loss, max(0.0, parts[0].loss - parts[at].loss)
    worst = max(parts[at:], key=lambda part: part.loss)
    rose = worst.loss > WORSE * best.loss and worst.loss - best.loss > LOST * learned
    if not rose or last <= STAYED * best.loss or last - best.loss <= LOST * learned / 2:
        return None
    return Rise(best.loss, best.step, worst.loss, worst.step, last)


# Standing still -----------------------------------------------------------------------------------------------------


def plateau(curve: Curve, good_loss: float) -> Evaluation | None:
    """From which step on a loss stands still although the learning rate is at work, and that loss; else None.

    The held-out loss is asked where there is a curve of it, otherwise the training loss, which may stand still below
    `good_loss`.
    """
    if len(curve.points) < FEW_ROWS or is_warming_up(curve.points):
        return None
    first, last = curve.points[0].step, curve.points[-1].step
    for share in TAILS:
        tail = curve.since(math.ceil(first + share * (last - first)))
        if learning_rate_share(curve.points, tail.points) < AT_WORK:
            continue
        if len(curve.evaluations) > 1:
            found = flat_held_out(tail, last - first)
        else:
            found = flat_training(tail.points) if fmean(tail.losses[-TAIL_ROWS:]) > good_loss else None
        if found:
            return found
    return None


def flat_held_out(tail: Curve, steps: int) -> Evaluation | None:
    """The first held-out loss of a tail where no later one is better or worse by more than FLAT, and the training loss
    does not fall either."""
    evaluated = tail.evaluations
    if len(evaluated) < TAIL_EVALUATIONS or evaluated[-1].step - evaluated[0].step < steps / 2:
        return None
    levels = [one.loss / evaluated[0].loss for one in evaluated]
    falls = relative_fall(tail.points) > MEMORISING
    return evaluated[0] if min(levels) > 1 - FLAT and levels[-1] < 1 + FLAT and not falls else None


def flat_training(points: Sequence[Point]) -> Evaluation | None:
    """The first step of a tail whose training loss does not fall, with the mean loss of the tail."""
    if len(points) < TAIL_ROWS or abs(relative_fall(points)) >= FLAT:
        return None
    return Evaluation(points[0].step, fmean(one.loss for one in points))


def relative_fall(points: Sequence[Point]) -> float:
    """By which share of itself the loss fell from the first to the last quarter of these rows."""
    quarter = max(1, len(points) // 4)
    first = fmean(one.loss for one in points[:quarter])
    return 1 - fmean(one.loss for one in points[-quarter:]) / first if points and first else 0.0


def learning_rate_share(points: Sequence[Point], tail: Sequence[Point]) -> float:
    """The mean learning rate of a tail as a share of the peak; 1 where none is logged."""
    every = [one.learning_rate for one in points if one.learning_rate is not None]
    rates = [one.learning_rate for one in tail if one.learning_rate is not None]
    return fmean(rates) / max(every) if rates and max(every) > 0 else 1.0


def is_warming_up(points: Sequence[Point]) -> bool:
    """Whether a curve ends while its learning rate still rises from the beginning."""
    rates = [one.learning_rate for one in points if one.learning_rate is not None]
    return len(rates) > 1 and rates[-1] == max(rates) and rates[len(rates) // 2] < 0.9 * rates[-1]


def has_faded(evaluated: Sequence[Evaluation]) -> bool:
    """Whether a held-out loss that falls to the end has settled: the last tenth of the steps brought less than 1 %, and
    less than half of its even share of the whole gain. False with fewer than four evaluations."""
    if len(evaluated) < TAIL_EVALUATIONS:
        return False
    first, last = evaluated[0], evaluated[-1]
    before = [one for one in evaluated if one.step <= last.step - 0.1 * last.step]
    if not before or before[-1] == first or last.step == first.step:
        return False
    share = (last.step - before[-1].step) / (last.step - first.step)
    gained = before[-1].loss - last.loss
    return gained < FADED * last.loss and gained < EVEN_SHARE * share * (first.loss - last.loss)


# Gradients ----------------------------------------------------------------------------------------


def gradient_spikes(points: Sequence[Point]) -> list[Point]:
    """The rows whose gradient norm is a spike; those of the first twentieth of the steps are no spikes."""
    rows = [one for one in points if one.grad_norm is not None and math.isfinite(one.grad_norm)]
    if len(rows) < FEW_ROWS:
        return []
    norms = [one.grad_norm or 0.0 for one in rows]
    medians = [median(norms[max(0, n - AROUND) : n + AROUND + 1]) for n in range(len(norms))]
    settled = points[0].step + SETTLING * (points[-1].step - points[0].step)
    least = ABOVE_ALL * max(medians)
    return [row for row, norm, around in zip(rows, norms, medians, strict=True)
            if row.step > settled and norm > SPIKE * around and norm > least]  # fmt: skip


def left_a_trace(points: Sequence[Point], spikes: Sequence[Point]) -> bool:
    """Whether the loss is higher after one of the spikes than it was before it."""
    steps = [one.step for one in points]
    for spike in spikes:
        begins, ends = bisect_left(steps, spike.step), bisect_right(steps, spike.step)
        before = [one.loss for one in points[max(0, begins - SEAM_ROWS) : begins]]
        after = [one.loss for one in points[ends : ends + SEAM_ROWS]]
        if before and after and fmean(after) > UNHARMED * fmean(before):
            return True
    return False


def lost_updates(points: Sequence[Point]) -> list[Point]:
    """The rows from which no finite update came: a loss that is no finite number, and gradients that are none where
    they are more than 16-bit scaling skips, or where they last to the end."""
    losses = [one for one in points if not math.isfinite(one.loss)]
    rows = [one for one in points if one.grad_norm is not None]
    norms = [one for one in rows if not math.isfinite(one.grad_norm or 0.0)]
    at_the_end = len(rows) > 2 and all(one in norms for one in rows[-3:])
    return sorted({*losses, *(norms if at_the_end or len(norms) > SKIPPED * len(rows) else ())},
                  key=lambda one: one.step)  # fmt: skip


def zero_gradients(points: Sequence[Point]) -> list[Point]:
    """The rows without any gradient; where no norm is logged, those with a loss of exactly zero."""
    if any(one.grad_norm is not None for one in points):
        return [one for one in points if one.grad_norm == 0]
    return [one for one in points if one.loss == 0]


def peak_learning_rate(points: Sequence[Point]) -> float | None:
    """The highest learning rate; None where none is logged."""
    return max((one.learning_rate for one in points if one.learning_rate is not None), default=None)
