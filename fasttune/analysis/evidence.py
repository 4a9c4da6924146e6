"""The figures behind a diagnosis, each with its step; loss and accuracy with their usual bands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fasttune.analysis.training_facts import Training
from fasttune.console import _
from fasttune.runs import curves, judgement


@dataclass(frozen=True)
class Fact:
    """A figure with its step, in words; `value` is the figure itself, None where there is none."""

    name: str
    text: str
    value: float | None = None


def evidence(training: Training) -> Iterator[Fact]:
    """The figures of a training, those first that the verdict needs first."""
    curve = training.curve
    if not curve.points:
        return
    yield from held_out(training)
    yield from losses(training)
    peak = curves.peak_learning_rate(curve.points)
    if peak is not None:
        last = curve.points[-1].learning_rate
        text = _("at most {peak:.2g}, {last:.2g} at the end", peak=peak, last=last if last is not None else math.nan)
        yield Fact("learning_rate", text, peak)
    norms = [one for one in curve.points if one.grad_norm is not None and math.isfinite(one.grad_norm)]
    if norms:
        middle = sorted(one.grad_norm or 0.0 for one in norms)[len(norms) // 2]
        largest = max(norms, key=lambda one: one.grad_norm or 0.0)
        text = _("median {median:.3g}, largest {largest:.3g} (step {step})", median=middle, largest=largest.grad_norm,
                 step=largest.step)  # fmt: skip
        yield Fact("grad_norm", text, middle)
    yield from extent(training)


def held_out(training: Training) -> Iterator[Fact]:
    """The held-out loss: first, best, last."""
    evaluated = training.curve.evaluations
    if not evaluated:
        yield Fact("eval_loss", _("none: nothing is held out, or it was never evaluated"))
        return
    best, last = judgement.best_evaluation(evaluated), evaluated[-1]
    text = _("{first:.3f} (step {first_step}), best {best:.3f} (step {best_step}, epoch {epoch:.1f}), last {last:.3f} "
             "(step {last_step})", first=evaluated[0].loss, first_step=evaluated[0].step, best=best.loss,
             best_step=best.step,
             epoch=training.epoch(best.step), last=last.loss, last_step=last.step)  # fmt: skip
    yield Fact("eval_loss", text, last.loss)


def losses(training: Training) -> Iterator[Fact]:
    """Training loss and accuracy, with the usual bands."""
    curve, means = training.curve, training.means
    if means is None:
        return
    text = _("{first:.3f} (step {step}) to {last:.3f} (last epoch, to step {last_step}); {band} by the usual bands",
             first=curve.points[0].loss, step=curve.points[0].step, last=means.loss, last_step=curve.points[-1].step,
             band=band_word(judgement.loss_band(means.loss)))  # fmt: skip
    yield Fact("loss", text, means.loss)
    band = judgement.accuracy_band(means.accuracy)
    if band is not None:
        text = _(
            "{accuracy:.1%} (last epoch); {band} by the usual bands", accuracy=means.accuracy, band=band_word(band)
        )
        yield Fact("mean_token_accuracy", text, means.accuracy)


def band_word(band: str | None) -> str:
    """A band of the users' table in their words."""
    words = {"excellent": _("excellent"), "good": _("good"), "fair": _("fair"), judgement.NOT_ENOUGH: _("not enough")}
    return words[band] if band else "–"


def extent(training: Training) -> Iterator[Fact]:
    """How long it trained, of what was planned; samples and LoRA rank where they are known."""
    last, total = training.curve.points[-1].step, training.total_steps
    epochs = training.epoch(last)
    if total:
        text = _("{steps} of {total} ({epochs:.1f} epochs)", steps=last, total=total, epochs=epochs)
    else:
        text = _("{steps} ({epochs:.1f} epochs)", steps=last, epochs=epochs)
    yield Fact("steps", text, last)
    if training.samples is not None:
        text = _("{samples} for training, {held_out} held out", samples=training.samples,
                 held_out=training.held_out_samples)  # fmt: skip
        yield Fact("samples", text, training.samples)
    if training.rank is not None:
        yield Fact("lora.r", str(training.rank), training.rank)


def label(fact: Fact) -> str:
    """The name of a figure for people."""
    names = {
        "eval_loss": _("held-out loss"), "loss": _("training loss"), "mean_token_accuracy": _("token accuracy"),
        "learning_rate": _("learning rate"), "grad_norm": _("gradient norm"), "steps": _("steps"),
        "samples": _("samples"), "lora.r": _("LoRA rank"),
    }  # fmt: skip
    return names[fact.name]
