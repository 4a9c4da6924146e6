"""The pages that start a training: the recipes there are, the plan of one, then `fasttune run` in a child process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, _
from fasttune.pipeline import RunRequest
from fasttune.planning.parents import began_with, typed_value
from fasttune.recipe.load import load_recipe
from fasttune.runs import holder, store
from fasttune.web.blind_page import form
from fasttune.web.board import Board, board_of
from fasttune.web.children import Child
from fasttune.web.pages import links, message, page

EPOCHS = re.compile(r"\d{1,2}(\.\d{1,3})?")
STRATEGIES = ("incremental", "retune", "augment", "custom")
ON_EXISTING = ("resume", "new")


@dataclass(frozen=True)
class Choice:
    """A recipe that can be started: a file in recipes/, or a run's own copy with the overrides that the run began with.
    `series` is its name, empty where the recipe has errors, which its plan then says."""

    key: str
    file: Path
    overrides: tuple[str, ...]
    series: str


def choices(board: Board) -> dict[str, Choice]:
    """The recipes that a page may start, by key: nothing else is ever opened."""
    found = [Choice(str(path), path, (), series_of(path)) for path in sorted(Path("recipes").glob("*.toml"))]
    for series in store.list_series(board.root):
        run = store.list_runs(board.root, series)[-1]
        if run.recipe.is_file() and run.plan.is_file():
            try:
                found.append(Choice(f"{run.id}/recipe.toml", run.recipe, overrides_of(run), series))
            except FasttuneError:
                continue  # its plan is damaged, as the page of its run says
    return {one.key: one for one in found}


def series_of(recipe: Path) -> str:
    """The name of the series that a recipe trains; empty where it has errors."""
    try:
        return load_recipe(recipe).name
    except FasttuneError:
        return ""


def overrides_of(run: store.Run) -> tuple[str, ...]:
    """The overrides with which a run's copy of its recipe means the same; not how the run continued. Raises
    FasttuneError where its plan is damaged."""
    given = began_with(run).items()
    kept = ((key, value) for key, value in given if not key.startswith(("strategy", "continue.")))
    return tuple(f"{key}={typed_value(value)}" for key, value in kept)


def recipes_page(request: Request) -> Response:
    """The recipes, and what was started from here."""
    board = board_of(request)
    known = set(store.list_series(board.root))
    found = [(one, one.series in known) for one in choices(board).values()]
    started = [(child, state_word(child)) for child in reversed(board.children.started.values())]
    return page(request, "recipes.html", _("Train"), found=found, started=started, text=texts())


def texts() -> dict[str, str]:
    """What the page says besides names."""
    return {
        "why": _("The plan is shown first; nothing starts before you have seen it."),
        "plan": _("Show the plan"), "existing": _("its series has runs"), "as_written": _("as the recipe says"),
        "strategy": _("how"), "epochs": _("more epochs"), "on_existing": _("earlier runs"),
        "ask": _("resume an unfinished one, else stop"), "started": _("started from here"),
        "none": _("no recipes in {folder}", folder=Path("recipes").resolve()),
        "init": command_line(["init", "mine", "--data", "mine.jsonl"]),
        "resume": _("resume the unfinished run"), "new": _("train a new run beside them"),
        "incremental": _("incremental: more epochs"), "retune": _("retune: other parameters"),
        "augment": _("augment: little data"), "custom": _("custom: as the recipe says"),
    }  # fmt: skip


def requested(choice: Choice, given: Mapping[str, str], root: Path) -> RunRequest:
    """The request that a form describes. A value that the form does not offer counts as not given."""
    strategy = given.get("strategy") if given.get("strategy") in STRATEGIES else None
    existing = given.get("on_existing")
    epochs = given.get("add_epochs", "")
    more = (f"continue.add_epochs={epochs}",) if strategy == "incremental" and EPOCHS.fullmatch(epochs) else ()
    on_existing = {name: name for name in ON_EXISTING}.get(existing or "")
    return RunRequest(choice.file, (*choice.overrides, *more), root, strategy, on_existing)  # type: ignore[arg-type]


async def plan_page(request: Request) -> Response:
    """The plan of a recipe, as `fasttune plan` prints it, with the button that starts it."""
    board, given = board_of(request), await form(request)
    choice = (await run_in_threadpool(choices, board)).get(given.get("recipe", ""))
    if choice is None:
        raise HTTPException(404)
    asked = requested(choice, given, board.root)
    words = ["plan", str(asked.recipe), *runs_option(board.root)]
    words += ["--continue", asked.strategy] if asked.strategy else []
    words += [word for override in asked.overrides for word in ("--set", override)]
    planned = await run_in_threadpool(board.children.plan, words, asked.arguments)
    return page(
        request, "plan.html", _("Plan"), 200 if planned.is_good else 409, planned=planned, command=asked.command,
        text={"start": _("Start this training"), "bad": _("This can't be trained as it is."), "back": _("back"),
              "does": _("It runs this command, and does not need the board once it runs:")},
    )  # fmt: skip


async def start(request: Request) -> Response:
    """Start the training of a plan that was shown."""
    board, given = board_of(request), await form(request)
    planned = board.children.plans.get(given.get("plan", ""))
    if planned is None or not planned.is_good:
        raise HTTPException(404)
    try:
        child = await run_in_threadpool(board.children.start, planned)
    except FasttuneError as problem:
        return message(request, _("Train"), problem.findings[0].what, 500, problem.findings[0].why)
    return RedirectResponse(links(request)(f"/train/started/{child.key}"), 303)


def started_page(request: Request) -> Response:
    """What a training prints, and the way to its page once it has one."""
    board = board_of(request)
    child = board.children.started.get(request.path_params["key"])
    if child is None:
        raise HTTPException(404)
    run = run_of(board, child)
    return page(
        request, "started.html", _("Train"), child=child, state=state_word(child), run=run, output=child.output(),
        command=command_line(child.arguments), refresh=2 if child.code is None else 0,
        text={"watch": _("Watch {run}", run=run.id if run else ""),
              "log": _("its output is kept in {file}", file=child.log)},
    )  # fmt: skip


def run_of(board: Board, child: Child) -> store.Run | None:
    """The run that a child trains now."""
    found = [run for run in board.runs() if holder.holder(run.lock) == child.process.pid]
    return found[0] if found else None


def state_word(child: Child) -> str:
    """What has become of a child."""
    code = child.code
    if code is None:
        return _("running")
    return {0: _("finished"), 130: _("stopped")}.get(code, _("ended with exit code {code}", code=code))
