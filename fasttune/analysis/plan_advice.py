"""What the verdict on an earlier run says of a plan; none of it stops the run. What is advised is what advisor.py says
of that run, here as everywhere."""

from __future__ import annotations

from pathlib import Path

from fasttune.analysis import advisor
from fasttune.console import Finding, _
from fasttune.planning.strategy import Plan
from fasttune.runs import judgement, store, summary
from fasttune.runs.store import Run

LONGER = ("incremental", "augment")  # strategies that train on; where that is advised, every one is as good


def advise(plan: Plan, root: Path) -> list[Finding]:
    """What an earlier run says of a plan; `root` is the folder of the runs."""
    parent = plan.start.parent
    if parent is None:
        return begins_again(plan, root)
    return already_rising(plan, parent) or other_fits(plan, parent)


def other_fits(plan: Plan, parent: Run) -> list[Finding]:
    """Say that training on is not what the parent's figures ask for; `retune` and `custom` are never argued with, nor
    is anything where nobody can tell."""
    if plan.recipe.strategy not in LONGER:
        return []
    advice, judged = advisor.of_run(parent), summary.judge(parent)
    if advice is None or advice.strategy in LONGER or judged is None or judged.verdict == judgement.CANNOT_TELL:
        return []
    what = _("{chosen} trains on, which is not what the figures of {run} ask for", chosen=plan.recipe.strategy,
             run=parent.id)  # fmt: skip
    fix = f"`{advice.command}`" if advice.command else ""
    return [Finding("other-strategy-fits", "info", parent.id, what, advice.because, fix)]


def begins_again(plan: Plan, root: Path) -> list[Finding]:
    """Say that a fresh run beside a finished one begins at the base's loss, not at the finished run's, and what is to
    be done with that one."""
    current = store.current(root, plan.recipe.name)
    if current is None or current.status != "finished":
        return []
    loss, advice = summary.final_means(current).loss, advisor.of_run(current)
    what = _("starts from the base again; {run} ended at loss {loss:.3f}", run=current.id, loss=loss)
    why, command = (advice.because, advice.command) if advice else ("", "")
    fix = _("what to do next with that one: `{command}`", command=command) if command else ""
    return [Finding("begins-again", "info", f"{plan.recipe.path}: strategy", what, why, fix)]


def already_rising(plan: Plan, parent: Run) -> list[Finding]:
    """Warn where a run continues from a checkpoint at which the parent's held-out loss was past its best.

    That is the last one, also where early stopping made an earlier checkpoint the adapter, but not where an epoch is
    picked.
    """
    losses = summary.held_out_losses(parent)
    if plan.start.kind != "checkpoint" or plan.start.picked is not None:
        return []
    if not judgement.has_risen(losses[-1] if losses else None, losses):
        return []
    return [
        Finding(
            "held-out-loss-rising", "warning", parent.id,
            _("its held-out loss rose from {best:.3f} to {last:.3f} before it ended", best=min(losses),
            last=losses[-1]), why=_("its last checkpoint is over-fitting; more epochs make that worse"),
            fix=what_helps(parent),
        )
    ]  # fmt: skip


def what_helps(parent: Run) -> str:
    """What helps a parent that over-fits: what the advisor says of it."""
    advice = advisor.of_run(parent)
    if advice is None or not advice.command:
        return _("add data, or retune with fewer epochs or a lower learning rate")
    return _("add data, or what its figures ask for: `{command}`", command=advice.command)
