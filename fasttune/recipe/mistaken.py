"""What was named in place of a recipe: a data file, a model, the folder of a run; and the command that was meant.

Told by names and first characters alone, before the text is read as TOML, whose parser would complain of the first
brace.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fasttune.command import command_line, runs_option
from fasttune.console import UsageError, _, usage_error
from fasttune.recipe.toml_file import read_toml

DATA_FILES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".xlsx", ".xls")
WEIGHT_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
READ_BYTES = 256  # of a file's beginning, to tell JSON


def refuse_what_is_no_recipe(path: Path) -> None:
    """Raises UsageError where a path is something else that fasttune knows; whatever it does not know may be TOML."""
    if path.is_dir():
        problem = folder_problem(path)
    elif path.suffix.lower() in WEIGHT_FILES:
        problem = weights_problem(path)
    elif path.suffix.lower() in DATA_FILES and not is_toml(path):
        problem = data_problem([path], _("this is a data file, not a recipe") if path.is_file() else "", path)
    else:
        problem = None
    if problem:
        raise problem


def read_recipe(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What `read_toml` gives for a recipe; what is no recipe is named as such, also where it is JSON called .toml."""
    refuse_what_is_no_recipe(path)
    try:
        return read_toml(path)
    except UsageError:
        if begins_as_json(path):
            raise data_problem([path], _("this is a data file, not a recipe"), path) from None
        raise


def begins_as_json(path: Path) -> bool:
    """Whether a file begins with a brace or with a list of them, as no TOML does."""
    try:
        with open(path, "rb") as file:
            return re.match(rb"(\xef\xbb\xbf)?\s*(\{|\[\s*\{)", file.read(READ_BYTES)) is not None
    except OSError:
        return False


def is_toml(path: Path) -> bool:
    """Whether a file holds TOML after all, whatever its name says."""
    try:
        document, _lines = read_toml(path)
    except UsageError:
        return False
    return bool(document)


def data_problem(files: list[Path], what: str, where: Path) -> UsageError:
    """The error for data in place of a recipe; `what` is empty where there is no such file."""
    command = command_line(["init", series_name(files[0]), *(word for one in files for word in ("--data", str(one)))])
    fix = _("write a recipe for it, and train that one: `{command}`", command=command)
    if not what:
        fix = _("a recipe is a .toml file; one for a data file is made by `{command}`", command=command)
    return usage_error("not-a-recipe" if what else "recipe-not-found", what or _("there is no such file"),
                       where=str(where), fix=fix)  # fmt: skip


def series_name(file: Path) -> str:
    """A name for the series of a data file: the file's, or its folder's for a train.jsonl, without what no name has."""
    folder = file.absolute().parent.name
    name = folder if file.stem.lower() in ("train", "data", "dataset") and folder else file.stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-._")[:64] or "mine"


def weights_problem(path: Path) -> UsageError:
    """The error for a model's weights in place of a recipe."""
    fix = _("a recipe is a .toml file, and the base it trains is its `model.base`")
    if path.suffix.lower() == ".gguf" and path.is_file():
        command = command_line(["chat", str(path)])
        fix = _("talk to it: `{command}`; to train, name a recipe (.toml)", command=command)
    return usage_error("not-a-recipe", _("this is a model's file, not a recipe"), where=str(path), fix=fix)


def folder_problem(path: Path) -> UsageError | None:
    """The error for the folder of a run, of a series, of a model or of data; None for any other folder."""
    full = path.absolute()
    if (path / "plan.json").is_file():
        command = command_line(["runs", f"{full.parent.name}/{full.name}", *runs_option(path.parent.parent)])
        fix = _("its recipe is {recipe}; `{command}` shows the run", recipe=path / "recipe.toml", command=command)
        return usage_error("not-a-recipe", _("this is the folder of a run, not a recipe"), where=str(path), fix=fix)
    if any(path.glob("[0-9]*-*/plan.json")):
        command = command_line(["runs", full.name, *runs_option(path.parent)])
        fix = _("`{command}` shows its runs; to train, name a recipe (.toml)", command=command)
        return usage_error("not-a-recipe", _("this is the folder of a series, not a recipe"), where=str(path), fix=fix)
    if (path / "config.json").is_file():
        fix = _('name it in a recipe: base = "{path}" under [model]', path=path)
        return usage_error("not-a-recipe", _("this is the folder of a model, not a recipe"), where=str(path), fix=fix)
    if data := sorted(one for one in path.iterdir() if one.suffix in (".jsonl", ".json") and one.is_file()):
        return data_problem(data, _("this is a folder of data files, not a recipe"), path)
    return None
