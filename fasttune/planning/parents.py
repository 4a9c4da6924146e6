"""The run that a continuation continues from, what is inherited from it, and what can be done where there is none.

A continuation that starts from the base needs no parent: in a series without runs it trains the first one, by the
values of its own recipe. One that starts from a checkpoint or an adapter is refused, with the command that makes its
parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from fasttune.command import OnExisting, command_line, run_arguments
from fasttune.console import Finding, UsageError, _, usage_error
from fasttune.recipe.load import load_recipe, settings, with_values
from fasttune.recipe.schema import Recipe
from fasttune.recipe.values import as_toml
from fasttune.runs import documents, epochs, store
from fasttune.runs.documents import StartKind
from fasttune.runs.epochs import KeptEpoch
from fasttune.runs.store import Run

MORE = 1.5  # epochs that a continuation is proposed to add
MORE_EPOCHS = f"continue.add_epochs={MORE:g}"  # what `incremental` needs to be told, in the commands that propose it
OVERFIT_EPOCHS = 10.0  # more epochs in total are refused without --allow-overfit
# Overrides that are about continuing and its length, and not about the run that is to be its parent.
PARENT = "continue.parent="
OF_THE_CONTINUATION = ("strategy", "continue.", "train.epochs", "train.max_steps", "train.until.")


def inherit(recipe: Recipe, root: Path, on_existing: OnExisting | None = None) -> Recipe:
    """The recipe of a continuation with the parent's value of every setting it leaves out; a fresh recipe as it is.

    Where the parent left a setting to a default that follows from others (alpha = 2 × r), it follows from them again.
    Its epochs are those it trained, however it came to end there. Raises UsageError as `find_parent` does.
    """
    parent = find_parent(recipe, root, on_existing)
    if parent is None:
        return recipe
    own = ["name", "strategy", "continue.", "train.epochs", "train.max_steps", "train.until."]
    left_out = {setting.key for setting in settings(recipe) if setting.source.startswith("default")}
    before = documents.read_plan(parent)
    if recipe.train.lr_scheduler_type == "constant":
        own.append("train.warmup_steps")  # it has none
    values = {
        setting.key: setting.value
        for setting in before.settings
        if setting.key in left_out
        and not setting.key.startswith(tuple(own))
        and not setting.source.startswith("default (")
        and setting.value is not None
    }
    if recipe.strategy in ("retune", "custom") and "train.epochs" in left_out:  # else a total with the parent's
        values["train.epochs"] = trained_steps(parent) / before.steps_per_epoch
    return with_values(recipe, values, f"parent run {parent.id}")


def find_parent(recipe: Recipe, root: Path, on_existing: OnExisting | None = None) -> Run | None:
    """The finished run a continuation continues from; None for a fresh recipe, and for the first run of a series.

    A run that is resumed keeps the parent it began from, also where `current` names another run since. Raises
    UsageError where there is no parent and one is needed, or where the parent is not finished.
    """
    if recipe.strategy == "fresh":
        return None
    named = recipe.continue_.parent
    if named == "latest" and not store.list_runs(root, recipe.name):
        if start_kind(recipe) == "base":
            return None
        raise nothing_to_continue(recipe, root)
    resumed = unfinished(root, recipe.name) if on_existing in (None, "resume") and named == "latest" else None
    before = documents.read_plan(resumed) if resumed else None
    if before and before.strategy == recipe.strategy:
        if before.parent is None:
            return None  # it was the first run of its series
        named = before.parent
    parent = store.find(root, recipe.name if named == "latest" else named)
    if parent.status == "running":
        raise is_running(parent)
    if parent.status != "finished":
        raise usage_error(
            "parent-unfinished",
            _("{run} was stopped before its end", run=parent.id),
            where=f"{recipe.path}: continue.parent",
            fix=how_to_finish(parent),
        )
    return parent


def start_kind(recipe: Recipe) -> StartKind:
    """What a continuation starts from: as its recipe says, else by its strategy."""
    if not recipe.sources["continue.start"].startswith("default"):
        return recipe.continue_.start
    return "base" if recipe.strategy == "retune" else "checkpoint"


def trained_steps(run: Run) -> int:
    """Steps that a finished run trained; fewer than planned where `until` or early stopping ended it."""
    if not run.trainer_state.is_file():
        return documents.read_plan(run).total_steps
    return documents.read_trainer_state(run).global_step


def unfinished(root: Path, series: str) -> Run | None:
    """The newest run of a series where it can be resumed: it was stopped, or its export or probe is missing."""
    newest = next(reversed(store.list_runs(root, series)), None)
    if newest is None or newest.status == "running" or not newest.provenance.is_file():
        return None
    return None if documents.is_complete(newest) else newest


def epoch_to_continue(parent: Run, resumed: Run | None) -> KeptEpoch | None:
    """The kept epoch of a parent that a continuation begins with: the one that is picked, for a run that is resumed the
    one that it began with; None for the parent's own adapter and its last checkpoint.

    Raises FasttuneError where that epoch is no longer there.
    """
    began = documents.read_plan(resumed) if resumed else None
    if began is None or began.parent != parent.id:
        return epochs.picked_epoch(parent)
    return None if began.start_epoch is None else epochs.existing_epoch(parent, began.start_epoch)


# What is said -------------------------------------------------------------------------------------------------------


def first_of_series(recipe: Recipe, parent: Run | None) -> list[Finding]:
    """Say that a continuation trains the first run of its series; nothing for any other run."""
    if parent is not None or recipe.strategy == "fresh":
        return []
    what = _(
        "{name} has no runs yet: this one is its first, from the base with the recipe's values; the next one continues "
        "from it",
        name=recipe.name,
    )
    return [Finding("first-of-series", "info", f"{recipe.path}: strategy", what)]


def nothing_to_continue(recipe: Recipe, root: Path) -> UsageError:
    """The error where a parent is needed and the series has no runs, with the command that trains one."""
    return usage_error(
        "nothing-to-continue",
        _("{name} has no runs in {root} to continue from", name=recipe.name, root=root),
        where=f"{recipe.path}: strategy",
        fix=_("train its first run, then repeat this command: `{command}`", command=parent_command(recipe, root)),
    )


def parent_command(recipe: Recipe, root: Path) -> str:
    """The command that trains a first run for this continuation: by a recipe for it that lies in the same folder, else
    by its own with the strategy `fresh`."""
    kept = [one for one in given(recipe) if not one.startswith(OF_THE_CONTINUATION)]
    beside = (path for path in sorted(recipe.path.parent.glob("*.toml")) if begins(path, recipe.name))
    path = next(beside, None)
    return command_line(run_arguments(path or recipe.path, root, kept if path else [*kept, "strategy=fresh"]))


def begins(path: Path, series: str) -> bool:
    """Whether a recipe file is one that trains a series from the base."""
    try:
        read = load_recipe(path)
    except UsageError:
        return False
    return (read.name, read.strategy) == (series, "fresh")


def given(recipe: Recipe) -> list[str]:
    """The overrides of a recipe, as they are typed after --set."""
    return [f"{one.key}={typed_value(one.value)}" for one in settings(recipe) if one.source == "override"]


def typed_value(value: Any) -> str:
    """A value as it is typed after --set: a plain word needs no quotes."""
    return value if isinstance(value, str) and value.isidentifier() else as_toml(value)


def run_command(
    recipe: Recipe,
    root: Path,
    *more: str,
    strategy: str | None = None,
    on_existing: OnExisting | None = None,
    allow_overfit: bool = False,
) -> str:
    """`fasttune run` of a recipe with its overrides and `more` of them.

    Another `strategy` takes the place of its own, and of the overrides that are about that one's length; the parent
    that was named stays.
    """
    replaced = OF_THE_CONTINUATION if strategy else ("strategy=",)
    again = tuple(one.partition("=")[0] + "=" for one in more)
    kept = [one for one in given(recipe) if not one.startswith((*replaced, *again)) or one.startswith(PARENT)]
    if strategy is None and recipe.sources["strategy"] == "override":
        strategy = recipe.strategy if recipe.strategy != "fresh" else None
        kept += ["strategy=fresh"] * (recipe.strategy == "fresh")
    return command_line(
        run_arguments(
            recipe.path, root, [*kept, *more], strategy=strategy, on_existing=on_existing, allow_overfit=allow_overfit
        )
    )


def began_with(run: Run) -> Mapping[str, Any]:
    """{dotted key: value} of the overrides that a run began with."""
    settings = documents.read_plan(run).settings
    return {one.key: one.value for one in settings if one.source == "override" and one.value is not None}


def how_to_finish(run: Run) -> str:
    """The command that resumes a stopped run; where it was killed before it wrote anything, what replaces it."""
    if run.plan.is_file():
        return _("resume it first: `{command}`", command=resume_command(run))
    return _("it holds nothing yet; `--overwrite {run}` trains another one in its place", run=run.id)


@dataclass(frozen=True)
class ResumeWords:
    """What resumes a run beside its recipe: the overrides that it began with, and the other flags of `fasttune run`."""

    overrides: tuple[str, ...]
    strategy: str | None
    allow_overfit: bool

    @property
    def flags(self) -> ResumeFlags:
        """The flags by name, as `command.run_arguments` takes them."""
        return {"strategy": self.strategy, "on_existing": "resume", "allow_overfit": self.allow_overfit}


class ResumeFlags(TypedDict):
    """The flags of a `fasttune run` that resumes."""

    strategy: str | None
    on_existing: OnExisting | None
    allow_overfit: bool


def resume_words(run: Run) -> ResumeWords:
    """What is typed to resume a run, from the copy of its recipe."""
    overrides = dict(began_with(run))
    strategy = overrides.pop("strategy") if overrides.get("strategy", "fresh") != "fresh" else None
    given = tuple(f"{key}={typed_value(value)}" for key, value in overrides.items())
    return ResumeWords(given, strategy, documents.read_plan(run).epochs > OVERFIT_EPOCHS)


def resume_command(run: Run) -> str:
    """The command that resumes a stopped run, from the copy of its recipe."""
    words = resume_words(run)
    return command_line(run_arguments(run.recipe, run.root, words.overrides, **words.flags))


def is_running(run: Run) -> UsageError:
    """The error where another process trains the run."""
    return usage_error(
        "run-is-locked", _("another process is training {run}", run=run.id), fix=_("wait for it, or stop it first")
    )
