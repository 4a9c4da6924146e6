"""Output: findings, the errors that users see, messages in the user's language, and the two rich consoles.

Results go to stdout, everything else to stderr. Whatever can be wrong with a recipe, a data set, a run or a machine is
a `Finding`; a `FasttuneError` carries one or more of them and is shown without a traceback. Any other exception is a
bug in fasttune and keeps its traceback.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import gettext
import io
import json
import locale
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

LOCALE = Path(__file__).parent / "locale"
Words = TypeVar("Words", bound=str)


def N_(message: Words) -> Words:
    """The message unchanged: marks a constant for Babel, so that `_()` can translate it where it is shown."""
    return message


def nN_(singular: str, plural: str) -> tuple[str, str]:
    """Both forms of a message with a number unchanged: marks a constant for Babel, as N_ does."""
    return singular, plural


# Between the parts of a line, full width in Chinese; `file: key` and `file:line` are names and stay.
COLON, COMMA, SEMICOLON = N_(": "), N_(", "), N_("; ")
Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = (N_("error"), N_("warning"), N_("info"))
MOST_SHOWN = 20  # findings, or groups of them, that are shown as text; --json gives all of them
MOST_ALIKE = 3  # findings that differ in their place alone and are shown one by one
# What an output encoding lacks (ASCII, GBK, Latin-1) is written like this, everything else as a question mark.
REPLACED = {"⟦": "[[", "⟧": "]]", "│": "|", "…": "...", "→": "->", "–": "-", "×": "x", "≥": ">=", "≤": "<="}
STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}

# What a terminal obeys instead of showing it: C0 but tab and newline, DEL and C1; and surrogates, which no encoding
# has. Each as it is written in Python: \x1b, \x9b, \ud800.
CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000))
}
# json.dumps escapes C0 itself; the rest is escaped in the document, where it can only stand within a string.
JSON_CONTROLS = {code: f"\\u{code:04x}" for code in CONTROLS}
UNSAFE = re.compile("[" + "".join(map(chr, CONTROLS)) + "]")
INDENTED = 1_000_000  # characters
# A line may end after each: a command in backticks with what touches it, a Chinese character, a word, spaces.
PIECES = re.compile(
    r"[^\s`\u2e80-\uffff]*`[^`]*`[^\s`\u2e80-\uffff]*[，。；：、）」！？]*\s*"
    r"|[\u2e80-\uffff][，。；：、）」！？]*\s*|[^\s\u2e80-\uffff]+\s*|\s+"
)


def visible(text: str) -> str:
    """The text with its control characters written out, so that no stranger's text can steer the terminal."""
    return text.translate(CONTROLS)


class SafeConsole(Console):
    """A console that shows the control characters of what it is given; colours and moves of its own are kept."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def render_str(self, text: str, **settings: Any) -> Any:
        return super().render_str(visible(text), **settings)  # before it is measured, and before rich drops some


stderr_console = SafeConsole(stderr=True, highlight=False, emoji=False)
stdout_console = SafeConsole(highlight=False, emoji=False)


@dataclass(frozen=True)
class Finding:
    """One diagnostic about a recipe, a sample, a run or a machine.

    `code` is kebab-case and never renamed. `where` is `file:line`, `file: key` or a run's id, `what` states the fact,
    `why` the reason it matters and `fix` how to mend it; these four are in the user's language.
    """

    code: str
    level: Level
    where: str
    what: str
    why: str = ""
    fix: str = ""


class FasttuneError(Exception):
    """A user's mistake or a condition of the machine, shown as findings with hints and never as a traceback.

    The command ends with `exit_code`.
    """

    exit_code = 1
    after = ""  # a line for people below the findings: what to do once they are mended

    def __init__(self, *findings: Finding) -> None:
        super().__init__("\n".join(f"{f.where}: {f.what}" if f.where else f.what for f in findings))
        self.findings = findings


class UsageError(FasttuneError):
    """The command or the recipe can't be used as written; nothing was started."""

    exit_code = 2


def error(code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> FasttuneError:
    """A `FasttuneError` with a single finding, to be raised by the caller."""
    return FasttuneError(Finding(code, "error", where, what, why, fix))


def usage_error(code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> UsageError:
    """A `UsageError` with a single finding, to be raised by the caller."""
    return UsageError(Finding(code, "error", where, what, why, fix))


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings sorted by level, errors first; those of one level keep their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def findings_of(*checks: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What several checks find or raise. Raises FasttuneError with all of it where something of it is an error."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except FasttuneError as problem:
            found += problem.findings
    if exit_code(found):
        raise FasttuneError(*found)
    return found


def exit_code(findings: Iterable[Finding]) -> int:
    """The exit code of a verb that reports findings: 1 where one of them is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def show_findings(findings: Sequence[Finding], *, as_json: bool = False) -> None:
    """Print findings, errors first: as text on stderr, or as `{"findings": [{"code": …}, …]}` on stdout."""
    findings = worst_first(findings)
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
        return
    groups = alike(findings)
    for group in groups[:MOST_SHOWN]:
        show_alike(group)
    if more := [finding for group in groups[MOST_SHOWN:] for finding in group]:
        errors = sum(finding.level == "error" for finding in more)
        say(
            ngettext(
                "and {n} more finding, {errors} of them an error; `--json` gives all of them",
                "and {n} more findings, {errors} of them errors; `--json` gives all of them",
                len(more),
                errors=errors,
            )
        )


def alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """The findings in groups: where more than MOST_ALIKE differ in their place alone, they are one group; any other
    finding is a group of its own. Each group stands where its first finding stood."""
    same: dict[Finding, list[Finding]] = {}
    for finding in findings:
        same.setdefault(replace(finding, where=""), []).append(finding)
    groups = []
    for finding in findings:
        key = replace(finding, where="")
        if len(same.get(key, ())) > MOST_ALIKE:
            groups.append(same.pop(key))
        elif key in same:
            groups.append([finding])
    return groups


def show_alike(group: Sequence[Finding]) -> None:
    """Print the first finding of a group as text on stderr, and where the others are."""
    first, hint, colon = group[0], _("hint"), _(COLON)
    label = _(first.level)
    where = f"[bold]{escape(first.where)}[/]{colon}" if first.where else ""
    print_line(styled(f"[{STYLES[first.level]}]{label}{colon}[/]{where}{escape(first.what)}"))
    if others := group[1:]:
        places = ", ".join(finding.where for finding in others[:MOST_ALIKE])
        say(
            "  "
            + _("and {n} more times, at {places}", n=len(others), places=places + ", …" * (len(others) > MOST_ALIKE))
        )
    if first.why:
        say(f"  {first.why}")
    if first.fix:
        print_line(styled(f"  [green]{hint}{colon}[/]{escape(first.fix)}"))


def styled(markup: str) -> Text:
    """A text with rich's markup in it; `:x:` stays what it is, as rich's consoles are told, too."""
    return Text.from_markup(visible(markup), emoji=False)


def can_ask() -> bool:
    """Whether a user can answer prompts: stdin and stderr are terminals, and no other rank trains the same run."""
    one_process = os.environ.get("WORLD_SIZE", "1") == "1"
    here = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))  # None: closed
    return one_process and here and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Print nothing to stderr inside the block: for workers, whose rank 0 prints the same."""
    stderr_console.quiet = True
    try:
        yield
    finally:
        stderr_console.quiet = False


def say(text: str) -> None:
    """Print a line to stderr without markup, broken as `print_line` does."""
    print_line(Text(visible(text)))


def put(text: str, style: str | None = None) -> None:
    """Print lines to stdout without markup, broken as `print_line` does."""
    for line in text.split("\n"):
        print_line(Text(visible(line), style or ""), stdout_console)


def print_line(text: Text, console: Console | None = None) -> None:
    """Print a line to stderr, or to another console. On a terminal it is broken at words, the later lines as far to the
    right as the first; a command in it is not, since commands are copied, and nothing is where a script reads it."""
    console = console or stderr_console
    if not console.is_terminal or "\n" in text.plain or cell_len(text.plain) <= console.width:
        console.print(text, soft_wrap=True)
        return
    indent = len(text.plain) - len(text.plain.lstrip(" "))
    for number, part in enumerate(text.divide(line_starts(text.plain, console.width - indent)[1:])):
        part.rstrip()
        console.print(Text(" " * indent * bool(number)) + part, soft_wrap=True)


def line_starts(text: str, width: int) -> list[int]:
    """Where the lines of a text begin that are at most `width` columns long: after spaces, and beside Chinese
    characters but before their punctuation. A longer word, such as a path, stays whole, and so does a command."""
    starts = [0]
    for piece in PIECES.finditer(text):
        if cell_len(text[starts[-1] : piece.end()].rstrip()) > width and piece.start() > starts[-1]:
            starts.append(piece.start())
    return starts


def print_json(document: Any) -> None:
    """Print a JSON document to stdout: Chinese characters as they are where stdout can encode all of them, control
    characters as JSON escapes, and null for a number that is not finite.

    Indented up to INDENTED characters; hundreds of thousands of findings would take ten times as long.
    """
    document, spaces = finite(document), 2
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    if len(text) <= INDENTED:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=spaces)
    if UNSAFE.search(text):
        text = text.translate(JSON_CONTROLS)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, allow_nan=False, indent=spaces if len(text) <= INDENTED else None)
    sys.stdout.write(text + "\n")


def finite(document: Any) -> Any:
    """A JSON document with None for NaN and the infinities, which JSON does not have."""
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, Mapping):
        return {key: finite(value) for key, value in document.items()}
    return [finite(value) for value in document] if isinstance(document, (list, tuple)) else document


def replace_unencodable(failure: UnicodeError) -> tuple[str, int]:
    """The error handler of both outputs: characters that their encoding lacks are replaced."""
    assert isinstance(failure, UnicodeEncodeError)
    text = failure.object[failure.start : failure.end]
    return "".join(REPLACED.get(character, "?") for character in text), failure.end


def prepare_streams() -> None:
    """Let stdout and stderr replace what they can't encode, and stdin keep what it can't decode as lone surrogates, as
    Python does for the command line (chat.py reads them); a closed one (`>&-`) takes what it is given in silence, a
    closed stdin is empty."""
    codecs.register_error("fasttune", replace_unencodable)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, for the process's life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fasttune")
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


spoken: ContextVar[str] = ContextVar("spoken", default="")  # the language of a page that the board shows, else ""


@contextlib.contextmanager
def speaking(language: str) -> Iterator[None]:
    """In the block, and in what it calls in other threads by its context, messages are in this language."""
    before = spoken.set(language)
    try:
        yield
    finally:
        spoken.reset(before)


def language() -> str:
    """The user's language, `zh` or `en`: that of `speaking`, else by FASTTUNE_LANG, else by the terminal's locale."""
    if here := spoken.get():
        return here
    variables = ("FASTTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next((value for name in variables if (value := os.environ.get(name))), None) or system_locale()
    return "zh" if chosen.lower().startswith("zh") else "en"


@functools.cache
def system_locale() -> str:
    """The locale where no variable names one. Cached: it takes 25 µs, and data of 100,000 samples asks as often."""
    return locale.getlocale()[0] or ""


@functools.cache
def catalog(language: str) -> gettext.NullTranslations:
    """The compiled translations of a language; English has none and shows every message as the code has it."""
    return gettext.translation("fasttune", LOCALE, languages=[language], fallback=True)


def _(message: str, **values: Any) -> str:
    """The message in the user's language with its `{placeholders}` filled; in English where it has no translation.

    A message without values is returned as it is, with its braces. Raises KeyError where a placeholder has no value.
    """
    message = catalog(language()).gettext(message)
    return message.format(**values) if values else message


def ngettext(singular: str, plural: str, n: int, **values: Any) -> str:
    """The plural form of a message for the number `n`, with `{n}` and its other `{placeholders}` filled."""
    return catalog(language()).ngettext(singular, plural, n).format(n=n, **values)
