"""Settings as fields of frozen dataclasses, and TOML read strictly into them. Knows no particular setting.

    text ── read_toml ──► document, line of each key ── refusal ──► one Finding for each value that doesn't fit

A field made by `setting(default, help, bounds…)` is a setting; its type annotation says what it takes: str, int, float,
bool, Literal["a", "b"], tuple[one of these, ...] or a union of them. A value is never bent to fit, except that a whole
number may stand for a number and a single text for a list of one.
"""

from __future__ import annotations

import json
import operator
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fasttune.console import Finding, UsageError, _, usage_error

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOUNDS: dict[str, Callable[[Any, Any], bool]] = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt}
REFUSED = object()
# A string or a comment of TOML, from its first to its last character.
TEXT = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'|#[^\n]*", re.DOTALL)
FULL_WIDTH = dict(zip("“”„＂‘’＝，：［］【】｛｝＃．。　\xa0", '""""""=,:[][]{}#..  ', strict=True))


# Declaring


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    prose: bool = False,
    example: str = "",
) -> Any:
    """A dataclass field that is a setting.

    `default` is MISSING where the setting is required, and then `example` is a value for hints. Bounds hold for
    numbers. `prose` text may hold tabs and line breaks.
    """
    bounds = {sign: bound for sign, bound in (("≥", ge), (">", gt), ("≤", le), ("<", lt)) if bound is not None}
    return field(default=default, metadata={"help": help, "bounds": bounds, "prose": prose, "example": example})


@dataclass(frozen=True)
class Key:
    """A setting as declared: dotted name, type, default (MISSING: required), and what else `setting` was told."""

    name: str
    hint: Any
    default: Any
    help: str
    bounds: Mapping[str, float]
    prose: bool
    example: str

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def table(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


def declared(table: type, prefix: str = "") -> Iterator[Key | tuple[str, type]]:
    """The settings, and the (name, dataclass) of each sub-table, of a dataclass, in order of declaration."""
    hints = get_type_hints(table)
    for each in fields(table):
        name, hint = prefix + each.name.rstrip("_"), hints[each.name]
        if "help" in each.metadata:
            yield Key(name, hint, each.default, **each.metadata)
        elif isinstance(hint, type) and is_dataclass(hint):
            yield name, hint
            yield from declared(hint, name + ".")


# Reading


def read_toml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The document, and the line of each key and table in it.

    Raises UsageError with one finding where the file is missing, is no text or is no TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as failure:
        found = re.search(r"at line (\d+)", str(failure))
        number = int(found[1]) if found else len(text.rstrip().split("\n"))
        line = text.split("\n")[number - 1].strip()[:100]
        raise usage_error(
            "recipe-syntax",
            _("not valid TOML: {line}", line=line),
            where=f"{path}:{number}",
            why=re.sub(r" \(at .*", "", str(failure)),
            fix=syntax_fix(str(failure), line),
        ) from None


def read_text(path: Path) -> str:
    """UTF-8 with or without BOM, else GB18030 (what Windows editors in China write) where it reads like Chinese."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise not_found(path) from None
    except OSError as failure:
        what = _("the file can't be read: {reason}", reason=failure.strerror or str(failure))
        raise usage_error("recipe-unreadable", what, where=str(path)) from None
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8-sig" or reads_like_chinese(text):
            return text.replace("\r\n", "\n")
    what = _("this is neither UTF-8 nor GB18030 text")
    raise usage_error("recipe-encoding", what, where=str(path), fix=_("save the file as UTF-8"))


def reads_like_chinese(text: str) -> bool:
    """Whether most of what is not ASCII is common Chinese; Big5 or Latin-1 bytes read as GB18030 are not."""
    foreign = [character.encode("gb2312", "ignore") for character in text if not character.isascii()]
    return sum(b"\xa1" <= code[:1] <= b"\xd7" for code in foreign) >= 0.8 * len(foreign)


def not_found(path: Path) -> UsageError:
    """The error for a recipe that is not there, naming those near it."""
    folders = dict.fromkeys([path if path.is_dir() else path.parent, Path("recipes")])
    nearby = {found.stem: found.as_posix() for folder in folders for found in sorted(folder.glob("*.toml"))}
    likely = [nearby[stem] for stem in get_close_matches(path.stem, nearby)] or list(nearby.values())[:5]
    what = _("this is a folder, not a recipe") if path.is_dir() else _("there is no such file")
    fix = _("did you mean {paths}?", paths=", ".join(likely)) if likely else _("make a recipe with: fasttune init")
    return usage_error("recipe-not-found", what, where=str(path), fix=fix)


def syntax_fix(message: str, line: str) -> str:
    """What to change in a line that tomllib could not read, from its message and the usual slips."""
    bare = TEXT.sub("", line)
    wide = [character for character in bare if character in FULL_WIDTH]
    if wide:
        return _("write {ascii} instead of the full-width {wide}", wide=wide[0], ascii=FULL_WIDTH[wide[0]])
    if "hex value" in message or "'\\\\'" in message:
        return _("write a path with / or in 'single quotes': a backslash in double quotes starts an escape")
    if "Cannot" in message:
        return _("the same key or [table] stands twice in the file: keep one")
    if re.search(r"Unclosed|Unterminated|Illegal character '\\n'|Expected ']'", message):
        return _("close what was opened here or above: a quote, [ or {bracket} has no partner", bracket="{")
    if re.search(r"=\s*(True|TRUE|False|FALSE|yes|no|on|off)\s*$", bare):
        return _("write true or false, in small letters")
    if re.search(r"=\s*([Nn]one|NULL|null|nil|~)?\s*$", bare) and "Invalid value" in message:
        return _("a value is missing here: leave the whole line out to get the default")
    if "=" not in bare and ":" in bare:
        return _("a line of TOML is key = value, with = and not :")
    if "Invalid value" in message or "Expected newline" in message:
        return _('put text in double quotes: key = "text"; a number needs a digit on both sides of its point')
    return _('a line of TOML is key = value or [table]; text stands in double quotes, as in name = "linzhi"')


def key_lines(text: str) -> dict[str, int]:
    """{dotted key or table: line number} of valid TOML, which tomllib doesn't tell; nothing of inline tables."""
    plain = TEXT.sub(lambda found: "" if found[0][0] == "#" else re.sub(r"[^\n]", "_", found[0]), text)
    lines: dict[str, int] = {}
    table, depth = "", 0
    for number, (line, original) in enumerate(zip(plain.split("\n"), text.split("\n"), strict=True), 1):
        head, sign, rest = line.partition("=")
        header = re.match(r"\s*\[+([^\[\]]+)\]", line) if depth == 0 else None
        if header:
            table = bare_key(original[header.start(1) : header.end(1)])
            lines.setdefault(table, number)
            continue
        if depth == 0 and sign:
            lines.setdefault(f"{table}.{bare_key(original[: len(head)])}".lstrip("."), number)
        brackets = rest if depth == 0 else line
        depth += len(re.findall(r"[\[{]", brackets)) - len(re.findall(r"[\]}]", brackets))
    return lines


def bare_key(written: str) -> str:
    """`"a" . b` as `a.b`."""
    return ".".join(part.strip().strip("\"'") for part in written.split("."))


def toml_value(text: str) -> Any:
    """The one value that a text is in TOML, or REFUSED."""
    try:
        document = tomllib.loads("value = " + text)
    except tomllib.TOMLDecodeError:
        return REFUSED
    return document["value"] if document.keys() == {"value"} else REFUSED


# Checking


@dataclass(frozen=True)
class Entry:
    """One value as somebody wrote it: its dotted key, its place for messages, and "recipe" or "override"."""

    key: str
    value: Any
    where: str
    source: str

    def refuse(self, code: str, what: str, fix: str, why: str = "") -> Finding:
        return Finding(code, "error", self.where, what, why, fix)


def convert(hint: Any, value: Any) -> Any:
    """The value as the type has it, or REFUSED. True is no number; NaN and infinity are none either."""
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


def refusal(entry: Entry, key: Key) -> Finding | None:
    """What is wrong with a value for its setting, if anything."""
    value = convert(key.hint, entry.value)
    if value is REFUSED:
        return wrong_type(entry, key)
    if isinstance(value, (int, float)) and not all(BOUNDS[sign](value, bound) for sign, bound in key.bounds.items()):
        bounds = ", ".join(f"{sign} {bound}" for sign, bound in key.bounds.items())
        what = _("{key} must be {bounds}, not {value}", key=key.name, bounds=bounds, value=as_toml(entry.value))
        return entry.refuse("out-of-range", what, sample(key), _(key.help))
    texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
    blank = not all(text.strip() for text in texts)
    if (key.required and (blank or not texts)) or (blank and isinstance(value, tuple)):
        full = any(text.strip() for text in texts)
        what = _("{key} holds an empty text", key=key.name) if full else _("{key} is empty", key=key.name)
        return entry.refuse("empty-value", what, sample(key), _(key.help))
    if len(set(texts)) < len(texts):
        return entry.refuse(
            "repeated-value", _("{key} lists the same thing twice", key=key.name), _("keep one of them")
        )
    if not key.prose and any(character < " " for text in texts for character in text):
        fix = _("write a path with / or in 'single quotes': a backslash in double quotes starts an escape")
        return entry.refuse("control-character", _("{key} holds a tab or line break", key=key.name), fix)
    return None


def wrong_type(entry: Entry, key: Key) -> Finding:
    """The finding for a value of another type, or one that is none of the choices."""
    value, allowed = entry.value, choices(key.hint)
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    stray = [item for item in items if item not in allowed]
    near = near_name(stray[0], allowed) if stray and allowed and isinstance(stray[0], str) else ""
    unquoted = convert(key.hint, toml_value(value.lower())) if isinstance(value, str) else REFUSED
    if near:
        fix = _('did you mean "{name}"?', name=near)
    elif unquoted is not REFUSED:
        fix = _("write it without quotes: {line}", line=f"{key.leaf} = {value.lower()}")
    elif isinstance(value, float) and value.is_integer() and convert(key.hint, int(value)) is not REFUSED:
        fix = _("write it without a point: {line}", line=f"{key.leaf} = {int(value)}")
    elif not isinstance(value, (list, dict)) and convert(key.hint, str(value)) is not REFUSED:
        fix = _("write it in quotes: {line}", line=f'{key.leaf} = "{value}"')
    else:
        fix = sample(key)
    what = _("{key} takes {wanted}, not {value}", key=key.name, wanted=describe(key.hint), value=as_toml(value))
    return entry.refuse("unknown-choice" if stray and allowed else "wrong-type", what, fix, _(key.help))


# Words


def near_name(word: str, names: Iterable[str]) -> str:
    """The name that a mistyped word comes closest to, or ""."""
    return next(iter(get_close_matches(word.lower(), list(names), 1, 0.7)), "")


def choices(hint: Any) -> list[str]:
    """The texts that a type lists."""
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
    """A value as one would write it in a recipe."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return _("a list of tables")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return _("a table")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)


def sample(key: Key) -> str:
    """A hint with a line that works."""
    if key.required:
        return _("for example {line}", line=f"{key.leaf} = {as_toml(key.example)}")
    if key.default is None:
        return _("leave it out to have none")
    return _("the default is {line}", line=f"{key.leaf} = {as_toml(key.default)}")
