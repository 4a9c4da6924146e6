"""What the learning rate and the gradients of a training say."""

from __future__ import annotations

from collections.abc import Sequence

from fasttune.analysis.seam_findings import FINE, Found, finding, has_diverged
from fasttune.analysis.training_facts import Training
from fasttune.console import _, ngettext
from fasttune.runs import curves, judgement
from fasttune.runs.curves import Point


def learning_rate(training: Training) -> Found:
    """Too high or too low for the steps that were planned."""
    points, judged = training.curve.points, training.judged
    peak = curves.peak_learning_rate(points)
    if peak is None or judged is None:
        return []
    suits = training.suiting_learning_rate
    if is_too_high(training):
        what = _("the learning rate of {peak:.2g} was too high; {suits:.2g} suits {training}",
                 peak=peak, suits=suits, training=trained_on(training))  # fmt: skip
        return [finding(training, "learning-rate-too-high", "warning", what, "", training.remedies.lower_learning_rate)]
    if judged.verdict == judgement.NOTHING_LEARNED and judgement.is_low_learning_rate(points, suits):
        what = _("the learning rate came to {peak:.2g} at most; {suits:.2g} suits {training}",
                 peak=peak, suits=suits, training=trained_on(training))  # fmt: skip
        remedy = training.remedies.higher_learning_rate
        if curves.is_warming_up(points):
            what = _("the learning rate was still rising at step {last} and came to {peak:.2g}; {suits:.2g} suits "
                     "{training}",
                     last=points[-1].step, peak=peak, suits=suits, training=trained_on(training))  # fmt: skip
        return [finding(training, "learning-rate-too-low", "warning", what, "", remedy)]
    return []


def is_too_high(training: Training) -> bool:
    """Whether the learning rate was too high: it diverged, or did not go well at one far above the one that suits."""
    peak, judged = curves.peak_learning_rate(training.curve.points), training.judged
    if peak is None or judged is None:
        return False
    is_far_above = peak > judgement.HIGH * training.suiting_learning_rate
    return has_diverged(training) or (is_far_above and judged.verdict not in FINE)


def trained_on(training: Training) -> str:
    """What a learning rate suits: the epochs and samples of the training where they are known."""
    if training.samples is None or training.total_steps is None:
        return _("most trainings of LoRA")
    return ngettext("{epochs:.3g} epochs of {n} sample", "{epochs:.3g} epochs of {n} samples", training.samples,
                    epochs=training.epoch(training.total_steps))  # fmt: skip


def gradient_spikes(training: Training) -> Found:
    """Single gradients far above those around them."""
    spikes: Sequence[Point] = curves.gradient_spikes(training.curve.points)
    if not spikes:
        return []
    largest = max(spikes, key=lambda one: one.grad_norm or 0.0)
    what = ngettext(
        "{n} gradient norm is a spike: {norm:.3g} at step {step}",
        "{n} gradient norms are spikes, the largest {norm:.3g} at step {step}",
        len(spikes), norm=largest.grad_norm, step=largest.step,
    )  # fmt: skip
    if not curves.left_a_trace(training.curve.points, spikes) and not has_diverged(training):
        return [finding(training, "gradient-spikes", "info", what, _("they left no trace in the loss"))]
    why = _("the loss is higher after them than before")
    return [finding(training, "gradient-spikes", "warning", what, why, training.remedies.clip_gradients)]
