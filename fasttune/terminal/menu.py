"""The menus: what to do with a series that has runs already, and `fasttune menu`, the friendly entry.

A menu does nothing by itself. What it comes to is a command line that could have been typed; it is printed, so that it
can be repeated, and handed back:

    fasttune run x.toml ── series exists, a terminal, no flag that decides ──► ask_about_existing ──► RunRequest
    fasttune menu ──► entry ──► ["run", "x.toml"] ──► that command

    resume     where the newest run was stopped
    continue   incremental | retune | augment | custom, each with its questions (questions.py)
    new        another run beside the old ones
    overwrite  a run whose id is typed
    skip       what is there
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasttune.console import FasttuneError, UsageError, _, can_ask, ngettext, say, show_findings, usage_error
from fasttune.pipeline import Planner, RunRequest, command_line, runs_option
from fasttune.planning import advice
from fasttune.planning.resume import run_to_resume
from fasttune.planning.strategy import OnExisting, Plan, unfinished
from fasttune.recipe.load import load_recipe, names_a_folder
from fasttune.recipe.schema import Recipe
from fasttune.recipe.values import as_toml
from fasttune.runs import checkpoints, documents, store, summary
from fasttune.runs.store import Run
from fasttune.terminal import prompts, questions, runs_tree

DATA_FILES = ("*.jsonl", "*.json", "data/*.jsonl", "data/*.json", "data/*/*.jsonl", "data/*/*.json")
MANY = 20
BACK, CANCEL = "back", "cancel"


@dataclass(frozen=True)
class Series:
    """What the menu of a series talks about; `parent` is the run to continue from, None where none was finished."""

    request: RunRequest
    recipe: Recipe
    earlier: list[Run]
    parent: Run | None

    @property
    def newest(self) -> Run:
        return self.earlier[-1]


# fasttune run -------------------------------------------------------------------------------------------------------


def needs_answer(request: RunRequest, planner: Planner) -> bool:
    """Whether a `fasttune run` leaves open what to do with the runs there are, and somebody can be asked.

    A recipe that continues says so itself; it is asked about only where a stopped run stands in its way.
    """
    if request.strategy or request.on_existing or request.overwrite or not can_ask():
        return False
    series = look(request, planner)
    return series is not None and (series.recipe.strategy == "fresh" or not is_done(series.newest))


def ask_about_existing(request: RunRequest, planner: Planner) -> RunRequest:
    """Ask what to do with the runs there are until it is settled.

    Raises KeyboardInterrupt where that is nothing.
    """
    series = look(request, planner)
    assert series is not None  # `needs_answer` said so
    figures = summary.read_series(request.root, series.recipe.name)
    say(ngettext("{name} has {n} run:", "{name} has {n} runs:", len(figures), name=series.recipe.name))
    for one in figures[-MANY:]:
        say(f"  {'→' if one.current else ' '} {runs_tree.state_line(one)}")
    while True:
        chosen = pick(series, planner)
        settled = settle(chosen, planner) if chosen else None
        if settled:
            say(_("the same without questions: {command}", command=command_line(settled.arguments)))
            return settled


def look(request: RunRequest, planner: Planner) -> Series | None:
    """The series of an request's recipe; None where it has no runs. Raises UsageError for a recipe that is wrong."""
    read = planner.recipe(request)
    earlier = store.list_runs(request.root, read.name)
    named = read.continue_.parent
    current = store.current(request.root, read.name) if named == "latest" else store.find(request.root, named)
    parent = current if current and current.status == "finished" else None
    return Series(request, read, earlier, parent) if earlier else None


def existing_name(request: RunRequest, planner: Planner) -> str:
    """The name of the request's series; empty where it has no runs."""
    series = look(request, planner)
    return series.recipe.name if series else ""


def is_done(run: Run) -> bool:
    """Whether a run is trained and its files are made."""
    return run.status == "finished" and documents.is_answered(run)


def pick(series: Series, planner: Planner) -> RunRequest | None:
    """One round of the menu: the request it came to, None where the person went back."""
    request = series.request
    match prompts.choose(_("What shall be done?"), first_choices(series)):
        case "resume":
            return resuming(series, planner)
        case "continue":
            return continuing(series)
        case "new":
            return replace(request, on_existing="new")
        case "overwrite":
            return overwriting(series)
        case "skip":
            return replace(request, on_existing="skip")
    raise KeyboardInterrupt


def first_choices(series: Series) -> dict[str, str]:
    """What can be done, the likeliest first."""
    choices = {}
    if unfinished(series.request.root, series.recipe.name):
        choices["resume"] = _("▶️ resume {run}: it was stopped before its end", run=series.newest.id)
    if series.parent:
        choices["continue"] = _("🔄 continue training, in one of four ways")
    choices["new"] = _("🆕 new run, keep the old ones")
    if any(run.status != "running" for run in series.earlier):
        choices["overwrite"] = _("🗑️ overwrite a run")
    if series.parent:
        choices["skip"] = _("⏭️ skip training, use what is there")
    return choices | {CANCEL: _("❌ cancel")}


def resuming(series: Series, planner: Planner) -> RunRequest:
    """The request that goes on with the stopped run: this recipe with what was overridden then; where that is not what
    the run began with, the run's own copy of its recipe."""
    run, request = series.newest, replace(series.request, on_existing="resume")
    settings = documents.read_plan(run).settings
    given = {one.key: one.value for one in settings if one.source == "override" and one.value is not None}
    strategy = given.pop("strategy", None)
    again = replace(request, strategy=strategy, overrides=laid_over(request.overrides, given))
    try:
        run_to_resume(request.root, planner.plan(again), "resume")
    except UsageError:
        return replace(again, recipe=run.recipe)
    return again


def overwriting(series: Series) -> RunRequest | None:
    """The run to remove, its id typed in full; None where nothing was typed."""
    ids = {run.id: run.id for run in reversed(series.earlier) if run.status != "running"}
    run_to_delete = next(iter(ids)) if len(ids) == 1 else prompts.choose(_("Which one?"), ids | {BACK: _("back")})
    if run_to_delete == BACK:
        return None
    say(
        _(
            "{folder} will be removed with its checkpoints, adapter and GGUF files",
            folder=series.request.root / run_to_delete,
        )
    )
    typed = prompts.text(
        _("Type {run} to remove it, or nothing to go back:", run=run_to_delete),
        "",
        lambda entered: None if entered in ("", run_to_delete) else _("that is not {run}", run=run_to_delete),
    )
    return replace(series.request, overwrite=run_to_delete) if typed else None


def laid_over(overrides: Iterable[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as they are typed, those of the settings' keys replaced."""
    kept = [override for override in overrides if override.partition("=")[0].strip() not in settings]
    return (*kept, *(f"{key}={typed_value(value)}" for key, value in settings.items()))


def typed_value(value: Any) -> str:
    """A value after --set: a plain word needs no quotes."""
    return value if isinstance(value, str) and value.isidentifier() else as_toml(value)


def settle(request: RunRequest, planner: Planner) -> RunRequest | None:
    """Show what an request comes to; the request to carry out, None where the person went back or it can't be done."""
    if request.on_existing == "skip":
        return request
    try:
        plan = planner.plan(request)
        resume = run_to_resume(request.root, plan, "new" if request.overwrite else request.on_existing)
    except FasttuneError as problem:
        show_findings(problem.findings)
        return overfitting(request, problem, planner)
    show_findings(plan.findings)
    for line in resume_brief(resume, plan) if resume else brief(plan):
        say(f"  {line}")
    return request if prompts.choose(_("Start?"), {"go": _("go"), BACK: _("back")}) == "go" else None


def overfitting(request: RunRequest, problem: FasttuneError, planner: Planner) -> RunRequest | None:
    """The same request with --allow-overfit, where that alone stands against it and the person wants it."""
    if {finding.code for finding in problem.findings} != {"too-many-epochs"}:
        return None
    return (
        settle(replace(request, allow_overfit=True), planner)
        if prompts.agree(_("Train as long all the same?"))
        else None
    )


def brief(plan: Plan) -> list[str]:
    """A plan in a few lines: where from, how long, on what, and what differs from the parent."""
    parent, step = plan.start.parent, plan.start.step
    lines = [
        started_from(plan),
        ngettext(
            "{n} step, up to step {total}: {epochs:.3g} epochs of {samples} samples, {val} held out",
            "{n} steps, up to step {total}: {epochs:.3g} epochs of {samples} samples, {val} held out",
            plan.total_steps - step, total=plan.total_steps, epochs=plan.epochs,
            samples=len(plan.dataset.train), val=len(plan.dataset.held_out),
        ),
    ]  # fmt: skip
    if parent is not None:
        changed = summary.changes(documents.read_plan(parent), plan.document())
        lines.append(_("changed: {changes}", changes=runs_tree.in_words(changed)) if changed else _("changed: nothing"))
    return lines


def started_from(plan: Plan) -> str:
    """The strategy and where its weights come from."""
    strategy, parent = plan.recipe.strategy, plan.start.parent.id if plan.start.parent else ""
    match plan.start.kind:
        case "checkpoint":
            return _(
                "{strategy}: goes on from step {step} of {run}", strategy=strategy, step=plan.start.step, run=parent
            )
        case "adapter":
            return _("{strategy}: goes on from the weights of {run}", strategy=strategy, run=parent)
        case "base":
            return _("{strategy}: begins with the base {base}", strategy=strategy, base=plan.recipe.model.base)


def resume_brief(run: Run, plan: Plan) -> list[str]:
    """How far a stopped run came."""
    if run.status == "finished":
        return [_("{run} is trained; its files are made", run=run.id)]
    checkpoint, flaws = checkpoints.newest_whole_checkpoint(run)
    step = checkpoints.checkpoint_step(checkpoint) if checkpoint else plan.start.step
    return [*flaws, _("{run} goes on from step {step} of {total}", run=run.id, step=step, total=plan.total_steps)]


# The four strategies ------------------------------------------------------------------------------------------------


def continuing(series: Series) -> RunRequest | None:
    """Ask which strategy, and its questions; None where the person went back."""
    assert series.parent is not None  # else `continue` is not offered
    parent = questions.read_parent(series.parent)
    say(_("goes on from {state}", state=runs_tree.state_line(parent.figures)))
    fit = advice.fitting_strategies(series.parent)
    say(fit.why)
    strategy = prompts.choose(_("How?"), strategies() | {BACK: _("back")}, fit.strategies[0])
    if strategy == BACK:
        return None
    settings = questions.answers(strategy, parent, series.recipe)
    overrides = laid_over(series.request.overrides, settings)
    beside: OnExisting | None = None if is_done(series.newest) else "new"  # else the stopped run would be resumed
    return replace(series.request, strategy=strategy, overrides=overrides, on_existing=beside)


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
    if not can_ask():
        raise usage_error("no-terminal", _("the menu needs a terminal"), fix=_("fasttune --help lists the commands"))
    while True:
        kind, _colon, name = prompts.choose(_("What do you want to work on?"), subjects(root)).partition(":")
        actions = {"series": of_series, "recipe": of_recipe, "data": of_data, "file": of_file}
        if kind not in actions:
            return None
        arguments = actions[kind](name, root)
        if arguments:
            say(command_line(arguments))
            return arguments


def subjects(root: Path) -> dict[str, str]:
    """Series with their state, recipes that were never trained, data files that no recipe names."""
    found = {f"series:{name}": f"{name}: {newest_state(root, name)}" for name in store.list_series(root)}
    series, used = set(store.list_series(root)), set()
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
    return runs_tree.state_line(summary.read_figures(store.list_runs(root, name)[-1]))


def recipes() -> dict[Path, Recipe | None]:
    """The recipes of the usual folder; None for one with errors."""
    found: dict[Path, Recipe | None] = {}
    for path in sorted(Path("recipes").glob("*.toml")):
        try:
            found[path] = load_recipe(path)
        except UsageError:
            found[path] = None
    return found


def of_series(name: str, root: Path) -> list[str] | None:
    """What to do with a series."""
    current = store.current(root, name)
    choices = {
        "train": _("🚀 train: continue, new run, overwrite"),
        "chat": _("💬 chat with it"),
        "runs": _("🌳 show its runs"),
        "plan": _("📋 show the plan of its recipe"),
        BACK: _("back"),
    }
    if current is None or not current.exports.is_dir() or not any(current.exports.glob("*.gguf")):
        del choices["chat"]
    picked = prompts.choose(name, choices)
    if picked == BACK:
        return None
    if picked in ("chat", "runs"):
        return [picked, name, *runs_option(root)]
    path = recipe_of(name, root)
    return [{"train": "run"}.get(picked, picked), str(path), *runs_option(root)] if path else None


def recipe_of(name: str, root: Path) -> Path | None:
    """The recipe of a series: one of the usual folder, else the newest run's copy; None where the person went back."""
    own = [str(path) for path, read in recipes().items() if read and read.name == name]
    if not own:
        return store.list_runs(root, name)[-1].recipe
    if len(own) == 1:
        return Path(own[0])
    picked = prompts.choose(_("Which recipe?"), {path: path for path in own} | {BACK: _("back")})
    return None if picked == BACK else Path(picked)


def of_recipe(path: str, root: Path) -> list[str] | None:
    """What to do with a recipe that was never trained."""
    picked = prompts.choose(path, {"run": _("🚀 train it"), "plan": _("📋 show its plan"), BACK: _("back")})
    return None if picked == BACK else [picked, path, *runs_option(root)]


def of_data(path: str, root: Path) -> list[str] | None:
    """A recipe for a data file: how the series is to be called."""
    file = Path(path)
    proposed = file.parent.name if file.stem in ("train", "data") and file.parent.name else file.stem
    name = prompts.text(_("How shall the model be called?"), proposed, lambda entered: unusable(entered, root))
    return ["init", name, "--data", path]


def of_file(_name: str, root: Path) -> list[str] | None:
    """The same for a file that is not in the list."""
    path = prompts.text(
        _("Which file?"), "", lambda entered: None if Path(entered).is_file() else _("there is no such file")
    )
    return of_data(path, root)


def unusable(name: str, root: Path) -> str | None:
    """What is wrong with a name for a new series, if anything."""
    if not name or not names_a_folder(name):
        return _("letters, digits, - _ and . only; a letter or digit first")
    if (Path("recipes") / f"{name}.toml").exists() or store.list_runs(root, name):
        return _("there is one of that name already")
    return None
