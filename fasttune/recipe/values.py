"""Values of a recipe checked against the type and the bounds of their setting; no setting is known here by name.

A field made by `setting(default, help, bounds…)` is a setting; its type annotation says what it takes: str, int, float,
bool, Literal["a", "b"], tuple[one of these, ...] or a union of them. A value is never coerced, except that an integer
may stand for a float and a text for a list of one text.
"""

from __future__ import annotations

import json
import math
import operator
import re
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin

from fasttune.console import Finding, _
from fasttune.recipe.schema import Key
from fasttune.recipe.toml_file import REFUSED, toml_value

MOST_SHOWN = 100  # characters of a value in a message
LONGEST_TEXT = 4_096  # characters of a path or a name, as of a path of Linux
MOST_BITS = 256  # of a whole number that a message shows; Python refuses to write one of more than 4,300 digits
LINE_BREAK = re.compile(r"[\x00-\x1f]")
UNDECODED = re.compile("[\ud800-\udfff]")  # what Python makes of bytes on the command line that are not UTF-8
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Entry:
    """A value as written: its dotted key, its location for findings, and its source: "recipe", "override" or
    "vary"."""

    key: str
    value: Any
    where: str
    source: str

    def refuse(self, code: str, what: str, fix: str, why: str = "") -> Finding:
        """The finding that this value is refused with."""
        return Finding(code, "error", self.where, what, why, fix)


def convert(hint: Any, value: Any) -> Any:
    """The value converted to the type, or REFUSED. True, NaN and infinity are not numbers."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return next((got for part in parts if (got := convert(part, value)) is not REFUSED), REFUSED)
    if origin is Literal:
        return value if isinstance(value, str) and value in parts else REFUSED
    if origin is tuple:
        items = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [None]
        converted = tuple(convert(parts[0], item) for item in items)
        return REFUSED if REFUSED in converted else converted
    if hint is float and type(value) in (int, float):
        return float(value) if abs(value) <= sys.float_info.max else REFUSED
    return value if type(value) is hint else REFUSED


def setting_value(key: Key, value: Any) -> Any:
    """The value of a setting, or REFUSED: as `convert`; of one of `words` in lower case, a text cut at its commas."""
    if key.words:
        items = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        texts = [part.strip().lower() for item in items if isinstance(item, str) for part in item.split(",")]
        value = texts if all(isinstance(item, str) for item in items) else value
    return convert(key.hint, value)


def refusal(entry: Entry, key: Key) -> Finding | None:
    """The finding about a value that its setting does not take, if it does not."""
    value = setting_value(key, entry.value)
    if value is REFUSED:
        return wrong_type(entry, key)
    if isinstance(value, (int, float)) and not is_within(key, value):
        return out_of_range(entry, key, value)
    texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
    blank = not all(text.strip() for text in texts)
    if ((key.required or key.filled) and (blank or not texts)) or (blank and isinstance(value, tuple)):
        full = any(text.strip() for text in texts)
        what = _("{key} holds an empty text", key=key.name) if full else _("{key} is empty", key=key.name)
        return entry.refuse("empty-value", what, example_line(key), _(key.help))
    if len(set(texts)) < len(texts):
        return entry.refuse(
            "repeated-value", _("{key} lists the same thing twice", key=key.name), _("keep one of them")
        )
    if any(UNDECODED.search(text) for text in texts):
        fix = _("type it in UTF-8, or write it into the recipe")
        return entry.refuse("not-utf-8", _("{key} holds bytes that are not UTF-8 text", key=key.name), fix)
    if not key.prose and len(longest := max(texts, key=len, default="")) > LONGEST_TEXT:
        what = _(
            "{key} is a text of {n:,} characters; no path or name has more than {most:,}",
            key=key.name, n=len(longest), most=LONGEST_TEXT,
        )  # fmt: skip
        return entry.refuse("value-too-long", what, example_line(key), _(key.help))
    if not key.prose and any(LINE_BREAK.search(text) for text in texts):
        fix = _("write a path with / or in 'single quotes': a backslash in double quotes starts an escape")
        return entry.refuse("control-character", _("{key} holds a tab or line break", key=key.name), fix)
    return None


def out_of_range(entry: Entry, key: Key, value: float) -> Finding:
    """The finding for a number beyond a bound: why the bound is there, where it is an upper one."""
    bounds = ", ".join(f"{sign} {bound}" for sign, bound in key.bounds.items())
    what = _("{key} must be {bounds}, not {value}", key=key.name, bounds=bounds, value=in_short(entry.value))
    is_above = any(sign in ("≤", "<") and not BOUNDS[sign](value, bound) for sign, bound in key.bounds.items())
    return entry.refuse("out-of-range", what, example_line(key), _(key.most if is_above and key.most else key.help))


def wrong_type(entry: Entry, key: Key) -> Finding:
    """The finding for a value of another type, or a text that is none of the choices."""
    value, allowed = entry.value, choices(key.hint)
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    stray = [item for item in items if item not in allowed]
    near = near_name(stray[0], allowed) if stray and allowed and isinstance(stray[0], str) else ""
    unquoted = convert(key.hint, toml_value(value.lower())) if isinstance(value, str) else REFUSED
    if near:
        fix = _('did you mean "{name}"?', name=near)
    elif unquoted is not REFUSED:
        fix = _("write it without quotes: {line}", line=f"{key.leaf} = {value.lower()}")
    elif isinstance(value, float) and value.is_integer() and is_within(key, convert(key.hint, int(value))):
        fix = _("write it without a decimal point: {line}", line=f"{key.leaf} = {int(value)}")
    elif not isinstance(value, (list, dict)) and convert(key.hint, in_short(value)) is not REFUSED:
        fix = _("write it in quotes: {line}", line=f'{key.leaf} = "{in_short(value)}"')
    else:
        fix = example_line(key)
    what = _("{key} takes {type}, not {value}", key=key.name, type=describe(key.hint), value=in_short(value))
    is_choice = stray and allowed and unquoted is REFUSED
    return entry.refuse("unknown-choice" if is_choice else "wrong-type", what, fix, _(key.help))


def is_within(key: Key, value: Any) -> bool:
    """Whether a converted value is one, and within the bounds of its setting."""
    return value is not REFUSED and all(BOUNDS[sign](value, bound) for sign, bound in key.bounds.items())


def in_short(value: Any) -> str:
    """A value as it is written in a recipe, for a message: a long one cut, a number of very many digits in words."""
    if type(value) is int and value.bit_length() > MOST_BITS:
        return _("a number of about {n} digits", n=round(value.bit_length() * math.log10(2)))
    text = as_toml(value[:MOST_SHOWN]) if isinstance(value, (str, list)) else as_toml(value)
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"


def near_name(word: str, names: Iterable[str]) -> str:
    """The name that is most similar to a mistyped word, or "" where none is similar."""
    return next(iter(get_close_matches(word.lower(), list(names), 1, 0.7)), "")


def choices(hint: Any) -> list[str]:
    """The texts of a type's Literals."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in choices(part)]


def describe(hint: Any) -> str:
    """A type in words: `a whole number or "auto"`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        names = ", ".join(as_toml(choice) for choice in parts)
        return _("one of {names}", names=names) if len(parts) > 1 else names
    if origin is tuple:
        listed = ", ".join(as_toml(choice) for choice in choices(parts[0]))
        return _("a list from {names}", names=listed) if listed else _("a text or a list of texts")
    if parts:
        return _(" or ").join(describe(part) for part in parts if part is not types.NoneType)
    return {int: _("a whole number"), float: _("a number"), bool: _("true or false"), str: _("a text")}[hint]


def as_toml(value: Any) -> str:
    """A value as it is written in a recipe."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return _("a list of tables")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return _("a table")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)


def example_line(key: Key) -> str:
    """A hint with a valid line for this setting, or with its default."""
    if key.required:
        return _("for example {line}", line=f"{key.leaf} = {as_toml(key.example)}")
    if key.default is None:
        return _("leave it out to have none")
    return _("the default is {line}", line=f"{key.leaf} = {as_toml(key.default)}")
