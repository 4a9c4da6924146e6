"""`fasttune menu`: pick a series, a recipe or a data file, and what to do with it.

The menu changes nothing: the answers become the arguments of a fasttune command, which is printed, so that it can be
repeated, and then carried out by the command line.
"""

from __future__ import annotations

from pathlib import Path

from fasttune.console import FasttuneError, UsageError, _, can_ask, say, usage_error
from fasttune.pipeline import command_line, runs_option
from fasttune.recipe.load import load_recipe, names_a_folder
from fasttune.recipe.schema import Recipe
from fasttune.runs import store, summary
from fasttune.terminal import prompts, runs_tree

DATA_FILES = ("*.jsonl", "*.json", "data/*.jsonl", "data/*.json", "data/*/*.jsonl", "data/*/*.json")
SHOWN_FILES = 20  # at most, of the data files that no recipe names
BACK = "back"


def ask_for_command(root: Path) -> list[str] | None:
    """Ask what to work on and what to do with it: the arguments of a fasttune command, None to end.

    Raises UsageError where nobody can be asked.
    """
    if not can_ask():
        raise usage_error("no-terminal", _("the menu needs a terminal"), fix=_("`fasttune --help` lists the commands"))
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
    """{kind:name: title} of series with their state, recipes that were never trained, data files no recipe names."""
    found = {f"series:{name}": f"{name}: {newest_state(root, name)}" for name in store.list_series(root)}
    series, used = set(store.list_series(root)), set()
    for path, read in recipes().items():
        if read is None:
            found[f"recipe:{path}"] = _("{recipe}: has errors", recipe=path)
        elif read.name not in series:
            found[f"recipe:{path}"] = _("{recipe}: not trained yet", recipe=path)
        used |= {Path(file).resolve() for file in (*read.data.train, str(read.data.val))} if read else set()
    files = sorted({path for pattern in DATA_FILES for path in Path().glob(pattern)})
    unused = [path for path in files if path.resolve() not in used]
    found |= {f"data:{path}": _("a new recipe for {file}", file=path) for path in unused[:SHOWN_FILES]}
    return found | {"file:": _("a new recipe for another file"), "quit": _("quit")}


def newest_state(root: Path, name: str) -> str:
    """The state of the newest run of a series in one line."""
    run = store.list_runs(root, name)[-1]
    try:
        return runs_tree.state_line(summary.read_figures(run))
    except FasttuneError as problem:
        return _("{run} is damaged: {what}", run=run.id, what=problem.findings[0].what)


def recipes() -> dict[Path, Recipe | None]:
    """The recipes in `recipes/`; None for one with errors."""
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
    """The recipe of a series: one in `recipes/`, else the newest run's copy; None where the person went back."""
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
    """Ask for the name of a series and write a recipe for a data file."""
    file = Path(path)
    proposed = file.parent.name if file.stem in ("train", "data") and file.parent.name else file.stem
    name = prompts.text(_("What is the name of the series?"), proposed, lambda entered: unusable(entered, root))
    return ["init", name, "--data", path]


def of_file(_name: str, root: Path) -> list[str] | None:
    """Ask for a data file that is not in the list, then as `of_data`."""
    path = prompts.text(
        _("Which file?"), "", lambda entered: None if Path(entered).is_file() else _("there is no such file")
    )
    return of_data(path, root)


def unusable(name: str, root: Path) -> str | None:
    """Why a name can't be that of a new series; None where it can."""
    if not name or not names_a_folder(name):
        return _("use letters, digits, - _ and . only, a letter or digit first")
    if (Path("recipes") / f"{name}.toml").exists() or store.list_runs(root, name):
        return _("a recipe or a series of that name already exists")
    return None
