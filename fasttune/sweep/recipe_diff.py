"""What would have to be changed in a recipe: its lines with other values, as a diff that `patch` takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttune.recipe.load import override_value
from fasttune.recipe.toml_file import key_lines, parse, read_text, toml_value
from fasttune.recipe.values import as_toml

NOT_OF_THE_TRAINING = ("name", "strategy", "continue.", "export.", "probe.", "facts.")
# A key with the value on its line, and the comment behind it; a text in quotes may hold a #.
LINE = re.compile(
    r"""(?P<key>\s*[^=\s][^=]*?\s*=\s*)(?P<value>(?:"(?:\\.|[^"\\])*"|'[^']*'|[^"'#])*?)(?P<end>\s*(?:\#.*)?)"""
)


def recipe_diff(path: Path, settings: Mapping[str, str]) -> str:
    """The unified diff that gives a recipe these settings, {dotted key: as typed after --set}; "" where it has them.

    A setting that can't be written so, in an inline table for instance, is a line of its own below the diff.
    """
    text = before = read_text(path)
    left: list[str] = []
    for key, typed in settings.items():
        changed = with_setting(text, key, override_value(key, typed), written(key, typed))
        text, left = (changed, left) if changed is not None else (text, [*left, f"{key} = {written(key, typed)}"])
    lines = difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), str(path), lineterm="")
    return "\n".join([*lines, *left])


def as_trained(overrides: Sequence[str], settings: Mapping[str, str]) -> dict[str, str]:
    """What a recipe lacks of the chosen training, {dotted key: as typed}: what the sweep was given by --set, of which
    the held-out samples decide the choice, and what it chose. Files, answers and the parent are left as the recipe has
    them."""
    given = (override.partition("=") for override in overrides)
    typed = {key.strip(): text.strip() for key, _equals, text in given}
    return {key: text for key, text in typed.items() if not key.startswith(NOT_OF_THE_TRAINING)} | dict(settings)


def written(key: str, typed: str) -> str:
    """A value as it is written in a recipe: as it was typed where that is TOML, so that 1e-4 stays 1e-4."""
    value = override_value(key, typed)
    return typed if toml_value(typed) == value else as_toml(value)


def with_setting(text: str, key: str, value: Any, line: str) -> str | None:
    """The text of a recipe with another value, written as `line`, for a dotted key, everything else as it stands; None
    where a line alone can't say it."""
    document = parse(text)
    if value_at(document, key) == value:
        return text
    lines, places = text.split("\n"), key_lines(text)
    table, _dot, leaf = key.rpartition(".")
    if key in places:
        found = LINE.fullmatch(lines[places[key] - 1])
        if found is None:
            return None
        lines[places[key] - 1] = found["key"] + line + found["end"]
    elif table in places or not table:
        lines.insert(last_line(lines, places, table), f"{leaf} = {line}")
    else:
        lines = [*"\n".join(lines).rstrip("\n").split("\n"), "", f"[{table}]", f"{leaf} = {line}", ""]
    changed = "\n".join(lines)
    try:
        return changed if parse(changed) == with_value(document, key, value) else None
    except ValueError:  # the line was part of something longer
        return None


def last_line(lines: list[str], places: Mapping[str, int], table: str) -> int:
    """The number of the last line (from 1) that a table's own settings take, at which another one is inserted."""
    begins = places.get(table, 0)
    ends = min((line for line in places.values() if line > begins and lines[line - 1].lstrip().startswith("[")),
               default=len(lines) + 1)  # fmt: skip
    used = [number for number in range(begins, ends) if number and lines[number - 1].strip()]
    return max([begins, *used])


def value_at(document: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in a document; None where it is not there."""
    for part in key.split("."):
        if not isinstance(document, Mapping) or part not in document:
            return None
        document = document[part]
    return document


def with_value(document: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a document with a value for a dotted key."""
    first, _dot, rest = key.partition(".")
    inner = document.get(first)
    new = with_value(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value
    return {**document, first: new}
