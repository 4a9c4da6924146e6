"""Questions at a pseudo-terminal: keys, defaults, numbers in other scripts, and the end by Ctrl-C or Ctrl-D."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.cells import cell_len
from terminal import CTRL_C, DOWN, ENTER, ESC, Steps, answer

from fasttune.terminal import prompts

CTRL_D = "\x04"


@pytest.mark.parametrize(
    ("keys", "picked"), [(ENTER, "b"), ("1" + ENTER, "a"), (DOWN + ENTER, "c"), (DOWN + DOWN + ENTER, "a")]
)
def test_one_of_several(keys: str, picked: str) -> None:
    titles = {"a": "first", "b": "second", "c": "third"}
    assert answer([("Which?", keys)], lambda: prompts.choose("Which?", titles, "b"))[0] == picked


def test_every_shortcut_is_a_key_of_its_own_and_more_choices_have_none() -> None:
    """questionary refuses more choices than it has shortcuts for."""
    count = len(prompts.SHORTCUTS)
    titles = {f"key{n}": f"title {n}" for n in range(count)}
    for index in (0, 8, 9, 10, count - 1):
        keys = prompts.SHORTCUTS[index] + ENTER
        assert answer([("Which?", keys)], lambda: prompts.choose("Which?", titles))[0] == f"key{index}"
    more = titles | {"one": "more"}
    picked, screen = answer([("Which?", "\x1b[A" + ENTER)], lambda: prompts.choose("Which?", more))
    assert picked == "one" and "(arrow keys, Enter; Esc: back)" in screen


@pytest.mark.parametrize("entered", ["2.5", "2,5", " 2.5 ", "２.５"])
def test_a_number(entered: str) -> None:
    assert answer([("How many?", entered + ENTER)], lambda: prompts.number("How many?", 1.5))[0] == 2.5


def test_the_default_of_a_number_is_shown_and_taken() -> None:
    value, screen = answer([("How many?", ENTER)], lambda: prompts.number("How many?", 1.5))
    assert value == 1.5 and "(Enter: 1.5; Esc: back)" in screen


@pytest.mark.parametrize("entered", ["0", "-1", "nan", "inf", "x", "3"])
def test_what_is_no_number_is_not_taken(entered: str) -> None:
    steps = [("How many?", entered + ENTER), ("above 0", "\x7f" * len(entered) + "2" + ENTER)]
    assert answer(steps, lambda: prompts.number("How many?", 1.0, most=2.0))[0] == 2.0


def test_a_whole_number() -> None:
    steps = [("Rank?", "1.5" + ENTER), ("a whole number above 0", "\x7f\x7f6" + ENTER)]
    assert answer(steps, lambda: prompts.number("Rank?", 8.0, whole=True))[0] == 16.0


@pytest.mark.parametrize(("keys", "agreed"), [(ENTER, False), ("2" + ENTER, True)])
def test_yes_or_no(keys: str, agreed: bool) -> None:
    assert answer([("Sure?", keys)], lambda: prompts.agree("Sure?"))[0] is agreed


@pytest.mark.parametrize(
    ("key", "raised"), [(CTRL_C, KeyboardInterrupt), (CTRL_D, KeyboardInterrupt), (ESC, prompts.WentBack)]
)
@pytest.mark.parametrize(
    "question",
    [
        lambda: prompts.text("Name?", "", lambda entered: None),
        lambda: prompts.choose("Name?", {"a": "one", "b": "two"}),
    ],
    ids=["a text", "a list"],
)
def test_the_end_of_the_input_is_an_interrupt_and_esc_goes_back(
    question: Callable[[], str], key: str, raised: type[BaseException]
) -> None:
    def ask() -> bool:
        with pytest.raises(KeyboardInterrupt) as caught:
            question()
        assert caught.type is raised
        return True

    assert answer([("Name?", key)], ask)[0]


def test_esc_is_the_choice_that_leads_back() -> None:
    titles = {"a": "one", "back": "two"}
    assert answer([("Which?", ESC)], lambda: prompts.choose("Which?", titles))[0] == "back"
    assert answer([("Sure?", ESC)], lambda: prompts.agree("Sure?"))[0] is False


@pytest.mark.parametrize(
    "title", ["more epochs; answers fit but are short", "再训练几轮；适合回答对味但偏短、缺少细节"]
)
def test_a_long_title_is_wrapped(title: str) -> None:
    """prompt_toolkit cuts a line at the edge without a sign, in the middle of a Chinese character too."""
    lines = prompts.wrapped(title, prompts.INDENT + 20, prompts.INDENT).split("\n")
    assert len(lines) > 1 and all(cell_len(line.strip()) <= 20 for line in lines)
    assert all(line.startswith(" " * prompts.INDENT) for line in lines[1:])
    assert "".join("".join(lines).split()) == title.replace(" ", "")


def test_a_long_question_is_broken_at_words() -> None:
    question = "What do you want to change? " + "One thing at a time shows what helped. " * 3
    shown = prompts.wrapped(question, 49, prompts.MARK).split("\n  ")
    assert all(cell_len(line) <= 47 for line in shown) and " ".join(shown) == question.strip()
    screen = answer([("What", ENTER)], lambda: prompts.choose(question, {"a": "one"}))[1]
    assert "arrow keys or number, Enter; Esc: back)" in " ".join(screen.split())


def test_titles_are_wrapped_anew_where_the_terminal_is_resized() -> None:
    """prompt_toolkit would cut them at the new edge."""
    titles = {"a": "the first one of several words", "b": "the second one"}
    steps: Steps = [("1) the first one of several words", 24), ("1) the first one of\n", ENTER)]
    assert answer(steps, lambda: prompts.choose("Which?", titles))[0] == "a"
