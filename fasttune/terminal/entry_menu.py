"""`fasttune menu`: pick a series, a recipe or a data file, and what to do with it.

The menu changes nothing: the answers become the arguments of a fasttune command, which is printed, so that it can be
repeated, and then carried out by the command line. It offers the commands that there are: `Commands` says which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fasttune.command import command_line, runs_option
from fasttune.console import COLON, FasttuneError, Finding, UsageError, _, can_ask, say, show_findings, usage_error
from fasttune.planning.parents import began_with, find_parent, typed_value
from fasttune.recipe.load import load_recipe, names_a_folder
from fasttune.recipe.schema import Recipe
from fasttune.runs import epochs, store, summary
from fasttune.runs.store import Run
from fasttune.terminal import epoch_table, prompts, runs_tree

DATA_FILES = ("*.jsonl", "*.json", "data/*.jsonl", "data/*.json", "data/*/*.jsonl", "data/*/*.json")
SHOWN_FILES = 20  # at most, of the data files that no recipe names
SHOWN_SUBJECTS = 7  # so many choices, and no more, before the list is folded
BACK, MORE, DOCTOR, BOARD = "back", "more", "doctor:", "board:"


@dataclass(frozen=True)
class Commands:
    """What the menu makes command lines of: the runs folder, the overrides that it was started with, and the options
    of each command that there is."""

    root: Path
    overrides: tuple[str, ...] = ()
    options: Mapping[str, Collection[str]] = field(default_factory=dict)

    def line(self, verb: str, *words: str, runs_with: Mapping[str, str] | None = None) -> list[str]:
        """The arguments of a command, with the runs folder and the overrides where it takes them. The menu's own
        overrides take the place of those that a run began with (`runs_with`, {key: value})."""
        options = self.options.get(verb, ("--runs", "--set"))
        arguments = [verb, *words, *(runs_option(self.root) if "--runs" in options else [])]
        if "--set" not in options:
            return arguments
        pairs = (override.partition("=") for override in self.overrides)
        given = {key.strip(): value for key, _sign, value in pairs}
        return arguments + [
            word for key, value in {**(runs_with or {}), **given}.items() for word in ("--set", f"{key}={value}")
        ]

    def offered(self, *choices: tuple[str, str]) -> dict[str, str]:
        """{verb: title} of those commands that there are."""
        return {verb: title for verb, title in choices if verb in self.options}


def ask_for_command(commands: Commands) -> list[str] | None:
    """Ask what to work on and what to do with it: the arguments of a fasttune command, None to end.

    Raises UsageError where nobody can be asked.
    """
    if not can_ask():
        raise usage_error(
            "no-terminal",
            _("the menu needs a terminal"),
            fix=_("`{command}` lists the commands", command=command_line(["--help"])),
        )
    while True:
        kind, _colon, name = ask_for_subject(commands).partition(":")
        actions = {
            "series": of_series, "recipe": of_recipe, "data": of_data, "file": of_file, "example": of_example,
            "doctor": of_machine, "board": of_board,
        }  # fmt: skip
        if kind not in actions:
            return None
        try:
            arguments = actions[kind](name, commands)
        except prompts.WentBack:
            continue
        if arguments:
            say(command_line(arguments))
            return arguments


def ask_for_subject(commands: Commands) -> str:
    """The `kind:name` that was picked. A long list is folded, so that what a command has shown stays on the screen."""
    unlisted: list[Finding] = []
    found, broken = subjects(commands.root, unlisted)
    show_findings(unlisted)
    leaving = found.pop("quit")
    if "board" in commands.options:
        found[BOARD] = _("all runs in a browser, live")
    if "doctor" in commands.options:
        found[DOCTOR] = _("what is wrong with this machine")
    found["quit"] = leaving
    if broken:
        command = command_line(["plan", broken[0]])
        say(
            _(
                "recipes that can't be trained yet: {recipes}; `{command}` says why",
                recipes=", ".join(broken),
                command=command,
            )
        )
    question = _("What do you want to work on?")
    picked = prompts.choose(question, folded(found))
    return prompts.choose(question, found) if picked == MORE else picked


def folded(subjects: Mapping[str, str]) -> dict[str, str]:
    """The first SHOWN_SUBJECTS of a longer list, and one choice for all of them."""
    if len(subjects) <= SHOWN_SUBJECTS + 3:
        return dict(subjects)
    shown = dict(list(subjects.items())[:SHOWN_SUBJECTS])
    last = {subject: title for subject, title in subjects.items() if subject in (BOARD, DOCTOR, "quit")}
    return shown | {MORE: _("all {n} choices", n=len(subjects))} | last


def subjects(root: Path, unlisted: list[Finding] | None = None) -> tuple[dict[str, str], list[str]]:
    """{kind:name: title} of series with their state, the newest first, of recipes that were never trained, and of data
    files that no recipe names; and the recipes that can't be trained. Of a series whose folder can't be listed a
    finding is added to `unlisted`."""
    names = sorted(
        store.list_series(root, unlisted), key=lambda name: store.list_runs(root, name)[-1].folder.stat().st_mtime
    )
    found = {f"series:{name}": f"{name}{_(COLON)}{newest_state(root, name)}" for name in reversed(names)}
    used, broken = set(), []
    for path, read in recipes().items():
        used |= {Path(file).resolve() for file in (*read.data.train, str(read.data.val))} if read else set()
        if read is None or not can_train(read, root):
            broken.append(str(path))
        elif read.name not in names:
            found[f"recipe:{path}"] = _("{recipe}: not trained yet", recipe=path)
    files = sorted({path for pattern in DATA_FILES for path in Path().glob(pattern)})
    unused = [path for path in files if path.resolve() not in used]
    found |= {f"data:{path}": _("a new recipe for {file}", file=path) for path in unused[:SHOWN_FILES]}
    if not found:  # a folder in which nobody has begun yet
        found["example:"] = _("the quick start: its recipe and data, written into this folder")
    other = _("a new recipe for another file") if unused else _("a new recipe for a data file")
    return found | {"file:": other, "quit": _("quit")}, broken


def can_train(recipe: Recipe, root: Path) -> bool:
    """Whether a recipe has its data, and the run that it continues from."""
    files = (*recipe.data.train, *([recipe.data.val] if isinstance(recipe.data.val, str) and recipe.data.val else []))
    if not all(Path(file).is_file() for file in files):
        return False
    try:
        find_parent(recipe, root)
    except FasttuneError:
        return bool(store.list_runs(root, recipe.name))  # the series is offered, and its menu says what can be done
    return True


def newest_state(root: Path, name: str) -> str:
    """The state of the newest run of a series in one line."""
    run = store.list_runs(root, name)[-1]
    try:
        return runs_tree.state_line(summary.read_figures(run))
    except FasttuneError:  # whoever asks for it is told what is damaged
        return _("{run} is damaged", run=run.id.partition("/")[2])


def recipes() -> dict[Path, Recipe | None]:
    """The recipes in `recipes/`; None for one with errors."""
    found: dict[Path, Recipe | None] = {}
    for path in sorted(Path("recipes").glob("*.toml")):
        try:
            found[path] = load_recipe(path)
        except UsageError:
            found[path] = None
    return found


def series_choices(name: str, current: Run | None, commands: Commands) -> dict[str, str]:
    """What can be done with a series whose current run is this one, each with its words."""
    is_stopped = store.list_runs(commands.root, name)[-1].status == "stopped"
    resume, continue_ = _("🚀 train: resume, new run, overwrite"), _("🚀 train: continue, new run, overwrite")
    choices = {
        "train": resume if is_stopped else continue_,
        "chat": _("💬 chat with it"),
        "runs": _("🌳 show its runs"),
        "plan": _("📋 show the plan of its recipe"),
        **commands.offered(
            ("diagnose", _("🩺 what is wrong with it, and what to do next")),
            ("compare", _("⚖️ compare its answers")),
            ("report", _("📄 write its report")),
            ("check", _("🔍 check its data")),
        ),
        **(commands.offered(("pick", pick_title(current))) if current and has_epochs(current) else {}),
        BACK: _("back"),
    }
    if current is None or not current.exports.is_dir() or not any(current.exports.glob("*.gguf")):
        del choices["chat"]
    if current is None or current.status != "finished":
        choices.pop("compare", None)
    return choices


def of_series(name: str, commands: Commands) -> list[str] | None:
    """What to do with a series."""
    root = commands.root
    current = store.current(root, name)
    choices = series_choices(name, current, commands)
    picked = prompts.choose(name, choices)
    if picked == BACK:
        return None
    if picked == "pick" and current:
        return ask_for_epoch(current, commands)
    if picked not in ("train", "plan", "check"):
        return commands.line(picked, name)
    path = recipe_of(name, root)
    if path is None:
        return None
    began = overrides_of(name, root) if path == store.list_runs(root, name)[-1].recipe else {}
    return commands.line({"train": "run"}.get(picked, picked), str(path), runs_with=began)


def has_epochs(run: Run) -> bool:
    """Whether one of the epochs of a run can be picked."""
    try:
        return run.status == "finished" and bool(epochs.kept_epochs(run))
    except FasttuneError:
        return False  # a damaged document; `fasttune pick` says which


def pick_title(run: Run) -> str:
    """The choice of an epoch; it names the best one where that is earlier than what is served."""
    better = epoch_table.better_epoch(run)
    if better is None:
        return _("⏪ pick the epoch that it serves")
    return _("⏪ go back to epoch {epoch}, whose held-out loss was lower", epoch=epochs.epoch_word(better.epoch))


def ask_for_epoch(run: Run, commands: Commands) -> list[str] | None:
    """Pick one of a run's epochs, the best one first, or its own adapter; None where the person went back."""
    kept = epochs.kept_epochs(run)
    best = epochs.best_epoch(kept)
    sequence = [*([best] if best else []), *(one for one in kept if one != best)]
    choices = {epochs.epoch_word(one.epoch): epoch_table.epoch_title(one) for one in sequence}
    picked = prompts.choose(run.id, choices | {"own": _("the run's own adapter"), BACK: _("back")})
    if picked == BACK:
        return None
    return [*commands.line("pick", run.id), *(["--own"] if picked == "own" else ["--epoch", picked])]


def overrides_of(name: str, root: Path) -> dict[str, str]:
    """{key: value} of the overrides that the newest run of a series began with, so that the copy of its recipe means
    the same; not how it continued, which is asked anew."""
    given = began_with(store.list_runs(root, name)[-1])
    kept = {key: value for key, value in given.items() if not key.startswith(("strategy", "continue."))}
    return {key: str(typed_value(value)) for key, value in kept.items()}


def recipe_of(name: str, root: Path) -> Path | None:
    """The recipe of a series: one in `recipes/`, else the newest run's copy; None where the person went back."""
    own = [str(path) for path, read in recipes().items() if read and read.name == name]
    if not own:
        return store.list_runs(root, name)[-1].recipe
    if len(own) == 1:
        return Path(own[0])
    picked = prompts.choose(_("Which recipe?"), {path: path for path in own} | {BACK: _("back")})
    return None if picked == BACK else Path(picked)


def of_recipe(path: str, commands: Commands) -> list[str] | None:
    """What to do with a recipe that was never trained."""
    choices = {
        "run": _("🚀 train it"),
        "plan": _("📋 show its plan"),
        **commands.offered(("check", _("🔍 check its data"))),
        BACK: _("back"),
    }
    picked = prompts.choose(path, choices)
    return None if picked == BACK else commands.line(picked, path)


def of_data(path: str, commands: Commands) -> list[str] | None:
    """Ask for the name of a series and write a recipe for a data file, or check it first."""
    checking = commands.offered(("check", _("🔍 check it")))
    if checking:
        picked = prompts.choose(path, {"init": _("📝 write a recipe for it"), **checking, BACK: _("back")})
        if picked != "init":
            return None if picked == BACK else commands.line(picked, path)
    file = Path(path)
    proposed = file.parent.name if file.stem in ("train", "data") and file.parent.name else file.stem
    name = prompts.text(
        _("What is the name of the series?"), proposed, lambda entered: unusable(entered, commands.root)
    )
    return ["init", name, "--data", path]


def of_file(_name: str, commands: Commands) -> list[str] | None:
    """Ask for a data file that is not in the list, then as `of_data`."""
    path = prompts.text(
        _("Which file?"), "", lambda entered: None if Path(entered).is_file() else _("there is no such file")
    )
    return of_data(path, commands)


def of_example(_name: str, commands: Commands) -> list[str] | None:
    """Write the quick start."""
    return commands.line("init", "--example", "quickstart")


def of_machine(_name: str, commands: Commands) -> list[str] | None:
    """Examine the machine."""
    return commands.line("doctor")


def of_board(_name: str, commands: Commands) -> list[str] | None:
    """Show all runs in a browser."""
    return commands.line("board")


def unusable(name: str, root: Path) -> str | None:
    """Why a name can't be that of a new series; None where it can."""
    if not name or not names_a_folder(name):
        return _("use letters, digits, - _ and . only, a letter or digit first")
    if (Path("recipes") / f"{name}.toml").exists() or store.list_runs(root, name):
        return _("a recipe or a series of that name already exists")
    return None
