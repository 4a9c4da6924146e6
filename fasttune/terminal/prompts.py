"""Questions to the person at the terminal: one of several, a number, a text, yes or no.

Asked on stderr, so that stdout stays data. Ctrl-C and Ctrl-D in a question raise KeyboardInterrupt, which ends the
command as it does everywhere (exit 130). Esc goes back: it picks the choice that leads back where there is one, and
raises WentBack elsewhere. The only home of questionary.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Mapping
from typing import Any

import questionary
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.output import create_output
from rich.cells import chop_cells

from fasttune.console import _, line_starts, say

SHORTCUTS = string.digits[1:] + "0" + string.ascii_lowercase  # the keys that questionary numbers choices by
LEADING_BACK = ("back", "cancel", "quit", "no")  # the keys of choices that Esc stands for
INDENT = 6  # columns before a choice's title: ` » 1) `
MARK = 2  # columns before a question: `? `
STYLE = questionary.Style([("highlighted", "bold"), ("selected", ""), ("answer", "bold")])


class WentBack(KeyboardInterrupt):
    """Esc in a question without a choice that leads back: a menu asks its last question again, all else ends."""


def choose(question: str, choices: Mapping[str, str], first: str | None = None) -> str:
    """The key of the choice that was picked, titles by key; `first` is the key that Enter alone picks, by default the
    first one. A question or title that is longer than a line is wrapped, a title anew where the terminal is resized."""
    numbers = len(choices) <= len(SHORTCUTS)
    output = create_output(stdout=sys.stderr)
    keys = _("(arrow keys or number, Enter; Esc: back)") if numbers else _("(arrow keys, Enter; Esc: back)")
    picked = questionary.select(
        wrapped(f"{question} {keys}", output.get_size().columns - 1, MARK),
        choices=(listed := [questionary.Choice(title, value=key) for key, title in choices.items()]),
        default=first or next(iter(choices)),
        style=STYLE,
        use_shortcuts=numbers,
        use_jk_keys=False,  # letters are the shortcuts after 9
        instruction=" ",  # stands in the question: questionary would append its own in English
        input=create_input(sys.stdin),
        output=output,
        erase_when_done=True,  # the answer is printed below: questionary would cut one of several lines
    )

    def fit(_application: object) -> None:
        for one, title in zip(listed, choices.values(), strict=True):
            one.title = wrapped(title, output.get_size().columns - 1, INDENT)

    picked.application.before_render += fit
    bound = picked.application.key_bindings
    own = leaving(at_the_end=True)
    picked.application.key_bindings = merge_key_bindings([bound, own]) if bound else own
    try:
        key = str(answer(picked))
    except WentBack:
        if not (back := [key for key in LEADING_BACK if key in choices]):
            raise
        key = back[0]
    say(f"? {question} {choices[key]}")
    return key


def wrapped(text: str, columns: int, indent: int) -> str:
    """A text that begins `indent` columns from the left, in lines that end before `columns`, the later ones as far to
    the right as the first."""
    width = max(columns - indent, 10)
    starts = line_starts(text, width)
    lines = [text[start:end].rstrip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return ("\n" + " " * indent).join(part for line in lines for part in chop_cells(line, width))


def leaving(*, at_the_end: bool) -> KeyBindings:
    """Esc, and for a list, where questionary gives it no meaning, Ctrl-D."""
    keys = KeyBindings()

    @keys.add("escape")
    def go_back(event: KeyPressEvent) -> None:
        event.app.exit(exception=WentBack())

    if at_the_end:

        @keys.add("c-d")
        def end(event: KeyPressEvent) -> None:
            event.app.exit(exception=EOFError())

    return keys


def number(question: str, default: float, *, most: float | None = None, whole: bool = False) -> float:
    """A number above 0 and up to `most`, a whole one with `whole`; an empty line means the default, which is shown."""

    def problem(entered: str) -> str | None:
        value = as_number(entered)
        if value and (most is None or value <= most) and (value.is_integer() or not whole):
            return None
        if whole:
            return _("a whole number above 0")
        return _("a number above 0, such as {example:g}", example=default)

    return as_number(text(question, f"{default:g}", problem))


def text(question: str, default: str, problem: Callable[[str], str | None]) -> str:
    """A line of text without spaces around it; an empty one means the default, which is shown.

    `problem` gives a sentence about a text that can't be accepted, None for one that can.
    """
    shown = _("{question} (Esc: back)", question=question)
    if default:
        shown = _("{question} (Enter: {default}; Esc: back)", question=question, default=default)
    output = create_output(stdout=sys.stderr)
    line = questionary.text(
        wrapped(shown, output.get_size().columns - 1, MARK),
        style=STYLE,
        validate=lambda entered: problem(entered.strip() or default) or True,
        key_bindings=leaving(at_the_end=False),
        input=create_input(sys.stdin),
        output=output,
    )
    return str(answer(line)).strip() or default


def agree(question: str) -> bool:
    """Yes or no; Enter alone means no."""
    return choose(question, {"no": _("no"), "yes": _("yes")}) == "yes"


def as_number(entered: str) -> float:
    """The number that a text is, 0 where it is none or not above 0; full-width digits and a decimal comma are read."""
    try:
        value = float(entered.strip().replace(",", "."))
    except ValueError:
        return 0.0
    return value if 0 < value < float("inf") else 0.0


def answer(question: questionary.Question) -> Any:
    """The answer to a question. Raises KeyboardInterrupt for Ctrl-C and Ctrl-D."""
    try:
        return question.unsafe_ask()
    except EOFError:
        raise KeyboardInterrupt from None
