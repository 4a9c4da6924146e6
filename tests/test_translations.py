"""The Chinese catalog: all messages of the code and no others, each translated, and compiled as committed."""

from __future__ import annotations

import ast
import importlib
import io
import re
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from babel.messages import Catalog, Message
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po

from fasttune import console
from fasttune.data import formats
from fasttune.doctor import outcome
from fasttune.recipe.schema import KEYS
from fasttune.terminal import chat, command_line, estimates, setting_source

PACKAGE = Path(console.__file__).parent
REPOSITORY = PACKAGE.parent
CATALOG = console.LOCALE / "zh" / "LC_MESSAGES" / "fasttune.po"
REMEDY = "`make translations`, then complete fasttune.po by hand"

# The texts that reach `_()` through an expression, by how the code writes it; `_(NAME)` of a constant needs no entry.
THROUGH_EXPRESSIONS: dict[str, Callable[[], tuple[str, ...]]] = {
    "finding.level": lambda: console.LEVELS,
    "first.level": lambda: console.LEVELS,
    "warning.level": lambda: console.LEVELS,
    "PARTS[name]": lambda: tuple(estimates.PARTS.values()),
    "STATES[check.state]": lambda: tuple(outcome.STATES.values()),
    "TITLES[self.name]": lambda: tuple(outcome.TITLES.values()),
    "key.help": lambda: tuple(key.help for key in KEYS.values()),
    "heading": lambda: tuple(heading for heading, _texts in command_line.GROUPS),
    "name": lambda: tuple(command_line.TYPES.values()),
    "text": lambda: tuple(text for _heading, texts in command_line.GROUPS for text in texts.values()),
    "self.message": lambda: formats.LABELS,
    "key.most if is_above and key.most else key.help": lambda: tuple(
        text for key in KEYS.values() for text in (key.most, key.help) if text
    ),
    "why": lambda: tuple(chat.ENDINGS.values()),
    "argument": lambda: tuple(argument for argument, _text in chat.COMMANDS.values() if argument),
    "meaning": lambda: tuple(meaning for _argument, meaning in chat.COMMANDS.values()),
    "example": lambda: tuple(text for _line, text in command_line.EXAMPLES),
    "word": lambda: setting_source.WORDS,
}


@dataclass(frozen=True)
class MessageCall:
    """A call of `_()`, `N_()` or `ngettext()`: the texts it can show, the names of its values, and where it stands."""

    function: str
    texts: tuple[str, ...]
    values: frozenset[str]
    where: str


def message_calls() -> Iterator[MessageCall]:
    """Every call in the package that names a message; fails where a call's text can't be told."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="_" | "N_" | "nN_" | "ngettext" as function), args=[_, *_]):
                    where = f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
                    arguments = node.args[: 2 if function in ("nN_", "ngettext") else 1]
                    texts = tuple(text for argument in arguments for text in texts_of(argument, path, where))
                    names = [str(keyword.arg) for keyword in node.keywords]
                    yield MessageCall(function, texts, frozenset(names), where)


def texts_of(argument: ast.expr, path: Path, where: str) -> tuple[str, ...]:
    """What an argument can be: a text, a constant of its module, or what THROUGH_EXPRESSIONS says."""
    match argument:
        case ast.Constant(value=str(text)):
            return (text,)
        case ast.Name(id=name) if name.isupper():
            module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            return (getattr(importlib.import_module(module), name),)
    expression = ast.unparse(argument)
    if expression not in THROUGH_EXPRESSIONS:
        pytest.fail(
            f"{where}: write the text itself here, or a constant marked with N_(), or add to THROUGH_EXPRESSIONS"
        )
    return THROUGH_EXPRESSIONS[expression]()


def forms(text: object) -> tuple[str, ...]:
    """The forms of a message or of its translation: one, or one for each plural."""
    return tuple(text) if isinstance(text, (list, tuple)) else (str(text or ""),)


def placeholders(message: str) -> list[tuple[str, str, str]]:
    """(name, format, conversion) of each `{…}`, sorted."""
    parts = string.Formatter().parse(message)
    return sorted((name, spec or "", conversion or "") for _text, name, spec, conversion in parts if name is not None)


def names(message: str) -> set[str]:
    return {name for name, _spec, _conversion in placeholders(message)}


def texts(catalog: Catalog) -> set[tuple[str, ...]]:
    return {forms(message.id) for message in catalog if message.id}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The messages that Babel finds in the code, with the options in pyproject.toml."""
    file = tmp_path_factory.mktemp("babel") / "fasttune.pot"
    command = [sys.executable, "-m", "babel.messages.frontend", "extract", "-o", str(file)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    with file.open("rb") as template:
        # `zh` has one plural form and a template has two empty ones: the locale is left out, or Babel warns of each.
        return read_po(template)


@pytest.fixture(scope="module")
def chinese() -> Catalog:
    with CATALOG.open("rb") as file:
        return read_po(file, locale="zh", abort_invalid=True)


@pytest.fixture(scope="module")
def translated(chinese: Catalog) -> list[Message]:
    """The entries of the catalog without its header."""
    return [message for message in chinese if message.id]


def test_babel_finds_every_message(extracted: Catalog) -> None:
    """Babel overlooks, for one, a call inside an f-string, and a constant without N_()."""
    found = {form for text in texts(extracted) for form in text}
    lost = {text: call.where for call in message_calls() for text in call.texts if text not in found}
    assert not lost, "\n".join(f"{where}: {text}" for text, where in lost.items())


def test_calls_fill_their_placeholders() -> None:
    for call in message_calls():
        if call.function == "ngettext":
            singular, plural = call.texts
            assert names(singular) | {"n"} == names(plural) | {"n"} == call.values | {"n"}, call.where
        elif call.texts == formats.LABELS:  # each is given both values and shows what it needs
            assert all(names(text) <= call.values for text in call.texts), call.where
        elif call.function == "_" and call.values:  # any other is shown as it stands, braces too
            assert all(names(text) == call.values for text in call.texts), call.where


def test_the_catalog_has_the_messages_of_the_code(extracted: Catalog, chinese: Catalog) -> None:
    missing, unused = texts(extracted) - texts(chinese), texts(chinese) - texts(extracted)
    assert not missing and not unused, f"{REMEDY}; missing: {missing}; unused: {unused}"
    assert not chinese.obsolete, f"delete the lines that begin with `#~`: {list(chinese.obsolete)}"


def test_every_message_is_translated(translated: list[Message]) -> None:
    empty = [message.id for message in translated if not all(form.strip() for form in forms(message.string))]
    assert not empty, f"without Chinese: {empty}"


def test_no_translation_is_fuzzy(chinese: Catalog, translated: list[Message]) -> None:
    assert not chinese.fuzzy
    fuzzy = [message.id for message in translated if message.fuzzy]
    assert not fuzzy, f"the English changed; revise the Chinese and delete `#, fuzzy`: {fuzzy}"


def test_translations_have_the_same_placeholders(chinese: Catalog, translated: list[Message]) -> None:
    """Babel checks the number of plural forms; for `{name}` it has no check."""
    assert [(message.id, error) for message, errors in chinese.check() for error in errors] == []
    filled = {text for call in message_calls() if call.values or call.function == "ngettext" for text in call.texts}
    for message in translated:
        english = forms(message.id)[-1]
        if english in filled:
            for form in forms(message.string):
                assert placeholders(english) == placeholders(form), english


# Where half-width punctuation may touch a Chinese character: what is typed so, in backticks or a quoted key, a command of
# Python, the call of a function, the form of --vary, the characters of a name, and a list in JSON.
TYPED = re.compile(r"`[^`]*`|python -c .*|\w+\([^()]*\)|键=\S+|= 而不是 :|个 :TAG|\[[^\]]*\]|\"[^\"]*\":")
HALF_WIDTH = re.compile(r"[\u4e00-\u9fff] ?[,:;!?()]|[,:;!?()] ?[\u4e00-\u9fff]")


def test_punctuation_beside_chinese_is_full_width(translated: list[Message]) -> None:
    """docs/glossary.md says how messages are punctuated; a message that is typed is left as it is."""
    found = {form: HALF_WIDTH.findall(TYPED.sub("", form)) for message in translated for form in forms(message.string)}
    assert not (wrong := {form: marks for form, marks in found.items() if marks}), wrong


def test_messages_that_are_put_together_are_full_width_in_chinese(translated: list[Message]) -> None:
    """`{name}: {value}` has no Chinese character of its own: what stands between two placeholders of a translation."""
    between = re.compile(r"\}(?:[,:;] |[:;,](?=\{)| \()")
    wrong = [form for message in translated for form in forms(message.string)
             if between.search(TYPED.sub("", form))]  # fmt: skip
    assert not wrong, wrong
    assert {console.COLON, console.COMMA, console.SEMICOLON} <= {str(message.id) for message in translated}


def test_the_compiled_catalog_is_current(chinese: Catalog) -> None:
    """What is installed and read is fasttune.mo. Its header names the version of Babel and is not compared."""
    compiled = io.BytesIO()
    write_mo(compiled, chinese)
    compiled.seek(0)
    with CATALOG.with_suffix(".mo").open("rb") as file:
        committed = read_mo(file)
    expected = {forms(message.id): forms(message.string) for message in read_mo(compiled) if message.id}
    found = {forms(message.id): forms(message.string) for message in committed if message.id}
    assert found == expected, "`make translations`"
    assert committed.num_plurals == 1
