"""The last table of docs/glossary.md: words that names, docstrings and messages of the package don't use."""

from __future__ import annotations

import ast
import functools
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "fasttune"
CATALOG = PACKAGE / "locale" / "zh" / "LC_MESSAGES" / "fasttune.po"


def banned() -> list[tuple[str, str, frozenset[str]]]:
    """(word, what to use instead, where it is banned) of each row."""
    table = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8").split("| not | use | where |")[1]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return [(word, use, frozenset(where.split(", "))) for word, use, where in rows]


def defined(path: Path) -> Iterator[tuple[str, str]]:
    """(name, place) of everything that a file defines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name, f"{path.relative_to(REPOSITORY)}:{node.lineno}"
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, f"{path.relative_to(REPOSITORY)}:{node.lineno}"


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """(text, place) of the docstrings of a file's module, classes and functions, and of its comments."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.string, f"{path.relative_to(REPOSITORY)}:{token.start[0]}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
            yield text, f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


@functools.cache
def everywhere(read: Callable[[Path], Iterator[tuple[str, str]]]) -> tuple[tuple[str, str], ...]:
    """What `read`, `defined` or `docstrings`, finds in all files of the package; each is read once for all words."""
    return tuple(found for path in sorted(PACKAGE.rglob("*.py")) for found in read(path))


@functools.cache
def messages() -> list[tuple[str, str]]:
    """(English text, place) of every message."""
    text = CATALOG.read_text(encoding="utf-8")
    entries = re.findall(r'^msgid(?:_plural)? ((?:"(?:\\.|[^"\\])*"\n)+)', text, re.MULTILINE)
    found = ["".join(re.findall(r'"((?:\\.|[^"\\])*)"', entry)) for entry in entries]
    return [(message, message) for message in found if message]


def is_named(word: str, name: str) -> bool:
    """Whether a name is the word or, for a word in small letters, has it between underscores."""
    return name == word or (word.islower() and "_" not in word and word in name.lower().split("_"))


def is_said(word: str, text: str) -> bool:
    """Whether a text has the word or the words, as whole words, capital or small letters alike; text in backticks and
    placeholders don't count."""
    if word.lower() not in text.lower():
        return False
    text = re.sub(r"`[^`]*`|\{[^}]*\}", " ", text)
    return re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE) is not None


def test_the_table_is_read() -> None:
    words = {word: where for word, _use, where in banned()}
    assert len(words) > 30 and words["card"] == {"names", "messages", "docstrings"}
    assert len(messages()) > 600
    assert is_named("card", "free_card_memory") and not is_named("card", "discard") and not is_named("Order", "order")
    assert is_said("card", "a Card, or") and not is_said("net", "plan.net-x") and not is_said("net", "subnet")


@pytest.mark.parametrize(("word", "use", "where"), banned(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_banned_word_is_not_used(word: str, use: str, where: frozenset[str]) -> None:
    places: list[str] = []
    if "names" in where:
        whole = "whole only" in where
        places += [
            f"{place}: {name}"
            for name, place in everywhere(defined)
            if (name == word if whole else is_named(word, name))
        ]
    if "docstrings" in where:
        places += [f"{place}: docstring or comment" for text, place in everywhere(docstrings) if is_said(word, text)]
    if "messages" in where:
        places += [place for text, place in messages() if is_said(word, text)]
    assert not places, f"say {use}:\n" + "\n".join(places)


def test_a_card_is_a_playing_card() -> None:
    """`grep -rnw card fasttune`, comments and recipes' help included."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\bcards?\b", line, re.IGNORECASE)
    ]
    assert not found
