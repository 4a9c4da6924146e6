"""Verdicts, figures and states of runs in the user's language: what the terminal and the pages both say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fasttune.console import _, ngettext
from fasttune.recipe.values import as_toml
from fasttune.runs import judgement
from fasttune.runs.epochs import epoch_word
from fasttune.runs.judgement import CANNOT_TELL, DIVERGED, FEW_HELD_OUT, NOT_ENOUGH, NOTHING_LEARNED, OVER_FITTING
from fasttune.runs.outcomes import FactState, GeneralLoss
from fasttune.runs.summary import Change, Figures


def verdict_word(verdict: str | None) -> str:
    """A verdict in the user's language; a dash for none."""
    words = {
        "excellent": _("excellent"),
        "good": _("good"),
        "fair": _("fair"),
        NOT_ENOUGH: _("not enough"),
        OVER_FITTING: _("over-fitting"),
        CANNOT_TELL: _("cannot tell"),
        NOTHING_LEARNED: _("nothing learned"),
        DIVERGED: _("diverged"),
    }
    return words[verdict] if verdict else "–"


def verdict_line(one: Figures) -> str:
    """`verdict: good; the held-out loss is at its best at the end`; "" where there is none."""
    if not one.verdict or not one.verdict_reason:
        return ""
    verdict, why = verdict_word(one.verdict), reason(one)
    if one.picked_epoch is not None:
        return _("verdict on epoch {epoch}, which is picked: {verdict}; {reason}", epoch=epoch_word(one.picked_epoch),
                 verdict=verdict, reason=why)  # fmt: skip
    return _("verdict: {verdict}; {reason}", verdict=verdict, reason=why)


def reason(one: Figures) -> str:
    """Why a run has its verdict, and what helps."""
    band = verdict_word(one.loss_band)
    reasons: dict[str, Callable[[], str]] = {
        "loss-rose": lambda: _(
            "the training loss rose far above its best and stayed there: lower train.learning_rate"),
        "loss-hardly-moved": lambda: _("the training loss hardly moved: raise train.learning_rate"),
        "no-held-out": lambda: _(
            "nothing is held out, and the training loss alone (by itself: {band}) does not show over-fitting",
            band=band),
        "one-held-out-sample": lambda: _(
            "one held-out sample tells nothing; hold out {enough} or more", enough=judgement.ENOUGH_HELD_OUT),
        "few-held-out": lambda: _(
            "{samples} held-out samples are too few: their loss moves by chance; hold out {enough} or more",
            samples=one.held_out_samples, enough=judgement.ENOUGH_HELD_OUT),
        "not-evaluated": lambda: _("it has no held-out loss"),
        "evaluated-once": lambda: _(
            "the held-out loss was computed once, so that it is unknown whether it falls; set `train.eval_steps`"),
        "past-best": lambda: _(
            "the held-out loss is past its best: fewer epochs, a lower learning rate or more samples help"),
        "before-best": lambda: _("the held-out loss was lower after a later epoch"),
        "above-best": lambda: _("the held-out loss is a little above its best: more epochs would not help"),
        "still-falling": lambda: _("the held-out loss still falls fast: more epochs help"),
        "at-best": lambda: _("the held-out loss is at its best at the end")
        if one.picked_epoch is None
        else _("its held-out loss is the lowest"),
    }  # fmt: skip
    return reasons[one.verdict_reason or "not-evaluated"]()


def best_line(one: Figures) -> str:
    """`held-out loss 4.545, best 4.545 at step 62 of 62`; "" where nothing tells it."""
    if one.eval_loss is None or one.best_step is None or one.held_out_samples < judgement.FEW_HELD_OUT:
        return ""
    if one.picked_epoch is not None:  # both adapters' losses are told where the epoch is named
        return ""
    return _("held-out loss {loss:.3f}, best {best:.3f} at step {step} of {total}",
             loss=one.eval_loss, best=one.best_eval_loss, step=one.best_step, total=one.steps)  # fmt: skip


def general_heading(language: str) -> str:
    """What the loss of the general conversations of a language ("zh", "en") is called."""
    return {"zh": _("loss on general conversations in Chinese"), "en": _("loss on general conversations in English")}[
        language
    ]


def general_line(one: GeneralLoss) -> str:
    """`general conversations in English: loss 2.310 by the base, 2.405 trained (+4%)`"""
    base, trained, change = one.base, one.trained, one.trained / one.base - 1
    if one.language == "zh":
        return _("general conversations in Chinese: loss {base:.3f} by the base, {trained:.3f} trained ({change:+.0%})",
                 base=base, trained=trained, change=change)  # fmt: skip
    return _("general conversations in English: loss {base:.3f} by the base, {trained:.3f} trained ({change:+.0%})",
             base=base, trained=trained, change=change)  # fmt: skip


def has_held_out_loss(one: Figures) -> bool:
    """Whether a run has a held-out loss that tells something: of more than a sample."""
    return one.eval_loss is not None and one.held_out_samples >= FEW_HELD_OUT


def changed_line(changes: Sequence[Change]) -> str:
    """`changed: epochs 2 → 3.5, lora.r 8 → 16`"""
    if not changes:
        return _("changed: nothing")
    words = ", ".join(f"{one.key} {value_word(one.old)} → {value_word(one.new)}" for one in changes)
    return _("changed: {changes}", changes=words)


def epochs_word(epochs: float) -> str:
    """`1 epoch`, `3.5 epochs`."""
    return ngettext("{epochs:.3g} epoch", "{epochs:.3g} epochs", 1 if f"{epochs:.3g}" == "1" else 2, epochs=epochs)


def value_word(value: Any) -> str:
    """A setting's value as in a recipe, floats in short form, a dash for none."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else as_toml(value)


def size_word(size: int) -> str:
    """A size in bytes in short form: 8.4 MB, 531 MB, 1.6 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def status_word(status: str) -> str:
    """A run's state in the user's language."""
    return {"running": _("running"), "finished": _("finished"), "stopped": _("stopped")}[status]


def arm_heading(arm: str) -> str:
    """The name of an arm in the user's language."""
    return {
        "base": _("base"),
        "base+system": _("base + system prompt"),
        "tuned": _("trained"),
        "tuned+system": _("trained + system prompt"),
        "tuned+facts": _("trained + facts in the prompt"),
    }[arm]


def fact_state_word(state: FactState) -> str:
    """What became of a fact, in the user's language."""
    return {"kept": _("kept"), "lost": _("lost"), "contradicted": _("contradicted")}[state]
