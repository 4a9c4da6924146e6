"""Whether running a recipe resumes a stopped run, and what may not have changed meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fasttune.command import OnExisting, command_line, runs_option
from fasttune.console import FasttuneError, Finding, UsageError, _, ngettext, usage_error
from fasttune.planning.differing import SAMPLES, differences, samples_in_words
from fasttune.planning.parents import (
    MORE_EPOCHS,
    OF_THE_CONTINUATION,
    given,
    inherit,
    is_running,
    resume_command,
    run_command,
    unfinished,
)
from fasttune.planning.strategy import Plan, decide
from fasttune.recipe.load import load_recipe
from fasttune.runs import documents, store
from fasttune.runs.store import Run

# What may differ when a run is resumed: none of it reaches the weights.
MAY_DIFFER = (
    "name", "data.train", "data.val", "export.", "probe.", "facts.",
    "train.logging_steps", "train.save_steps", "train.save_total_limit", "train.keep_epochs",
    "train.report_to",
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
            raise UsageError(*(resume_differs(stopped, plan, *change) for change in changes))
    if plan.recipe.strategy != "fresh" and on_existing is None and newest.status == "finished":
        return None  # a continuation of a finished run is a new run by its nature
    raise series_exists(root, plan, earlier)


def other_prompt(run: Run | None, plan: Plan) -> list[Finding]:
    """The warning about a run that is resumed, or whose files are made, and that is served with another system prompt
    than the recipe asks for by now: that is recorded with a run, so that every file and every answer has the same."""
    if run is None or documents.read_plan(run).served_system == plan.served_system:
        return []
    what = _("{run} is served with the system prompt that was recorded when it began, not with the recipe's of now",
             run=run.id)  # fmt: skip
    command = run_command(plan.recipe, run.root, on_existing="new")
    fix = _("for the new one train another run: `{command}`", command=command)
    return [Finding("other-served-prompt", "warning", f"{plan.recipe.path}: export.prompt", what, fix=fix)]


def require_same(run: Run, plan: Plan) -> Run:
    """The run, if the plan is what it began with. Raises UsageError with each difference."""
    changes = [entry for entry in differences(run, plan) if not entry[0].startswith(MAY_DIFFER)]
    if changes:
        raise UsageError(*(resume_differs(run, plan, *change) for change in changes))
    return run


def same_runs(root: Path, plan: Plan) -> list[Run]:
    """The runs of a plan's series that train what it says, or have trained it, and keep the same epochs: the complete
    ones first, of each kind the newest first. Those that a live process trains are not among them, nor any whose
    documents are damaged."""
    found = [run for run in reversed(store.list_runs(root, plan.recipe.name)) if is_same(run, plan)]
    return sorted(found, key=lambda run: not documents.is_complete(run))


def is_same(run: Run, plan: Plan) -> bool:
    """Whether a run that no live process trains is the one that a plan would make."""
    if run.status == "running" or not run.provenance.is_file():
        return False
    now, free = plan.document(), tuple(key for key in MAY_DIFFER if key != "train.keep_epochs")
    try:
        then = documents.read_plan(run)
        changes = [key for key, _old, _new in differences(run, plan) if not key.startswith(free)]
        documents.is_complete(run)  # reads its scores
    except FasttuneError:
        return False
    start = [(one.parent, one.start, one.start_step, one.start_epoch, one.total_steps) for one in (then, now)]
    return not changes and start[0] == start[1]


def series_exists(root: Path, plan: Plan, earlier: Sequence[Run]) -> UsageError:
    """The error where a series has runs and what to do with them was not said."""
    series, newest = plan.recipe.name, earlier[-1]
    return usage_error(
        "series-exists",
        ngettext("{name} has {n} run; the newest is {run}", "{name} has {n} runs; the newest is {run}", len(earlier),
                 name=series, run=newest.id),
        where=str(root), fix=choices(root, plan),
    )  # fmt: skip


def choices(root: Path, plan: Plan) -> str:
    """What can be done beside the runs of a series, by commands that are not refused."""
    used, new = store.current(root, plan.recipe.name), run_command(plan.recipe, root, on_existing="new")
    if used is None or used.status != "finished":
        return _("`{new}` trains another one and keeps the old", new=new)
    diagnose = command_line(["diagnose", plan.recipe.name, *runs_option(root)])
    if more := continuing(root, plan):
        return _("`{new}` trains another one and keeps the old; `{more}` continues from it (or `retune`, `augment`, "
                 "`custom`); `{diagnose}` says what to type next", new=new, more=more, diagnose=diagnose)  # fmt: skip
    return _("`{new}` trains another one and keeps the old; `{diagnose}` says what to type next", new=new,
             diagnose=diagnose)  # fmt: skip


def continuing(root: Path, plan: Plan) -> str:
    """The command that trains the run in use on by a plan's recipe; "" where that would be refused, as with other
    data."""
    kept = [one for one in given(plan.recipe) if not one.startswith(OF_THE_CONTINUATION)]
    try:
        recipe = load_recipe(plan.recipe.path, [*kept, MORE_EPOCHS, "strategy=incremental"])
        decide(inherit(recipe, root, "new"), plan.dataset, root, on_existing="new")
    except FasttuneError:
        return ""
    return run_command(plan.recipe, root, MORE_EPOCHS, strategy="incremental")


def resume_differs(run: Run, plan: Plan, key: str, old: Any, new: Any) -> Finding:
    """The finding for one setting whose value is not the one that the stopped run began with.

    The command that resumes names the files of then; no command brings back what stood in them.
    """
    fix = _("`{resume}` resumes it as it began, and `{new}` trains another run beside it; once it is finished, "
            "`{retune}` takes other parameters, and `--continue custom` other data",
            resume=resume_command(run), new=run_command(plan.recipe, run.root, on_existing="new"),
            retune=run_command(plan.recipe, run.root, strategy="retune"))  # fmt: skip
    if key == SAMPLES:
        fix = _("restore the data files that were edited; {fix}", fix=fix)
    what = _("the stopped run began with {old}, now it is {new}", old=old, new=new)
    if key == SAMPLES:
        what = samples_in_words(run, plan.recipe, plan.dataset)
    why = _("a resumed run must equal one that was never stopped")
    return Finding("resume-differs", "error", f"{run.id}: {key}", what, why, fix)
