"""What the seams of a training say: restarted instead of continued, continued without harm, a learning rate that
jumps."""

from __future__ import annotations

from fasttune.analysis.training_facts import Training
from fasttune.console import Finding, Level, _, ngettext
from fasttune.runs import curves, judgement, seams
from fasttune.runs.seams import Seam

FINE = ("excellent", "good", "fair")
Found = list[Finding]


def finding(training: Training, code: str, level: Level, what: str, why: str = "", remedy: str = "") -> Finding:
    """A finding about a training; `remedy` is a command or a setting, shown in backticks."""
    return Finding(code, level, training.where, what, why, f"`{remedy}`" if remedy else "")


def has_diverged(training: Training) -> bool:
    """Whether the verdict is that it diverged."""
    return training.judged is not None and training.judged.verdict == judgement.DIVERGED


def restarted(training: Training) -> Found:
    """The loss of an untrained model, once more: the training did not continue."""
    again = training.restarts
    if not again:
        return []
    last = again[-1]
    steps = ", ".join(str(one.step) for one in again)
    what = ngettext(
        "restarted instead of continued {n} time (at step {steps}): the loss went from {before:.3f} at step {step} "
        "back to {after:.3f}, that of an untrained model",
        "restarted instead of continued {n} times (at steps {steps}): the last time the loss went from {before:.3f} "
        "at step {step} back to {after:.3f}, that of an untrained model",
        len(again), steps=steps, before=last.loss_before, step=last.step_before, after=last.loss,
    )  # fmt: skip
    why = _("what had been learned before is not in the result: each time the training began from the base again")
    level: Level = "warning" if training.judged and training.judged.verdict in FINE else "error"
    return [finding(training, "restarted-instead-of-continued", level, what, why, training.remedies.continue_)]


def clean_seams(training: Training) -> list[Seam]:
    """Where the training was taken up again and its loss was not harmed."""
    found = []
    for index, after in enumerate(training.attempts):
        if index and after.points:
            found.append(seams.seam(training.attempts[index - 1], after))
    found += seams.seams(training.curve)
    again = {one.step for one in training.restarts}
    known: dict[int, Seam] = {one.step: one for one in found if one.step not in again}
    return [one for one in known.values() if one.loss <= curves.UNHARMED * one.loss_before]


def resumed_cleanly(training: Training) -> Found:
    """Continued, with the loss of before."""
    if training.restarts or has_diverged(training):
        return []
    if training.check_batches:
        step, saved, now = training.check_batches[-1]
        what = _("continued at step {step}: the check batch has loss {now:.3f}, as when it was saved ({saved:.3f})",
                 step=step, now=now, saved=saved)  # fmt: skip
        return [finding(training, "resumed-cleanly", "info", what)]
    clean = clean_seams(training)
    if not clean:
        return []
    last = clean[-1]
    what = ngettext(
        "continued {n} time without harm: loss {before:.3f} at step {step_before}, {after:.3f} from step {step} on",
        "continued {n} times without harm, the last time: loss {before:.3f} at step {step_before}, {after:.3f} from "
        "step {step} on",
        len(clean), before=last.loss_before, step_before=last.step_before, after=last.loss, step=last.step,
    )  # fmt: skip
    return [finding(training, "resumed-cleanly", "info", what)]


def schedule_jump(training: Training) -> Found:
    """The learning rate rose again after it had fallen."""
    jumps = seams.learning_rate_jumps(training.curve.points)
    if not jumps:
        return []
    each = "; ".join(_("from {before:.2g} to {after:.2g} at step {step}", before=one.before, after=one.after,
                       step=one.step)
                     for one in jumps)  # fmt: skip
    what = _("the learning rate jumps {each}", each=each)
    why = _(
        "the training was lengthened after its schedule had ended; a jump may undo what the low learning rate settled"
    )
    if training.check_batches:
        planned = _("that was planned and said before it continued; it is the same training with more epochs")
        return [finding(training, "schedule-jump", "info", what, planned)]
    return [finding(training, "schedule-jump", "warning", what, why, training.remedies.one_schedule)]
