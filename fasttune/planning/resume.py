"""Whether running a recipe resumes a stopped run, and what may not have changed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fasttune.console import Finding, UsageError, _, ngettext, usage_error
from fasttune.planning.strategy import OnExisting, Plan, differences, is_running, unfinished
from fasttune.runs import store
from fasttune.runs.store import Run

# What may differ when a run is resumed: none of it reaches the weights.
MAY_DIFFER = (
    "name", "data.train", "data.val", "export.", "probe.",
    "train.logging_steps", "train.save_steps", "train.save_total_limit", "train.report_to",
)  # fmt: skip


def run_to_resume(root: Path, plan: Plan, on_existing: OnExisting | None) -> Run | None:
    """The stopped run to resume, or None for a new one.

    Raises UsageError where the series has runs and what to do with them was not said, or where the recipe or the data
    differ from what the stopped run began with.
    """
    earlier = store.list_runs(root, plan.recipe.name)
    if not earlier or on_existing == "new":
        return None
    newest, stopped = earlier[-1], unfinished(root, plan.recipe.name)
    if newest.status == "running":
        raise is_running(newest)
    if stopped and on_existing in (None, "resume"):
        changes = [entry for entry in differences(stopped, plan) if not entry[0].startswith(MAY_DIFFER)]
        if not changes:
            return stopped
        if stopped.status == "stopped":
            raise UsageError(*(resume_differs(stopped, *change) for change in changes))
    if plan.recipe.strategy != "fresh" and on_existing is None and newest.status == "finished":
        return None  # a continuation of a finished run is a new run by its nature
    raise usage_error(
        "series-exists",
        ngettext("{name} has {n} run; the newest is {run}", "{name} has {n} runs; the newest is {run}", len(earlier),
                 name=plan.recipe.name, run=newest.id),
        where=str(root),
        fix=_("`--on-existing new` trains another one and keeps the old; `--continue incremental` (or retune, augment, "
              "custom) continues from it; `fasttune chat {name}` talks to it", name=plan.recipe.name),
    )  # fmt: skip


def resume_differs(run: Run, key: str, old: Any, new: Any) -> Finding:
    """The finding for one setting whose value is not the one that the stopped run began with."""
    return Finding(
        "resume-differs", "error", f"{run.id}: {key}",
        _("the stopped run began with {old}, now it is {new}", old=old, new=new),
        why=_("a resumed run must equal one that was never stopped"),
        fix=_("set it back to resume; for other parameters use `--continue retune`, for other data "
              "`--continue custom`; `--on-existing new` trains another run beside it"),
    )  # fmt: skip
