"""Questions to the person at the terminal: one of several, a number, a text, yes or no.

Asked on stderr, so that stdout stays data; Ctrl-C and Ctrl-D in a question raise KeyboardInterrupt, which ends the
command as it does everywhere (exit 130). The only home of questionary.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Mapping
from typing import Any

import questionary
from prompt_toolkit.input import create_input
from prompt_toolkit.output import create_output

from fasttune.console import _

SHORTCUTS = string.digits[1:] + "0" + string.ascii_lowercase  # the keys that questionary numbers choices by
STYLE = questionary.Style([("highlighted", "bold"), ("selected", ""), ("answer", "bold")])


def choose(question: str, choices: Mapping[str, str], first: str | None = None) -> str:
    """The key of the choice that was picked, titles by key; `first` is the key that Enter alone picks, by default the
    first one."""
    numbers = len(choices) <= len(SHORTCUTS)
    picked = questionary.select(
        question,
        choices=[questionary.Choice(title, value=key) for key, title in choices.items()],
        default=first or next(iter(choices)),
        style=STYLE,
        use_shortcuts=numbers,
        use_jk_keys=False,  # letters are the shortcuts after 9
        instruction=_("(arrow keys or the number, then Enter)") if numbers else _("(arrow keys, then Enter)"),
        input=create_input(sys.stdin),
        output=create_output(stdout=sys.stderr),
    )
    return str(answer(picked))


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
    shown = _("{question} (Enter: {default})", question=question, default=default) if default else question
    line = questionary.text(
        shown,
        style=STYLE,
        validate=lambda entered: problem(entered.strip() or default) or True,
        input=create_input(sys.stdin),
        output=create_output(stdout=sys.stderr),
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
