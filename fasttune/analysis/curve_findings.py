"""What the curves of a training say, as findings: one function an illness, in the sequence in which they are asked.

The thresholds are those of runs/judgement.py, runs/curves.py and runs/seams.py, and the verdict is that of
`fasttune runs`: what it calls over-fitting is never called healthy here, nor the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from fasttune.analysis.rate_findings import gradient_spikes, is_too_high, learning_rate
from fasttune.analysis.seam_findings import (
    FINE,
    Found,
    finding,
    has_diverged,
    restarted,
    resumed_cleanly,
    schedule_jump,
)
from fasttune.analysis.training_facts import Training
from fasttune.console import Finding, _, ngettext
from fasttune.runs import curves, judgement


def curve_findings(training: Training) -> Found:
    """Everything that the curves say, in the sequence of the rules; healthy where they hold nothing against it."""
    dead = [*not_a_number(training), *zero_gradient(training)]
    if dead or not training.curve.points:
        return dead + no_held_out(training)
    if training.rows < curves.FEW_ROWS and not training.restarts:
        return [*too_few_rows(training), *no_held_out(training)]
    found = [*restarted(training), *diverged(training), *held_out_past_best(training), *schedule_jump(training)]
    found += [*resumed_cleanly(training), *plateau(training), *under_trained(training), *learning_rate(training)]
    found += [*gradient_spikes(training), *not_enough_evidence(training), *no_held_out(training)]
    found += some_zero_gradients(training)
    return healthy(training, found) + found


# Nothing was trained ------------------------------------------------------------------------------------------------


def not_a_number(training: Training) -> Found:
    """Losses or gradients that are no finite numbers."""
    points = training.whole.points
    lost = curves.lost_updates(points)
    held_out = [one for one in training.whole.evaluations if not math.isfinite(one.loss)]
    if not lost and not held_out:
        return []
    steps = [one.step for one in lost] or [one.step for one in held_out]
    what = _("loss or gradient is not a number in {lost} of {rows} logged rows, first at step {first}, last at step "
             "{last}",
             lost=max(len(lost), len(held_out)), rows=len(points), first=steps[0], last=steps[-1])  # fmt: skip
    why = _("such an update changes nothing, or destroys the weights; the usual causes, in this order: attention, "
            "number type (float16), an empty mask, the learning rate")  # fmt: skip
    return [finding(training, "not-a-number", "error", what, why, training.remedies.other_numbers)]


def zero_gradient(training: Training) -> Found:
    """No gradient in nearly all steps: nothing in the data is supervised."""
    points, zero = training.whole.points, curves.zero_gradients(training.whole.points)
    if len(zero) <= 0.9 * len(points):
        return []
    what = _("the gradient is zero in {zero} of {rows} logged rows, from step {first} to step {last}: nothing was "
             "learned",
             zero=len(zero), rows=len(points), first=zero[0].step, last=zero[-1].step)  # fmt: skip
    why = _("no token is supervised: the mask or the template hides the answers, or they were cut off")
    return [finding(training, "zero-gradient", "error", what, why, training.remedies.look_at_mask)]


def some_zero_gradients(training: Training) -> Found:
    """A remark where single steps had no gradient."""
    points = training.curve.points
    zero = [one for one in curves.zero_gradients(points) if one.grad_norm == 0]
    if len(zero) < 0.05 * len(points) or not zero:
        return []
    what = _("the gradient is zero in {zero} of {rows} logged rows, first at step {first}",
             zero=len(zero), rows=len(points), first=zero[0].step)  # fmt: skip
    return [finding(training, "zero-gradient", "info", what, _("their batches had no supervised token"))]


# Held-out loss and training loss ------------------------------------------------------------------------------------


def diverged(training: Training) -> Found:
    """The training loss rose far above its best and stayed there."""
    rise = curves.divergence(training.curve.points)
    if rise is None or not has_diverged(training):
        return []
    what = _("diverged: the loss fell to {best:.3f} (step {best_step}), rose to {worst:.3f} (step {worst_step}) and "
             "ended at {last:.3f}", best=rise.best, best_step=rise.best_step, worst=rise.worst,
             worst_step=rise.worst_step,
             last=rise.last)  # fmt: skip
    why = _("the updates were too large and destroyed what had been learned")
    return [
        finding(training, "diverged", "error", what, why, training.remedies.lower_learning_rate),
        *past_best(training),
    ]


def held_out_past_best(training: Training) -> Found:
    """Over-fitting and what goes with it; where the rise is small, or the best epoch was kept and can be picked, the
    earlier checkpoint comes first."""
    over = over_fitting(training)
    memorised = is_memorised(training)
    evaluated = training.curve.evaluations
    is_small = over and evaluated[-1].loss <= judgement.STEEP_RISE * judgement.best_evaluation(evaluated).loss
    if over and (is_small or training.remedies.pick_best):
        return [*memorised, *past_best(training), *over]
    return [*over, *memorised, *(past_best(training) if over else [])]


def over_fitting(training: Training) -> Found:
    """The held-out loss has risen above its best."""
    if training.judged is None or training.judged.verdict != judgement.OVER_FITTING:
        return []
    evaluated = training.curve.evaluations
    best, last = judgement.best_evaluation(evaluated), evaluated[-1]
    before = [one.loss for one in training.curve.points if one.step <= best.step][-curves.SEAM_ROWS :]
    after = training.curve.losses[-curves.SEAM_ROWS :]
    what = _("over-fitting from step {step} (epoch {epoch:.1f}) on: the held-out loss rose from {best:.3f} to "
             "{last:.3f} ({rise:+.1%}, step {last_step}) while the training loss went from {before:.3f} to {after:.3f}",
             step=best.step, epoch=training.epoch(best.step), best=best.loss, last=last.loss,
             rise=last.loss / best.loss - 1, last_step=last.step, before=fmean(before or after[:1]),
             after=fmean(after))  # fmt: skip
    why = _("it gets better on the samples and worse on everything else, however low the training loss is")
    return [finding(training, "over-fitting", "warning", what, why, training.remedies.fewer_epochs)]


def past_best(training: Training) -> Found:
    """An earlier checkpoint was better than the last one."""
    evaluated = training.curve.evaluations
    if training.keeps_best or not judgement.has_risen(
        evaluated[-1].loss if evaluated else None, [one.loss for one in evaluated]
    ):
        return []
    best = judgement.best_evaluation(evaluated)
    what = _("the best checkpoint was that of step {step} (epoch {epoch:.1f}), with held-out loss {best:.3f}; the "
             "last one has {last:.3f}", step=best.step, epoch=training.epoch(best.step), best=best.loss,
             last=evaluated[-1].loss)  # fmt: skip
    why = {True: _("it is still there"), False: _("it is no longer there: training again up to it brings it back")}
    reason = why[training.best_kept] if training.best_kept is not None else ""
    remedy = training.remedies.pick_best or training.remedies.fewer_epochs
    return [finding(training, "best-checkpoint-was-earlier", "warning", what, reason, remedy)]


def is_memorised(training: Training) -> Found:
    """The samples are known by heart, and there is no held-out loss that says otherwise."""
    points, means = training.curve.points, training.means
    if means is None or not points:
        return []
    first = [one.loss for one in points if one.step <= points[0].step + training.steps_per_epoch]
    is_over = training.epoch(points[-1].step) >= 2
    evaluated = training.curve.evaluations
    held_out = evaluated[-1].loss if evaluated else None
    if not is_over or not judgement.is_memorised(means.loss, fmean(first), held_out):
        return []
    what = _("memorised: the training loss fell from {first:.3f} in the first epoch to {last:.3f} in the last of "
             "{epochs:.1f}", first=fmean(first), last=means.loss, epochs=training.epoch(points[-1].step))  # fmt: skip
    why = (
        _("it knows its samples by heart, and no held-out loss says what that costs on other questions")
        if held_out is None
        else _("it knows its samples by heart; on other samples its loss is {held_out:.3f}", held_out=held_out)
    )
    return [finding(training, "memorised", "warning", what, why, training.remedies.fewer_epochs)]


def wants_fewer_epochs(training: Training) -> bool:
    """Whether the curves say that fewer epochs help: then no other finding advises more."""
    is_over = training.judged is not None and training.judged.verdict == judgement.OVER_FITTING
    return is_over or bool(is_memorised(training))


def wants_more_epochs(training: Training) -> bool:
    """Whether the curves say that more epochs help: then no other finding advises fewer."""
    judged = training.judged
    return judged is not None and (judged.reason == "still-falling" or is_under_trained_by_bands(training))


def is_under_trained_by_bands(training: Training) -> bool:
    """Whether the training loss is above the usual bands where the held-out loss can't decide, and doesn't stand still
    either: of few samples it tells no verdict, but that more epochs bring nothing more."""
    judged, means, evaluated = training.judged, training.means, training.curve.evaluations
    if judged is None or judged.verdict != judgement.CANNOT_TELL or means is None:
        return False
    if len(evaluated) > 1 and (training.held_out_samples or 0) >= judgement.FEW_HELD_OUT:
        before = judgement.an_epoch_before(evaluated, training.steps_per_epoch)
        if not evaluated[-1].loss < judgement.FALL * before.loss:
            return False
    return judgement.is_under_trained(means)


def plateau(training: Training) -> Found:
    """The loss stands still while the learning rate is at work."""
    flat = None if has_diverged(training) else judgement.has_plateau(training.curve)
    if flat is None or (training.judged and training.judged.verdict == judgement.OVER_FITTING):
        return []
    has_held_out = len(training.curve.evaluations) > 1
    last = training.curve.points[-1].step
    what = (
        _("the held-out loss stands still at {loss:.3f} from step {step} to step {last}", loss=flat.loss,
          step=flat.step,
          last=last)
        if has_held_out
        else _("the training loss stands still at {loss:.3f} from step {step} to step {last}", loss=flat.loss,
               step=flat.step, last=last)
    )  # fmt: skip
    why = _("the learning rate is at work and moves nothing: more of the same will not help")
    helps = training.remedies
    remedy = helps.lower_learning_rate if is_too_high(training) else helps.higher_learning_rate
    return [finding(training, "plateau", "warning", what, why, remedy)]


def under_trained(training: Training) -> Found:
    """More training is the first thing to try."""
    judged, means, points = training.judged, training.means, training.curve.points
    if judged is None or means is None or has_diverged(training):
        return []
    why = _("its answers are near those of the base, or beside the point")
    if judged.verdict == judgement.NOTHING_LEARNED:
        what = _("nothing learned: the loss hardly moved, from {first:.3f} at step {step} to {last:.3f} at step "
                 "{last_step}",
                 first=points[0].loss, step=points[0].step, last=means.loss, last_step=points[-1].step)  # fmt: skip
        low = judgement.is_low_learning_rate(points, training.suiting_learning_rate)
        remedy = training.remedies.higher_learning_rate if low else training.remedies.look_at_mask
        return [finding(training, "under-trained", "warning", what, why, remedy)]
    if judged.reason == "still-falling":
        evaluated = training.curve.evaluations
        before = judgement.an_epoch_before(evaluated, training.steps_per_epoch)
        what = _("under-trained: the held-out loss still falls fast, {first:.3f} at step {step}, {last:.3f} at step "
                 "{last_step}", first=before.loss, step=before.step, last=evaluated[-1].loss,
                 last_step=evaluated[-1].step)  # fmt: skip
        return [finding(training, "under-trained", "warning", what, why, training.remedies.more_epochs)]
    if not is_under_trained_by_bands(training):
        return []
    return [finding(training, "under-trained", "warning", by_bands(training), why, training.remedies.more_epochs)]


def by_bands(training: Training) -> str:
    """Under-trained by the usual bands, where no held-out loss can decide."""
    assert training.means is not None
    means, last = training.means, training.curve.points[-1].step
    if judgement.accuracy_band(means.accuracy) is None:
        return _("under-trained by the usual bands: loss {loss:.3f} in the last epoch, up to step {last}",
                 loss=means.loss,
                 last=last)  # fmt: skip
    return _("under-trained by the usual bands: loss {loss:.3f} and token accuracy {accuracy:.1%} in the last epoch, "
             "up to step {last}", loss=means.loss, accuracy=means.accuracy, last=last)  # fmt: skip


# How much can be said -----------------------------------------------------------------------------------------------


def too_few_rows(training: Training) -> Found:
    """Too short a log to judge its curves."""
    what = ngettext("{n} logged step: there is no curve to judge", "{n} logged steps: there is no curve to judge",
                    training.rows)  # fmt: skip
    why, remedy = _("train longer, or log more often"), training.remedies.more_epochs
    return [finding(training, "not-enough-evidence", "info", what, why, remedy)]


def not_enough_evidence(training: Training) -> Found:
    """Held-out samples or evaluations too few to say anything."""
    evaluated, samples = training.curve.evaluations, training.held_out_samples
    if not evaluated:
        return []
    if samples is not None and samples < judgement.ENOUGH_HELD_OUT:
        what = ngettext("not enough evidence: {n} held-out sample, and its loss moves by chance",
                        "not enough evidence: {n} held-out samples, and their loss moves by chance",
                        samples)  # fmt: skip
        why = _("hold out {enough} or more before you believe it", enough=judgement.ENOUGH_HELD_OUT)
        return [finding(training, "not-enough-evidence", "info", what, why, training.remedies.hold_out)]
    if len(evaluated) > 1 or has_diverged(training):
        return []
    what = _("not enough evidence: the held-out loss was computed once ({loss:.3f} at step {step})",
             loss=evaluated[0].loss, step=evaluated[0].step)  # fmt: skip
    why, remedy = _("whether it falls or rises is unknown"), training.remedies.more_epochs
    return [finding(training, "not-enough-evidence", "info", what, why, remedy)]


def no_held_out(training: Training) -> Found:
    """No held-out loss at all."""
    if training.whole.evaluations:
        return []
    if training.held_out_samples:
        what = _("not enough evidence: it was not evaluated yet")
        return [finding(training, "not-enough-evidence", "info", what, "", training.remedies.more_epochs)]
    what = _("nothing is held out: whether it over-fits can't be told from its training loss")
    return [finding(training, "no-held-out-data", "info", what, "", training.remedies.hold_out)]


def healthy(training: Training, found: Sequence[Finding]) -> Found:
    """A held-out loss that fell and stayed at its best, and nothing against it."""
    evaluated, judged = training.curve.evaluations, training.judged
    against = [one for one in found if one.level != "info" or one.code == "not-enough-evidence"]
    if against or judged is None or judged.verdict not in FINE or len(evaluated) < 2:
        return []
    best = judgement.best_evaluation(evaluated)
    if training.keeps_best and best != evaluated[-1]:
        what = _("healthy: the held-out loss fell from {first:.3f} (step {first_step}) to its best, {best:.3f} (step "
                 "{best_step}), and the adapter of that step is served", first=evaluated[0].loss,
                 first_step=evaluated[0].step, best=best.loss, best_step=best.step)  # fmt: skip
        return [finding(training, "healthy", "info", what, "", training.remedies.talk)]
    what = _("healthy: the held-out loss fell from {first:.3f} (step {first_step}) to its best, {best:.3f} (step "
             "{best_step}), and ended there or close to it ({last:.3f}, step {last_step})",
             first=evaluated[0].loss,
             first_step=evaluated[0].step, best=best.loss, best_step=best.step, last=evaluated[-1].loss,
             last_step=evaluated[-1].step)  # fmt: skip
    return [finding(training, "healthy", "info", what, "", training.remedies.talk)]
