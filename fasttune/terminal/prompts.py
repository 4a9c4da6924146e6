"""Questions to the person at the terminal: one of several, a number, a text, yes or no.

Asked on stderr, so that stdout stays data; Ctrl-C and Ctrl-D in a question raise KeyboardInterrupt, which ends the
command as it does everywhere (exit 130). The only home of questionary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import questionary
from prompt_toolkit.input import create_input
from prompt_toolkit.output import create_output
from questionary.prompts.common import InquirerControl

from fasttune.console import _

STYLE = questionary.Style([("highlighted", "bold"), ("selected", ""), ("answer", "bold")])


def choose(question: str, choices: Mapping[str, str], first: str | None = None) -> str:
    """The key of the line that was picked; `first` is the key that Enter alone picks, else the first one's."""
    numbers = len(choices) <= len(InquirerControl.SHORTCUT_KEYS)
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
    """A number above 0, and up to `most`; an empty line means the default, which is shown."""

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

    `problem` says what is wrong with a text, in words, or None; the line is not accepted before that.
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
    """Yes or no, where no is what Enter alone says."""
    return choose(question, {"no": _("no"), "yes": _("yes")}) == "yes"


def as_number(entered: str) -> float:
    """The number above 0 that a text is, else 0; full-width digits and a decimal comma are fine."""
    try:
        value = float(entered.strip().replace(",", "."))
    except ValueError:
        return 0.0
    return value if 0 < value < float("inf") else 0.0


def answer(question: questionary.Question) -> Any:
    """What was answered."""
    try:
        return question.unsafe_ask()
    except EOFError:
        raise KeyboardInterrupt from None
