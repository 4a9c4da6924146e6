"""A TOML file read strictly: its text, its document, the line of each key, and a hint where tomllib refuses it.

The standard library's tomllib parses. It tells neither the lines of keys, which findings name, nor how to mend a
syntax error.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fasttune.command import command_line
from fasttune.console import UsageError, _, usage_error
from fasttune.decoding import UndecodableText, decode_text
from fasttune.files import read_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


REFUSED = object()  # in place of a value: it can't be read, or is not of the type that its setting takes
# A string or a comment of TOML, from its first to its last character.
TEXT = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'|#[^\n]*", re.DOTALL)
# A key of so many parts is no setting; tomllib takes quadratic time for it, and its tables can't be walked.
MOST_PARTS = 50
LONG_KEY = re.compile(rf"(?:\.[ \t]*\w[\w-]*[ \t]*){{{MOST_PARTS}}}")
LARGEST = 1_000_000  # characters of a file of TOML
FULL_WIDTH = dict(zip("“”„＂‘’＝，：［］【】｛｝＃．。　\xa0", '""""""=,:[][]{}#..  ', strict=True))


def read_toml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The document, and the line (from 1) of each key and table in it.

    Raises UsageError with one finding where the file is missing, no text in UTF-8 or GB18030, or no TOML.
    """
    text = read_text(path)
    require_recipe_size(path, text)
    try:
        return parse(text), key_lines(text)
    except BeyondLimits as failure:
        raise usage_error("recipe-beyond-limits", str(failure), where=str(path), fix=_("remove it")) from None
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


class BeyondLimits(Exception):
    """TOML that is valid, but nested too deeply or with too large a number; its message says which."""


def parse(text: str) -> dict[str, Any]:
    """The document in a text of TOML. Raises tomllib.TOMLDecodeError where it is none, and BeyondLimits."""
    if LONG_KEY.search(without_texts(text)):
        raise BeyondLimits(_("a key has more than {n} parts", n=MOST_PARTS))
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise BeyondLimits(_("lists or tables are nested too deeply")) from None
    except ValueError as failure:
        if isinstance(failure, tomllib.TOMLDecodeError):
            raise
        raise BeyondLimits(_("a number has too many digits")) from None  # Python reads 4,300 of them
    return document


def require_recipe_size(path: Path, text: str) -> None:
    """Raises UsageError for a text that is too long for a recipe or a fact sheet: a megabyte takes a second."""
    if len(text) <= LARGEST:
        return
    what = _("{n:,} characters of TOML are too many; at most {most:,} are read", n=len(text), most=LARGEST)
    fix = _("keep settings or facts only in this file; samples stand in files of their own, which data.train names")
    raise usage_error("recipe-too-large", what, where=str(path), fix=fix)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or GB18030, its line ends as \\n.

    Raises UsageError where the file is missing, can't be read or has another encoding.
    """
    try:
        text, _encoding = decode_text(read_file(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise not_found(path) from None
    except OSError as failure:
        what = _("the file can't be read: {reason}", reason=failure.strerror or str(failure))
        raise usage_error("recipe-unreadable", what, where=str(path)) from None
    except UndecodableText as failure:
        what = _("this is neither UTF-8 nor GB18030 text")
        if failure.is_wide:
            what = _("the file is UTF-16 or UTF-32 (Notepad calls it 'Unicode'), not UTF-8")
        raise usage_error("recipe-encoding", what, where=str(path), fix=_("save the file as UTF-8")) from None
    return text.replace("\r\n", "\n")


def not_found(path: Path) -> UsageError:
    """The error for a recipe that does not exist; its hint names recipes with a similar name."""
    folders = dict.fromkeys([path if path.is_dir() else path.parent, Path("recipes")])
    nearby = {found.stem: found.as_posix() for folder in folders for found in sorted(folder.glob("*.toml"))}
    likely = [nearby[stem] for stem in get_close_matches(path.stem, nearby)] or list(nearby.values())[:5]
    what = _("this is a folder, not a recipe") if path.is_dir() else _("there is no such file")
    fix = _("did you mean {paths}?", paths=", ".join(likely)) if likely else how_to_make_one()
    return usage_error("recipe-not-found", what, where=str(path), fix=fix)


def how_to_make_one() -> str:
    """The hint where there is no recipe at all."""
    command = command_line(["init", "mine", "--data", "mine.jsonl"])
    return _("write one for your data, for example `{command}`", command=command)


def syntax_fix(message: str, line: str) -> str:
    """What to change in a line that tomllib can't parse, by its message and the usual mistakes."""
    bare = TEXT.sub("", line)
    wide = [character for character in bare if character in FULL_WIDTH]
    if wide:
        return _("write {ascii} instead of the full-width {wide}", wide=wide[0], ascii=FULL_WIDTH[wide[0]])
    if "hex value" in message or "'\\\\'" in message:
        return _("write a path with / or in 'single quotes': a backslash in double quotes starts an escape")
    if "Cannot" in message:
        return _("the same key or [table] occurs twice in the file: keep one")
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


def key_lines(text: str, *, arrays: bool = False) -> dict[str, int]:
    """{dotted key or table: line number} of valid TOML, without the keys inside inline tables.

    With `arrays` the tables of an array have numbers: the second [[fact]] is `fact.2`, and its key `fact.2.id`.
    """
    plain = without_texts(text)
    lines: dict[str, int] = {}
    counts: Counter[str] = Counter()
    table, depth = "", 0
    for number, (line, original) in enumerate(zip(plain.split("\n"), text.split("\n"), strict=True), 1):
        head, sign, rest = line.partition("=")
        header = re.match(r"\s*\[+([^\[\]]+)\]", line) if depth == 0 else None
        if header:
            table = bare_key(original[header.start(1) : header.end(1)])
            if arrays and header[0].lstrip().startswith("[["):
                counts[table] += 1
                table = f"{table}.{counts[table]}"
            lines.setdefault(table, number)
            continue
        if depth == 0 and sign:
            lines.setdefault(f"{table}.{bare_key(original[: len(head)])}".lstrip("."), number)
        brackets = rest if depth == 0 else line
        depth += len(re.findall(r"[\[{]", brackets)) - len(re.findall(r"[\]}]", brackets))
    return lines


def without_texts(text: str) -> str:
    """TOML with every character of its strings as `_`, line breaks kept, and without its comments."""
    return TEXT.sub(lambda found: "" if found[0][0] == "#" else re.sub(r"[^\n]", "_", found[0]), text)


def bare_key(written: str) -> str:
    """`"a" . b` as `a.b`."""
    return ".".join(part.strip().strip("\"'") for part in written.split("."))


def toml_value(text: str) -> Any:
    """The value that a text stands for in TOML, or REFUSED where it is not exactly one value."""
    try:
        document = parse("value = " + text)
    except (tomllib.TOMLDecodeError, BeyondLimits):
        return REFUSED
    return document["value"] if document.keys() == {"value"} else REFUSED
