"""The menus: what to do with a series that has runs already, and `fasttune menu`, the friendly entry.

A menu does nothing by itself. What it comes to is a command line that could have been typed; it is printed, so that it
can be repeated, and handed back:

    fasttune run x.toml ── series exists, a terminal, no flag that decides ──► existing ──► Order ──► the run
    fasttune menu ──► entry ──► ["run", "x.toml"] ──► that command

    resume     where the newest run was stopped
    continue   incremental | retune | augment | custom, each with its questions (questions.py)
    new        another run beside the old ones
    overwrite  a run whose id is typed
    skip       what is there
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasttune import advice, ask, lineage, questions, recipe, runs
from fasttune.console import FasttuneError, UsageError, _, ngettext, say, show_findings, usage_error
from fasttune.recipe import Recipe
from fasttune.runs import Run
from fasttune.strategy import OnExisting, Plan, run_to_resume, unfinished
from fasttune.strict import as_toml

DATA_FILES = ("*.jsonl", "*.json", "data/*.jsonl", "data/*.json", "data/*/*.jsonl", "data/*/*.json")
MANY = 20
BACK, CANCEL = "back", "cancel"


@dataclass(frozen=True)
class Order:
    """A `fasttune run` as it is typed; `overrides` are those of --set."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    root: Path = Path("runs")
    strategy: str | None = None
    on_existing: OnExisting | None = None
    overwrite: str | None = None
    allow_overfit: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """What is laid over the recipe, the strategy included."""
        return (*self.overrides, f"strategy={self.strategy}") if self.strategy else self.overrides

    @property
    def arguments(self) -> list[str]:
        """The command line after `fasttune`."""
        flags = {"--continue": self.strategy, "--on-existing": self.on_existing, "--overwrite": self.overwrite}
        words = ["run", str(self.recipe), *root_option(self.root)]
        words += [word for flag, value in flags.items() if value for word in (flag, value)]
        words += ["--allow-overfit"] * self.allow_overfit
        return words + [word for override in self.overrides for word in ("--set", override)]


@dataclass(frozen=True)
class Series:
    """What the menu of a series talks about; `parent` is the run to continue from, None where none was finished."""

    order: Order
    recipe: Recipe
    earlier: list[Run]
    parent: Run | None

    @property
    def newest(self) -> Run:
        return self.earlier[-1]


Planner = Callable[[Order], Plan]  # raises FasttuneError where an order contradicts itself or what is there


def root_option(root: Path) -> list[str]:
    """--runs, where the folder is not the one that is taken without it."""
    return [] if str(root) == os.environ.get("FASTTUNE_RUNS", "runs") else ["--runs", str(root)]


def command(arguments: Iterable[str]) -> str:
    """A command line to copy."""
    return shlex.join(["fasttune", *arguments])


# fasttune run -------------------------------------------------------------------------------------------------------


def wanted(order: Order) -> bool:
    """Whether a `fasttune run` leaves open what to do with the runs there are, and somebody can be asked.

    A recipe that continues says so itself; it is asked about only where a stopped run stands in its way.
    """
    if order.strategy or order.on_existing or order.overwrite or not ask.can_ask():
        return False
    series = look(order)
    return series is not None and (series.recipe.strategy == "fresh" or not is_done(series.newest))


def existing(order: Order, plan: Planner) -> Order:
    """Ask what to do with the runs there are until it is settled.

    Raises KeyboardInterrupt where that is nothing.
    """
    series = look(order)
    assert series is not None  # `wanted` said so
    figures = lineage.read_series(order.root, series.recipe.name)
    say(ngettext("{name} has {n} run:", "{name} has {n} runs:", len(figures), name=series.recipe.name))
    for one in figures[-MANY:]:
        say(f"  {'→' if one.current else ' '} {lineage.state_line(one)}")
    while True:
        chosen = pick(series, plan)
        settled = settle(chosen, plan) if chosen else None
        if settled:
            say(_("the same without questions: {command}", command=command(settled.arguments)))
            return settled


def look(order: Order) -> Series | None:
    """The series of an order's recipe; None where it has no runs. Raises UsageError for a recipe that is wrong."""
    read = recipe.load(order.recipe, order.changes)
    earlier = runs.list_runs(order.root, read.name)
    named = read.continue_.parent
    current = runs.current(order.root, read.name) if named == "latest" else runs.find(order.root, named)
    parent = current if current and current.status == "finished" else None
    return Series(order, read, earlier, parent) if earlier else None


def existing_name(order: Order) -> str:
    """The name of the order's series; empty where it has no runs."""
    series = look(order)
    return series.recipe.name if series else ""


def is_done(run: Run) -> bool:
    """Whether a run is trained and its files are made."""
    return run.status == "finished" and run.answered


def pick(series: Series, plan: Planner) -> Order | None:
    """One round of the menu: the order it came to, None where the person went back."""
    order = series.order
    match ask.choose(_("What shall be done?"), first_choices(series)):
        case "resume":
            return resuming(series, plan)
        case "continue":
            return continuing(series)
        case "new":
            return replace(order, on_existing="new")
        case "overwrite":
            return overwriting(series)
        case "skip":
            return replace(order, on_existing="skip")
    raise KeyboardInterrupt


def first_choices(series: Series) -> dict[str, str]:
    """What can be done, the likeliest first."""
    choices = {}
    if unfinished(series.order.root, series.recipe.name):
        choices["resume"] = _("▶️ resume {run}: it was stopped before its end", run=series.newest.id)
    if series.parent:
        choices["continue"] = _("🔄 continue training, in one of four ways")
    choices["new"] = _("🆕 new run, keep the old ones")
    if any(run.status != "running" for run in series.earlier):
        choices["overwrite"] = _("🗑️ overwrite a run")
    if series.parent:
        choices["skip"] = _("⏭️ skip training, use what is there")
    return choices | {CANCEL: _("❌ cancel")}


def resuming(series: Series, plan: Planner) -> Order:
    """The order that goes on with the stopped run: this recipe with what was overridden then; where that is not what
    the run began with, the run's own copy of its recipe."""
    run, order = series.newest, replace(series.order, on_existing="resume")
    settings = runs.read_json(run.plan)["settings"]
    given = {one["key"]: one["value"] for one in settings if one["source"] == "override" and one["value"] is not None}
    strategy = given.pop("strategy", None)
    again = replace(order, strategy=strategy, overrides=laid_over(order.overrides, given))
    try:
        run_to_resume(order.root, plan(again), "resume")
    except UsageError:
        return replace(again, recipe=run.recipe)
    return again


def overwriting(series: Series) -> Order | None:
    """The run to remove, its id typed in full; None where nothing was typed."""
    ids = {run.id: run.id for run in reversed(series.earlier) if run.status != "running"}
    doomed = next(iter(ids)) if len(ids) == 1 else ask.choose(_("Which one?"), ids | {BACK: _("back")})
    if doomed == BACK:
        return None
    say(_("{folder} will be removed with its checkpoints, adapter and GGUF files", folder=series.order.root / doomed))
    typed = ask.text(
        _("Type {run} to remove it, or nothing to go back:", run=doomed),
        "",
        lambda entered: None if entered in ("", doomed) else _("that is not {run}", run=doomed),
    )
    return replace(series.order, overwrite=doomed) if typed else None


def laid_over(overrides: Iterable[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as they are typed, those of the settings' keys replaced."""
    kept = [override for override in overrides if override.partition("=")[0].strip() not in settings]
    return (*kept, *(f"{key}={typed_value(value)}" for key, value in settings.items()))


def typed_value(value: Any) -> str:
    """A value after --set: a plain word needs no quotes."""
    return value if isinstance(value, str) and value.isidentifier() else as_toml(value)


def settle(order: Order, plan: Planner) -> Order | None:
    """Show what an order comes to; the order to carry out, None where the person went back or it can't be done."""
    if order.on_existing == "skip":
        return order
    try:
        todo = plan(order)
        resume = run_to_resume(order.root, todo, "new" if order.overwrite else order.on_existing)
    except FasttuneError as problem:
        show_findings(problem.findings)
        return overfitting(order, problem, plan)
    show_findings(todo.findings)
    for line in resume_brief(resume, todo) if resume else brief(todo):
        say(f"  {line}")
    return order if ask.choose(_("Start?"), {"go": _("go"), BACK: _("back")}) == "go" else None


def overfitting(order: Order, problem: FasttuneError, plan: Planner) -> Order | None:
    """The same order with --allow-overfit, where that alone stands against it and the person wants it."""
    if {finding.code for finding in problem.findings} != {"too-many-epochs"}:
        return None
    return settle(replace(order, allow_overfit=True), plan) if ask.agree(_("Train as long all the same?")) else None


def brief(todo: Plan) -> list[str]:
    """A plan in a few lines: where from, how long, on what, and what differs from the parent."""
    parent, step = todo.start.parent, todo.start.step
    lines = [
        started_from(todo),
        ngettext(
            "{n} step, up to step {total}: {epochs:.3g} epochs of {samples} samples, {val} held out",
            "{n} steps, up to step {total}: {epochs:.3g} epochs of {samples} samples, {val} held out",
            todo.total_steps - step, total=todo.total_steps, epochs=todo.epochs,
            samples=len(todo.dataset.train), val=len(todo.dataset.val),
        ),
    ]  # fmt: skip
    if parent is not None:
        changed = lineage.changes(runs.read_json(parent.plan), todo.document())
        lines.append(_("changed: {changes}", changes=lineage.in_words(changed)) if changed else _("changed: nothing"))
    return lines


def started_from(todo: Plan) -> str:
    """The strategy and where its weights come from."""
    strategy, parent = todo.recipe.strategy, todo.start.parent.id if todo.start.parent else ""
    match todo.start.kind:
        case "checkpoint":
            return _(
                "{strategy}: goes on from step {step} of {run}", strategy=strategy, step=todo.start.step, run=parent
            )
        case "adapter":
            return _("{strategy}: goes on from the weights of {run}", strategy=strategy, run=parent)
        case "base":
            return _("{strategy}: begins with the base {base}", strategy=strategy, base=todo.recipe.model.base)


def resume_brief(run: Run, todo: Plan) -> list[str]:
    """How far a stopped run came."""
    if run.status == "finished":
        return [_("{run} is trained; its files are made", run=run.id)]
    checkpoint, flaws = runs.newest_whole_checkpoint(run)
    step = runs.checkpoint_step(checkpoint) if checkpoint else todo.start.step
    return [*flaws, _("{run} goes on from step {step} of {total}", run=run.id, step=step, total=todo.total_steps)]


def to_overwrite(order: Order, todo: Plan) -> Run | None:
    """The run that --overwrite names, None without it.

    Raises UsageError for anything but the id of a run of the same series, and for the run that this one continues from.
    """
    if not order.overwrite:
        return None
    run = runs.find(order.root, order.overwrite)
    if "/" not in order.overwrite.strip("/") or run.series != todo.recipe.name:
        what = _("{name} is not the id of a run of {series}", name=order.overwrite, series=todo.recipe.name)
        known = ", ".join(one.id for one in runs.list_runs(order.root, todo.recipe.name)) or _("none yet")
        raise usage_error("not-a-run-id", what, where="--overwrite", fix=_("its runs are {known}", known=known))
    if todo.start.parent and run.folder.resolve() == todo.start.parent.folder.resolve():
        what = _("{run} is what this run continues from", run=run.id)
        fix = _('keep it, or begin anew: strategy = "fresh"')
        raise usage_error("overwrites-parent", what, where="--overwrite", fix=fix)
    return run


# The four strategies ------------------------------------------------------------------------------------------------


def continuing(series: Series) -> Order | None:
    """Ask which strategy, and its questions; None where the person went back."""
    assert series.parent is not None  # else `continue` is not offered
    parent = questions.read_parent(series.parent)
    say(_("goes on from {state}", state=lineage.state_line(parent.figures)))
    fit = advice.fitting(series.parent)
    say(fit.why)
    strategy = ask.choose(_("How?"), strategies() | {BACK: _("back")}, fit.strategies[0])
    if strategy == BACK:
        return None
    settings = questions.answers(strategy, parent, series.recipe)
    overrides = laid_over(series.order.overrides, settings)
    beside: OnExisting | None = None if is_done(series.newest) else "new"  # else the stopped run would be resumed
    return replace(series.order, strategy=strategy, overrides=overrides, on_existing=beside)


def strategies() -> dict[str, str]:
    """The four with what each is for."""
    return {
        "incremental": _("📈 incremental: more epochs; answers fit but are short or shallow"),
        "retune": _("⚙️ retune: from the base with other parameters; quality is not enough"),
        "augment": _("📊 augment: the epochs that little data needs; slips of character"),
        "custom": _("🔧 custom: everything as you say"),
    }


# fasttune menu ------------------------------------------------------------------------------------------------------


def entry(root: Path) -> list[str] | None:
    """Ask what to work on and what to do with it: the arguments of a fasttune command, None to end.

    Raises UsageError where nobody can be asked.
    """
    if not ask.can_ask():
        raise usage_error("no-terminal", _("the menu needs a terminal"), fix=_("fasttune --help lists the commands"))
    while True:
        kind, _colon, name = ask.choose(_("What do you want to work on?"), subjects(root)).partition(":")
        actions = {"series": of_series, "recipe": of_recipe, "data": of_data, "file": of_file}
        if kind not in actions:
            return None
        arguments = actions[kind](name, root)
        if arguments:
            say(command(arguments))
            return arguments


def subjects(root: Path) -> dict[str, str]:
    """Series with their state, recipes that were never trained, data files that no recipe names."""
    found = {f"series:{name}": f"{name}: {newest_state(root, name)}" for name in runs.list_series(root)}
    series, used = set(runs.list_series(root)), set()
    for path, read in recipes().items():
        if read is None:
            found[f"recipe:{path}"] = _("{recipe}: has errors", recipe=path)
        elif read.name not in series:
            found[f"recipe:{path}"] = _("{recipe}: not trained yet", recipe=path)
        used |= {Path(file).resolve() for file in (*read.data.train, str(read.data.val))} if read else set()
    files = sorted({path for pattern in DATA_FILES for path in Path().glob(pattern)})
    fresh = [path for path in files if path.resolve() not in used]
    found |= {f"data:{path}": _("a new recipe for {file}", file=path) for path in fresh[:MANY]}
    return found | {"file:": _("a new recipe for another file"), "quit": _("nothing, thank you")}


def newest_state(root: Path, name: str) -> str:
    """The state of the newest run of a series in one line."""
    return lineage.state_line(lineage.read_figures(runs.list_runs(root, name)[-1]))


def recipes() -> dict[Path, Recipe | None]:
    """The recipes of the usual folder; None for one with errors."""
    found: dict[Path, Recipe | None] = {}
    for path in sorted(Path("recipes").glob("*.toml")):
        try:
            found[path] = recipe.load(path)
        except UsageError:
            found[path] = None
    return found


def of_series(name: str, root: Path) -> list[str] | None:
    """What to do with a series."""
    current = runs.current(root, name)
    choices = {
        "train": _("🚀 train: continue, new run, overwrite"),
        "chat": _("💬 chat with it"),
        "runs": _("🌳 show its runs"),
        "plan": _("📋 show the plan of its recipe"),
        BACK: _("back"),
    }
    if current is None or not current.exports.is_dir() or not any(current.exports.glob("*.gguf")):
        del choices["chat"]
    picked = ask.choose(name, choices)
    if picked == BACK:
        return None
    if picked in ("chat", "runs"):
        return [picked, name, *root_option(root)]
    path = recipe_of(name, root)
    return [{"train": "run"}.get(picked, picked), str(path), *root_option(root)] if path else None


def recipe_of(name: str, root: Path) -> Path | None:
    """The recipe of a series: one of the usual folder, else the newest run's copy; None where the person went back."""
    own = [str(path) for path, read in recipes().items() if read and read.name == name]
    if not own:
        return runs.list_runs(root, name)[-1].recipe
    if len(own) == 1:
        return Path(own[0])
    picked = ask.choose(_("Which recipe?"), {path: path for path in own} | {BACK: _("back")})
    return None if picked == BACK else Path(picked)


def of_recipe(path: str, root: Path) -> list[str] | None:
    """What to do with a recipe that was never trained."""
    picked = ask.choose(path, {"run": _("🚀 train it"), "plan": _("📋 show its plan"), BACK: _("back")})
    return None if picked == BACK else [picked, path, *root_option(root)]


def of_data(path: str, root: Path) -> list[str] | None:
    """A recipe for a data file: how the series is to be called."""
    file = Path(path)
    proposed = file.parent.name if file.stem in ("train", "data") and file.parent.name else file.stem
    name = ask.text(_("How shall the model be called?"), proposed, lambda entered: unusable(entered, root))
    return ["init", name, "--data", path]


def of_file(_name: str, root: Path) -> list[str] | None:
    """The same for a file that is not in the list."""
    path = ask.text(
        _("Which file?"), "", lambda entered: None if Path(entered).is_file() else _("there is no such file")
    )
    return of_data(path, root)


def unusable(name: str, root: Path) -> str | None:
    """What is wrong with a name for a new series, if anything."""
    if not name or not recipe.names_a_folder(name):
        return _("letters, digits, - _ and . only; a letter or digit first")
    if (Path("recipes") / f"{name}.toml").exists() or runs.list_runs(root, name):
        return _("there is one of that name already")
    return None
