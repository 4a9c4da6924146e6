"""The questions of the four strategies, and the settings that follow from the answers, as `--set` would give them.

incremental   epochs to add                                   continue.add_epochs
retune        what to change, and to what                     one of train.epochs, train.learning_rate, lora.r
augment       epochs in total                                 train.epochs
custom        start, epochs, learning rate, LoRA rank         all of them
other data    epochs                                          continue.start, continue.add_epochs
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fasttune.console import _, ngettext
from fasttune.planning.differing import BOUND_TO_CHECKPOINT
from fasttune.planning.lengths import augmented_epochs, lacking_epochs
from fasttune.recipe.load import settings
from fasttune.recipe.schema import Recipe
from fasttune.runs import documents, summary
from fasttune.runs.bands import band
from fasttune.runs.store import Run
from fasttune.runs.typed_json import as_json
from fasttune.terminal import prompts

Settings = dict[str, Any]
SCHEDULE = ("train.learning_rate", "train.lr_scheduler_type", "train.warmup_steps")
# Settings that a continuation from a checkpoint must share with its parent; a retuned run shares them unless it is they
# that are changed, so that one change at a time shows what helped.
AS_PARENT = (*(key for key in BOUND_TO_CHECKPOINT if key not in ("samples", "data.system", "data.learn")), *SCHEDULE)
ADD_EPOCHS = 1.5  # proposed
OTHER = "other"


@dataclass(frozen=True)
class Parent:
    """The finished run to continue from: its settings, its figures, its total epochs and its number of samples."""

    run: Run
    values: Mapping[str, Any]
    figures: summary.Figures
    epochs: float
    samples: int


def read_parent(run: Run) -> Parent:
    """The parent that a finished run is, from its files. Raises FasttuneError where one of them is damaged."""
    plan = documents.read_plan(run)
    for key, kind in (("train.learning_rate", float), ("lora.r", int), ("lora.alpha", int)):  # what is asked about
        documents.read_setting(run, key, kind)
    return Parent(run, plan.values, summary.read_figures(run), plan.epochs, plan.train_samples)


def answers(strategy: str, parent: Parent, recipe: Recipe) -> Settings:
    """Ask a strategy's questions; the settings to lay over the recipe, so that every other one equals the parent's."""
    questions = {"incremental": incremental, "retune": retune, "augment": augment, "custom": custom}
    chosen = questions[strategy](parent)
    start = chosen.get("continue.start", "base" if strategy == "retune" else "checkpoint")
    return {**as_parent(parent, recipe, start), **chosen}


def as_parent(parent: Parent, recipe: Recipe, start: str) -> Settings:
    """The parent's values of the settings in which the recipe differs, and the recipe's own length and start undone."""
    kept: Settings = {}
    for setting in settings(recipe):
        key, before = setting.key, parent.values.get(setting.key)
        if setting.source.startswith("default") or (start == "base" and key.startswith("model.")):
            continue
        if key.startswith(AS_PARENT) and before is not None and as_json(setting.value) != before:
            kept[key] = before
    if recipe.train.max_steps:
        kept["train.max_steps"] = 0
    if recipe.continue_.add_epochs:
        kept["continue.add_epochs"] = 0.0
    if not recipe.sources["continue.start"].startswith("default") and recipe.continue_.start != start:
        kept["continue.start"] = start
    return kept


# The four strategies ------------------------------------------------------------------------------------------------


def incremental(parent: Parent) -> Settings:
    """Ask for the epochs to add to the parent's."""
    question = _("How many epochs to add to its {epochs:.3g}? 1 to 3 is usual", epochs=parent.epochs)
    return {"continue.add_epochs": prompts.number(question, ADD_EPOCHS)}


def retune(parent: Parent) -> Settings:
    """Ask which setting to change, and to what value; the number of epochs stays the parent's."""
    same = {"train.epochs": not_above(parent.epochs)}
    match prompts.choose(_("What do you want to change? (one thing at a time shows what helped)"), retunings(parent)):
        case "epochs":
            return {"train.epochs": prompts.number(_("How many epochs?"), same["train.epochs"])}
        case "learning_rate":
            return same | {"train.learning_rate": learning_rate(parent)}
        case "rank":
            return same | rank(parent)
        case "quality":
            return {"train.learning_rate": 1e-4, **with_alpha(parent, 16), "train.epochs": 3.0}
        case _quick:
            return {"train.learning_rate": 3e-4, **with_alpha(parent, 8), "train.epochs": 2.0}


def retunings(parent: Parent) -> dict[str, str]:
    """The settings that can be retuned, in the order in which they are worth trying."""
    learning_rate, r = parent.values["train.learning_rate"], parent.values["lora.r"]
    return {
        "epochs": _("epochs (now {epochs:.3g})", epochs=parent.epochs),
        "learning_rate": _("learning rate (now {learning_rate:g})", learning_rate=learning_rate),
        "rank": _("LoRA rank (now {r}): how much the adapter can hold", r=r),
        "quality": _("all three for quality: learning rate 1e-4, rank 16, 3 epochs"),
        "quick": _("all three for speed: learning rate 3e-4, rank 8, 2 epochs"),
    }


def augment(parent: Parent) -> Settings:
    """Ask for the total epochs, those of the parent included; proposed are the band's, and at least one more than the
    parent's."""
    low, high = band(parent.samples)
    proposed = augmented_epochs(parent.samples, parent.epochs)
    question = ngettext(
        "How many epochs in total? It has trained {epochs:.3g}; {low:g} to {high:g} suit {n} sample",
        "How many epochs in total? It has trained {epochs:.3g}; {low:g} to {high:g} suit {n} samples",
        parent.samples, epochs=parent.epochs, low=low, high=high,
    )  # fmt: skip
    return {"train.epochs": prompts.number(question, proposed)}


def custom(parent: Parent) -> Settings:
    """Ask for the start, the epochs, the learning rate, and from the base for the LoRA rank."""
    start = prompts.choose(
        _("Start from what?"),
        {
            "checkpoint": _("its last checkpoint: weights and optimizer state are kept"),
            "adapter": _("its adapter: weights alone, a new optimizer; also for changed data"),
            "base": _("the base: a new adapter and a new optimizer"),
        },
    )
    if start == "checkpoint":
        return {**incremental(parent), "train.learning_rate": learning_rate(parent)}
    chosen: Settings = {
        "continue.start": start,
        "train.epochs": prompts.number(_("How many epochs?"), not_above(parent.epochs)),
        "train.learning_rate": learning_rate(parent),
    }
    return chosen | (rank(parent) if start == "base" else {})


def other_data(parent: Parent, recipe: Recipe, samples: int) -> Settings:
    """Ask how long to train the parent's adapter on the samples of now; the settings to lay over the recipe."""
    question = _("How many epochs? Its adapter has trained {epochs:.3g}, of other samples", epochs=parent.epochs)
    proposed = lacking_epochs(samples, parent.epochs)
    chosen = {"continue.start": "adapter", "continue.add_epochs": prompts.number(question, proposed)}
    return {**as_parent(parent, recipe, "adapter"), **chosen}


# Parts --------------------------------------------------------------------------------------------------------------


def learning_rate(parent: Parent) -> float:
    """Ask for a learning rate; each choice names what it suits."""
    now = parent.values["train.learning_rate"]
    choices = {
        "0.0002": _("2e-4: balanced, suits most"),
        "0.0001": _("1e-4: steadier, for finer quality"),
        "0.0005": _("5e-4: learns fast, may be unstable"),
        "1e-05": _("1e-5: very cautious, for a model that is nearly right"),
    }
    return float(one_of(_("Which learning rate?"), choices, now, 1.0))


def rank(parent: Parent) -> Settings:
    """Ask for a LoRA rank; each choice names what it suits."""
    choices = {
        "4": _("4: light, for small adjustments"),
        "8": _("8: the usual"),
        "16": _("16: stronger, for a complex character"),
        "32": _("32: strongest, for a very complex one; over-fits sooner"),
    }
    return with_alpha(parent, int(one_of(_("Which LoRA rank?"), choices, parent.values["lora.r"], None)))


def with_alpha(parent: Parent, r: int) -> Settings:
    """A LoRA rank with alpha = 2 × r, unless the parent's alpha did not follow from its rank and is kept."""
    follows = parent.values["lora.alpha"] == 2 * parent.values["lora.r"]
    return {"lora.r": r, "lora.alpha": 2 * r} if follows else {"lora.r": r}


def one_of(question: str, choices: dict[str, str], now: float, most: float | None) -> float:
    """Ask for a number from a list in which the present one is marked, or another; a whole one without `most`."""
    present = f"{now:g}"
    listed = choices if present in choices else {present: present, **choices}
    listed = {key: title + _(" (now)") if key == present else title for key, title in listed.items()}
    picked = prompts.choose(question, listed | {OTHER: _("another number")}, present)
    if picked == OTHER:
        return prompts.number(question, now, most=most, whole=most is None)
    return now if picked == present else float(picked)


def not_above(epochs: float) -> float:
    """Epochs rounded down to four decimals, so that they come to no more steps: 8/3 is 2.6666, not 2.6667."""
    return math.floor(epochs * 10000) / 10000
