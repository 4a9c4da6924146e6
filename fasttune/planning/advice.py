"""What is worth saying about a plan before it starts; none of it stops the run.

    verdict on the parent (runs.judgement)       its answers are                     fits
    diverged: its loss rose and stayed high      nonsense                            retune: a lower learning rate
    over-fitting: held-out loss past its best    the samples, word for word          retune: fewer epochs
    nothing-learned: its loss hardly moved       those of the base                   retune: a higher learning rate
    not-enough: held-out loss still falls        too short or shallow                incremental, augment, retune
    held-out loss at its best, far above the     out of character at times           augment, retune
      training loss
    held-out loss at its best                    perhaps not good enough             retune, augment
    cannot-tell                                  for you to judge                    any of them

And for any run: epochs that suit the number of samples, one change at a time, a base that is large enough, prefixes
that are shared, enough samples and steps (data_advice.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.console import Finding, Level, _, ngettext
from fasttune.data.tokenize import estimate_tokens
from fasttune.planning import data_advice
from fasttune.planning.differing import differences
from fasttune.planning.parents import MORE_EPOCHS, run_command
from fasttune.planning.strategy import Plan
from fasttune.runs import documents, judgement, store, summary
from fasttune.runs.bands import BANDS, band, band_epochs
from fasttune.runs.judgement import Judgement
from fasttune.runs.store import Run

FEW_SAMPLES = BANDS[1][0]  # with fewer samples than this, `augment` is tried before `incremental`
SMALL_BASE = 1.0  # billions of parameters: a base with fewer is small
# From about this many tokens on, a system prompt or an average answer asks more than a small base can hold.
LONG_SYSTEM, LONG_ANSWER = 300, 120
MUCH_OF_CONTEXT = 0.25  # of it, for a system prompt
CANNOT_TELL = Judgement(judgement.CANNOT_TELL, "not-evaluated")  # of a run without a logged step


@dataclass(frozen=True)
class StrategyFit:
    """The strategies that a run's figures suggest, the best first, what its answers are like, and the reason."""

    strategies: tuple[str, ...]
    symptom: str
    why: str


def advised(plan: Plan, root: Path) -> Plan:
    """The plan with its advice among its findings."""
    return replace(plan, findings=(*plan.findings, *advise(plan, root)))


def advise(plan: Plan, root: Path) -> list[Finding]:
    """All advice about a plan; `root` is the folder of the runs."""
    parent = plan.start.parent
    findings = [*epochs_for_data(plan), *long_warmup(plan), *larger_base(plan), *not_shared(plan)]
    findings += facts_in_prompt(plan)
    findings += data_advice.advise(plan)
    if parent is None:
        return findings + begins_again(plan, root)
    rising = already_rising(plan, parent)
    return findings + one_at_a_time(plan, parent) + (rising or other_fits(plan, parent, root))


# The strategy that fits ---------------------------------------------------------------------------------------------


def fitting_strategies(parent: Run) -> StrategyFit:
    """The strategies that a finished run's figures suggest, by the table at the top of this file."""
    judged, plan = summary.judge(parent) or CANNOT_TELL, documents.read_plan(parent)
    losses, loss = summary.held_out_losses(parent), summary.final_means(parent).loss
    best, last = min(losses, default=0.0), losses[-1] if losses else 0.0
    few = plan.train_samples < FEW_SAMPLES and plan.epochs < band_epochs(plan.train_samples)
    longer = ("augment", "incremental") if few else ("incremental", "augment")
    match judged.verdict:
        case judgement.OVER_FITTING:
            why = _("its held-out loss rose from {best:.3f} to {last:.3f}: it is over-fitting; fewer epochs, a lower "
                    "learning rate or more samples help", best=best, last=last)  # fmt: skip
            return StrategyFit(("retune",), _("the samples, word for word"), why)
        case judgement.DIVERGED:
            why = _("its loss rose and stayed high, and ended at {loss:.3f}: a lower learning rate helps", loss=loss)
            return StrategyFit(("retune",), _("nonsense"), why)
        case judgement.NOTHING_LEARNED:
            why = _("its loss hardly moved and ended at {loss:.3f}: a higher learning rate helps", loss=loss)
            return StrategyFit(("retune",), _("those of the base"), why)
        case judgement.NOT_ENOUGH:
            why = _("its held-out loss still falls fast and ended at {last:.3f}: more epochs help", last=last)
            return StrategyFit((*longer, "retune"), _("too short or shallow"), why)
        case judgement.CANNOT_TELL:
            return StrategyFit(
                cannot_tell(parent, longer), _("for you to judge"), nobody_knows(judged, loss, plan.val_samples)
            )
    return at_its_best(loss, best)


def cannot_tell(parent: Run, longer: tuple[str, ...]) -> tuple[str, ...]:
    """All strategies, in the order that the training loss alone suggests."""
    is_low = not judgement.is_under_trained(summary.final_means(parent))
    return ("retune", *longer) if is_low else (*longer, "retune")


def nobody_knows(judged: Judgement, loss: float, held_out: int) -> str:
    """Why no strategy is advised where the held-out loss tells nothing."""
    if judged.reason == "evaluated-once":
        return _("its held-out loss was computed once, so that it is unknown whether it falls")
    if judged.reason == "one-held-out-sample":
        return _("one held-out sample can't tell what would help: its loss moves by chance; hold out {enough} or more",
                 enough=judgement.ENOUGH_HELD_OUT)  # fmt: skip
    if judged.reason == "few-held-out":
        return _("{samples} held-out samples are too few to tell what would help: their loss moves by chance; hold out "
                 "{enough} or more", samples=held_out, enough=judgement.ENOUGH_HELD_OUT)  # fmt: skip
    return _("its training loss ended at {loss:.3f}, and without held-out samples it can't be told what would help; "
             "judge by its answers, and set `data.val`", loss=loss)  # fmt: skip


def at_its_best(loss: float, best: float) -> StrategyFit:
    """What fits a run whose held-out loss hardly improves with more epochs."""
    if judgement.is_far_above(best, loss):
        why = _("its held-out loss {held_out:.3f} is far above its loss {loss:.3f}: it has learned the samples better "
                "than the persona; more and other samples help", held_out=best, loss=loss)  # fmt: skip
        return StrategyFit(("augment", "retune"), _("out of character at times"), why)
    why = _("its held-out loss {held_out:.3f} is at its best and will hardly improve with more epochs: try another "
            "learning rate first, then another LoRA rank", held_out=best)  # fmt: skip
    return StrategyFit(("retune", "augment"), _("perhaps not good enough"), why)


def other_fits(plan: Plan, parent: Run, root: Path) -> list[Finding]:
    """Say which strategy fits the parent's figures better than the chosen one; `custom` is never argued with."""
    fit = fitting_strategies(parent)
    if plan.recipe.strategy in (*fit.strategies, "custom"):
        return []
    what = _("{strategies} fits better than {chosen} where its answers are {symptom}",
             strategies=" / ".join(fit.strategies), chosen=plan.recipe.strategy, symptom=fit.symptom)  # fmt: skip
    fix = f"`{continue_command(plan, root, fit.strategies[0])}`"
    return [Finding("other-strategy-fits", "info", parent.id, what, fit.why, fix)]


def begins_again(plan: Plan, root: Path) -> list[Finding]:
    """Say that a fresh run beside a finished one begins at the base's loss, not at the finished run's."""
    current = store.current(root, plan.recipe.name)
    if current is None or current.status != "finished":
        return []
    loss = summary.final_means(current).loss
    what = _("starts from the base again; {run} ended at loss {loss:.3f}", run=current.id, loss=loss)
    more, retune = continue_command(plan, root, "incremental"), continue_command(plan, root, "retune")
    fix = _("`{more}` continues it; `{retune}` starts from the base with its settings", more=more, retune=retune)
    return [Finding("begins-again", "info", f"{plan.recipe.path}: strategy", what, fix=fix)]


def continue_command(plan: Plan, root: Path, strategy: str) -> str:
    """The command that continues the series of a plan with a strategy."""
    more = [MORE_EPOCHS] * (strategy == "incremental")
    return run_command(plan.recipe, root, *more, strategy=strategy)


# Any run ------------------------------------------------------------------------------------------------------------


def epochs_for_data(plan: Plan) -> list[Finding]:
    """Epochs outside the band for the number of samples (runs/bands.py)."""
    samples = len(plan.dataset.train)
    low, high = band(samples)
    if plan.recipe.train.max_steps or low <= plan.trained_epochs <= high + 1:
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


def already_rising(plan: Plan, parent: Run) -> list[Finding]:
    """Warn where a run continues from a checkpoint at which the parent's held-out loss was past its best.

    That is the last one, also where early stopping made an earlier checkpoint the adapter.
    """
    losses = summary.held_out_losses(parent)
    if plan.start.kind != "checkpoint" or not judgement.has_risen(losses[-1] if losses else None, losses):
        return []
    return [
        Finding(
            "held-out-loss-rising", "warning", parent.id,
            _("its held-out loss rose from {best:.3f} to {last:.3f} before it ended", best=min(losses),
            last=losses[-1]), why=_("its last checkpoint is over-fitting; more epochs make that worse"),
            fix=_("add data, or retune with fewer epochs or a lower learning rate"),
        )
    ]  # fmt: skip
