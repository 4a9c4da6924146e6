"""Whether running a recipe resumes a stopped run, and what may not have changed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fasttune.console import Finding, UsageError, _, ngettext, usage_error
from fasttune.planning.strategy import OnExisting, Plan, differences, is_running, unfinished
from fasttune.runs import store
from fasttune.runs.store import Run

# What a resumed run may change: none of it reaches the weights.
FREE = (
    "name", "data.train", "data.val", "export.", "probe.",
    "train.logging_steps", "train.save_steps", "train.save_total_limit", "train.report_to",
)  # fmt: skip


def run_to_resume(root: Path, plan: Plan, on_existing: OnExisting | None) -> Run | None:
    """The stopped run to go on with, or None for a new one.

    Raises UsageError where the series has runs and what to do with them was not said, or where the recipe or the data
    differ from what the stopped run began with.
    """
    earlier = store.list_runs(root, plan.recipe.name)
    if not earlier or on_existing == "new":
        return None
    newest, open_end = earlier[-1], unfinished(root, plan.recipe.name)
    if newest.status == "running":
        raise is_running(newest)
    if open_end and on_existing in (None, "resume"):
        changes = [entry for entry in differences(open_end, plan) if not entry[0].startswith(FREE)]
        if not changes:
            return open_end
        if open_end.status == "stopped":
            raise UsageError(*(resume_differs(open_end, *change) for change in changes))
    if plan.recipe.strategy != "fresh" and on_existing is None and newest.status == "finished":
        return None  # a continuation of a finished run is a new run by its nature
    raise usage_error(
        "series-exists",
        ngettext("{name} has {n} run; the newest is {run}", "{name} has {n} runs; the newest is {run}", len(earlier),
                 name=plan.recipe.name, run=newest.id),
        where=str(root),
        fix=_("--on-existing new trains another one and keeps the old; --continue incremental (or retune, augment, "
              "custom) "
              "goes on from it; `fasttune chat {name}` uses what is there", name=plan.recipe.name),
    )  # fmt: skip


def resume_differs(run: Run, key: str, old: Any, new: Any) -> Finding:
    """One thing a stopped run began with that is said otherwise now; a resumed run must not mix the two."""
    return Finding(
        "resume-differs", "error", f"{run.id}: {key}",
        _("the stopped run began with {old}, now it is {new}", old=old, new=new),
        why=_("a resumed run must equal one that was never stopped"),
        fix=_('set it back to resume; for other parameters --continue retune, for other data --continue custom; '
              "--on-existing new starts over beside it"),
    )  # fmt: skip
