"""Where a training was taken up again, and whether it continued there or began from an untrained model: seams.

They are seen from the curves alone: the step or epoch counter falls, the learning rate rises again, or the loss is at
once that of the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from statistics import fmean, median

from fasttune.runs.curves import FEW_ROWS, SEAM_ROWS, UNHARMED, Curve, Point

REPEATED_SCALE = 0.1  # a learning rate that rises by more than this share of its peak, after it has fallen, has jumped
BEFORE_ROWS, NOISE = (
    10,
    6.0,
)  # a restart is a rise above so many rows by so many times the median difference of two rows
RELEARNED, AT_ONCE = 0.5, 0.75  # of what had been learned, how much is lost at a seam where a training began again
LEARNED = 0.2  # of the first loss: a training that has learned less has nothing to lose


@dataclass(frozen=True)
class Seam:
    """Where a training was taken up again: the steps and the losses on both sides, means of a few rows."""

    step_before: int
    step: int
    loss_before: float
    loss: float


@dataclass(frozen=True)
class Jump:
    """A learning rate that rises after it has fallen: at which step, from what to what."""

    step: int
    before: float
    after: float


def joined(attempts: Sequence[Curve]) -> Curve:
    """The training that ended last: its steps, and before them those of earlier ones that it did not train again."""
    whole = attempts[0]
    for later in attempts[1:]:
        kept = whole.before(later.points[0].step) if later.points else whole
        whole = Curve((*kept.points, *later.points), (*kept.evaluations, *later.evaluations))
    return whole


def learning_rate_jumps(points: Sequence[Point]) -> list[Jump]:
    """Where the learning rate rises again after it has fallen; none where it does so by plan, in equal cycles up to the
    same peak."""
    rows = [one for one in points if one.learning_rate is not None]
    peak = top = valley = 0.0
    at, jumps, falling = 0, [], False
    for index, row in enumerate(rows):
        rate = row.learning_rate or 0.0
        if falling and rate - valley > REPEATED_SCALE * peak:
            jumps.append(Jump(rows[min(at + 1, index)].step, valley, rate))
            falling, top = False, rate
        peak, top = max(peak, rate), max(top, rate)
        if not falling and rate < (1 - REPEATED_SCALE) * top:
            falling, valley, at = True, rate, index
        if falling and rate <= valley:
            valley, at = rate, index
    return [] if are_cycles(jumps, peak) else jumps


def are_cycles(jumps: Sequence[Jump], peak: float) -> bool:
    """Whether jumps are those of a schedule with restarts: to the same peak, at equal distances."""
    if len(jumps) < 2 or any(jump.after < 0.95 * peak for jump in jumps):
        return False
    gaps = [later.step - earlier.step for earlier, later in pairwise(jumps)]
    return max(gaps) <= 1.1 * min([*gaps, jumps[0].step])


# Seams --------------------------------------------------------------------------------------------------------------


def seam(before: Curve, after: Curve) -> Seam:
    """The seam between two parts of a training."""
    earlier, later = before.points[-SEAM_ROWS:], after.points[:SEAM_ROWS]
    return Seam(earlier[-1].step, later[0].step, fmean(one.loss for one in earlier), fmean(one.loss for one in later))


def seams(curve: Curve) -> list[Seam]:
    """Where the epoch counter falls, or the learning rate jumps at once: the training was taken up again there."""
    points = curve.points
    steps = {one.step for one, last in zip(points[1:], points, strict=False)
             if one.epoch is not None and last.epoch is not None and one.epoch < last.epoch - 0.05}  # fmt: skip
    steps |= {jump.step for jump in learning_rate_jumps(points)}
    parts = [(curve.before(step), curve.since(step)) for step in sorted(steps)]
    return [seam(before, after) for before, after in parts if before.points and after.points]


def began_again(before: Curve, after: Curve, first_loss: float) -> Seam | None:
    """The seam where the loss after it is that of an untrained model again; None where the training continued.

    `first_loss` is the one that the training began with. The first row after the seam is compared, for a loss that
    begins again falls fast.
    """
    found = seam(before, after)
    learned = first_loss - found.loss_before
    if learned < LEARNED * first_loss or after.points[0].loss < found.loss_before + RELEARNED * learned:
        return None
    return replace(found, loss=after.points[0].loss)


def restarts(curve: Curve) -> list[Seam]:
    """Where the loss of one training is at once that of an untrained model, and falls from there once more."""
    if len(curve.points) < FEW_ROWS:
        return []
    known, losses, first = {one.step for one in seams(curve)}, curve.losses, fmean(curve.losses[:3])
    noise = median(abs(b - a) for a, b in pairwise(losses))
    lowest = [*accumulate(reversed(losses), min)][::-1]  # from each row to the end
    rows = range(SEAM_ROWS, len(curve.points) - 1)
    return [
        one for index in rows if (one := restart_at(curve.points, losses, index, known, first, lowest[index], noise))
    ]


def restart_at(
    points: Sequence[Point], losses: Sequence[float], index: int, known: set[int], first: float, lowest: float,
    noise: float,
) -> Seam | None:  # fmt: skip
    """The restart before the row `index`, None where there is none; at the seams that are `known` by their epoch
    counter or learning rate a smaller rise is one.

    `first` is the loss that the training began with, `lowest` the lowest from that row on, `noise` the median
    difference of two rows.
    """
    before = fmean(losses[max(0, index - BEFORE_ROWS) : index])
    learned, rise = first - before, losses[index] - before
    halfway = before + RELEARNED * learned
    at_seam = any(one.step in known for one in points[index - 1 : index + 2])
    least = RELEARNED if at_seam else AT_ONCE
    if learned < LEARNED * first or not least * learned < rise < UNHARMED * first or losses[index - 1] > halfway:
        return None
    if lowest > halfway or not (at_seam or losses[index + 1] > halfway):
        return None  # it diverged, or a single batch was hard
    return Seam(points[index - 1].step, points[index].step, before, losses[index]) if rise > NOISE * noise else None
