"""What is worth saying about a plan before it starts, by its own recipe and samples; none of it stops the run: epochs
that suit the number of samples, one change at a time, a base that is large enough, prefixes that are shared, enough
samples and steps (data_advice.py). What the verdict on an earlier run says of it: analysis/plan_advice.py."""

from __future__ import annotations

import re

from fasttune.console import Finding, Level, _, ngettext
from fasttune.data.tokenize import estimate_tokens
from fasttune.planning import data_advice
from fasttune.planning.differing import differences
from fasttune.planning.strategy import Plan
from fasttune.runs import documents
from fasttune.runs.bands import band
from fasttune.runs.store import Run

SMALL_BASE = 1.0  # billions of parameters: a base with fewer is small
# From about this many tokens on, a system prompt or an average answer asks more than a small base can hold.
LONG_SYSTEM, LONG_ANSWER = 300, 120
MUCH_OF_CONTEXT = 0.25  # of it, for a system prompt


def advise(plan: Plan) -> list[Finding]:
    """All advice about a plan that needs no verdict on the run that it continues from."""
    parent = plan.start.parent
    findings = [*epochs_for_data(plan), *long_warmup(plan), *larger_base(plan), *not_shared(plan)]
    findings += facts_in_prompt(plan)
    findings += data_advice.advise(plan)
    return findings + (one_at_a_time(plan, parent) if parent else [])


def epochs_for_data(plan: Plan) -> list[Finding]:
    """Epochs outside the band for the number of samples (runs/bands.py); an adapter is trained further for fewer."""
    samples = len(plan.dataset.train)
    low, high = band(samples)
    is_enough = plan.start.kind == "adapter" or plan.trained_epochs >= low
    if plan.recipe.train.max_steps or (is_enough and plan.trained_epochs <= high + 1):
        return []
    return [
        Finding(
            "epochs-for-data", "info", f"{plan.recipe.path}: train.epochs",
            ngettext("{epochs:.1f} epochs over {n} sample; {low:.0f} to {high:.0f} usually suit so few",
                     "{epochs:.1f} epochs over {n} samples; {low:.0f} to {high:.0f} usually suit so many",
                     samples, epochs=plan.trained_epochs, low=low, high=high),
            why=_("too few epochs leave the persona vague, too many over-fit"),
        )
    ]  # fmt: skip


def long_warmup(plan: Plan) -> list[Finding]:
    """A warmup that is not over when training ends."""
    warmup, last = plan.recipe.train.warmup_steps, plan.total_steps
    if warmup < max(last, 2):
        return []
    what = _("the warmup takes {warmup:.0f} steps, training ends at step {last}", warmup=warmup, last=last)
    why = _("the learning rate rises all the time and comes to {share:.0%} of train.learning_rate", share=last / warmup)
    fix = _("leave it out, or give a share of all steps: warmup_steps = 0.05")
    return [Finding("warmup-too-long", "warning", f"{plan.recipe.path}: train.warmup_steps", what, why, fix)]


def larger_base(plan: Plan) -> list[Finding]:
    """A small base for a persona with a long system prompt or long answers."""
    size = re.search(r"(\d+(?:\.\d+)?)b\b", plan.recipe.model.base.lower())
    small = plan.recipe.model.base == "builtin:tiny" or (size is not None and float(size[1]) < SMALL_BASE)
    system, answer = estimate_tokens(plan.system or ""), data_advice.median_answer(plan.dataset.train)
    if not small or (system < LONG_SYSTEM and answer < LONG_ANSWER):
        return []
    what = _("a small base for this persona: its system prompt has about {system:.0f} tokens, an answer about "
             "{answer:.0f}", system=system, answer=answer)  # fmt: skip
    why = _("a small model forgets parts of a complex persona, however long it trains")
    fix = _('base = "Qwen/Qwen2.5-1.5B-Instruct", or the 3B one; with load_in_4bit they fit smaller GPUs')
    return [Finding("larger-base", "info", f"{plan.recipe.path}: model.base", what, why, fix)]


def facts_in_prompt(plan: Plan) -> list[Finding]:
    """What the facts in the served system prompt take of the context; a warning where little is left for talk."""
    recipe = plan.recipe
    key = "data.system_facts" if recipe.data.system_facts else "export.prompt"
    if key == "export.prompt" and recipe.export.prompt != "facts":
        return []
    served = estimate_tokens(plan.served_system or "")
    share = served / recipe.export.num_ctx
    what = _("with the facts the served system prompt has about {served:.0f} tokens: {share:.0%} of the context",
             served=served, share=share)  # fmt: skip
    why = _("a conversation has what is left of it, and the oldest turns are dropped sooner")
    fix = _("raise export.num_ctx = {num_ctx}", num_ctx=recipe.export.num_ctx) if share > MUCH_OF_CONTEXT else ""
    level: Level = "warning" if fix else "info"
    return [Finding("facts-in-prompt", level, f"{recipe.path}: {key}", what, why, fix)]


def not_shared(plan: Plan) -> list[Finding]:
    """Settings because of which training computes a prefix that samples share once for each of them."""
    settings, path = plan.recipe.train, plan.recipe.path
    what = _("no prefix is shared in training: the same system prompt is computed anew for every sample")
    found = []
    if plan.recipe.lora.dropout > 0:
        why = _("dropout differs from sample to sample; in a shared prefix it would be the same for all, which changes "
                "the result")  # fmt: skip
        fix = _("leave lora.dropout at 0 to share prefixes; few samples gain more by fewer epochs")
        found.append(Finding("prefixes-not-shared", "info", f"{path}: lora.dropout", what, why, fix))
    if not settings.shared_prefix:
        fix = _("leave it out: the result is the same, and training is faster")
        found.append(
            Finding("prefixes-not-shared", "info", f"{path}: train.shared_prefix", what, _("it is switched off"), fix)
        )
    if settings.tokens_per_row == 0:
        why = _("0 gives each sample a row of its own")
        fix = _("leave it out: the result is the same, and training is faster")
        found.append(Finding("prefixes-not-shared", "info", f"{path}: train.tokens_per_row", what, why, fix))
    return found


def one_at_a_time(plan: Plan, parent: Run) -> list[Finding]:
    """Warn where more than one of epochs, learning rate and LoRA rank differs from the parent's."""
    before = documents.read_plan(parent)
    changed = [key for key, _old, _new in differences(parent, plan) if key in ("train.learning_rate", "lora.r")]
    if plan.start.kind == "base" and round(plan.epochs, 3) != round(before.epochs, 3):
        changed.insert(0, "train.epochs")
    if len(changed) < 2:
        return []
    return [
        Finding(
            "one-change-at-a-time", "warning", str(plan.recipe.path),
            _("{keys} all differ from {run}", keys=", ".join(changed), run=parent.id),
            why=_("with more than one change it is unknown which one helped"),
            fix=_("one at a time: first epochs, then the learning rate, then the rank"),
        )
    ]  # fmt: skip
