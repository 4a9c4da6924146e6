"""Findings, exit codes, languages, and that every message of the code has its Chinese."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fasttune import console
from fasttune.console import Finding
from fasttune.recipe import schema

PACKAGE = Path(console.__file__).parent
CATALOG = PACKAGE / "zh.toml"
WARNING = Finding("slow-card", "warning", "machine", "the card is slow", fix="buy another")
ERROR = Finding("no-card", "error", "machine", "there is no [card]")

# What reaches `_()` through an expression that is neither a text nor a name of one, by how the code writes it.
THROUGH_EXPRESSIONS: dict[str, Callable[[], tuple[str, ...]]] = {
    "finding.level": lambda: console.LEVELS,
    "warning.level": lambda: console.LEVELS,
    "key.help": lambda: tuple(key.help for key in schema.KEYS.values()),
}


# --- messages of the code --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A text that a call of `_()` gets, the call's keywords, and where it stands. `exact`: the call says this only."""

    text: str
    values: frozenset[str]
    where: str
    exact: bool


def messages() -> list[Said]:
    """Every text that can be passed to `_()` in the package; fails where a call's text can't be told."""
    return [said for path in sorted(PACKAGE.rglob("*.py")) for said in messages_of(path)]


def messages_of(path: Path) -> Iterator[Said]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        for node in own_nodes(scope):
            match node:
                case ast.Call(func=ast.Name(id="_") | ast.Attribute(attr="_"), args=[message, *_rest]):
                    where = f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
                    try:
                        texts = texts_of(message, scope, tree)
                    except LookupError as unknown:
                        pytest.fail(f"{where}: what is {unknown}? Make it a name, or add it to THROUGH_EXPRESSIONS")
                    values = frozenset(str(keyword.arg) for keyword in node.keywords)
                    yield from (Said(text, values, where, len(texts) == 1) for text in texts)


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module or function without those of functions inside it; inner ones see no outer local here."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from own_nodes(child)
        else:
            yield from (node for part in (*child.args.defaults, *child.decorator_list) for node in ast.walk(part))


def texts_of(message: ast.AST, scope: ast.AST, module: ast.Module) -> list[str]:
    """All that an expression can be: a text, one text or another, a local, module-level or imported name of texts.

    Raises LookupError for any other.
    """
    match message:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=one, orelse=other):
            return texts_of(one, scope, module) + texts_of(other, scope, module)
        case ast.Name(id=name):
            return named(name, scope, module)
    return list(THROUGH_EXPRESSIONS[ast.unparse(message)]())


def named(name: str, scope: ast.AST, module: ast.Module) -> list[str]:
    """The texts that a name is given anywhere in a function, else in its module or the module it is imported from."""
    for place in (scope, module):
        found: list[str] = []
        for node in own_nodes(place):
            match node:
                case ast.Assign(targets=[ast.Name(id=assigned)], value=value) if assigned == name:
                    found += texts_of(value, place, module)
                case ast.ImportFrom(module=str(origin)) if name in [alias.asname or alias.name for alias in node.names]:
                    file = PACKAGE.parent.joinpath(*origin.split(".")).with_suffix(".py")
                    tree = ast.parse(file.read_text(encoding="utf-8"))
                    found += named(name, tree, tree)
        if found:
            return found
    raise LookupError(name)


def placeholders(message: str) -> list[tuple[str, str, str]]:
    """(name, format, conversion) of each `{…}`, sorted."""
    parts = string.Formatter().parse(message)
    return sorted((name, spec or "", conversion or "") for _text, name, spec, conversion in parts if name is not None)


def test_every_message_has_its_chinese() -> None:
    missing = {said.text for said in messages()} - set(console.catalog())
    assert not missing, "\n".join(sorted(missing))


def test_no_translation_is_left_over() -> None:
    unused = set(console.catalog()) - {said.text for said in messages()}
    assert not unused, "\n".join(sorted(unused))
    entries = CATALOG.read_text(encoding="utf-8").count("\n[[message]]\n")
    assert entries == len(console.catalog()), "an English text stands twice"


def test_translations_have_the_same_placeholders() -> None:
    filled = {said.text for said in messages() if said.values}
    for english, chinese in console.catalog().items():
        assert chinese.strip(), english
        if english in filled:  # any other is shown as it stands, braces too
            assert placeholders(english) == placeholders(chinese), english


def test_calls_fill_their_placeholders() -> None:
    for said in messages():
        names = {name for name, _spec, _conversion in placeholders(said.text)} if said.values else set()
        assert names == said.values if said.exact else names <= said.values, said.where


# --- languages and findings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTTUNE_LANG": "zh"}, "zh"),
        ({"FASTTUNE_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_language(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("FASTTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.language() == expected
    assert console._("error") == {"zh": "错误", "en": "error"}[expected]


def test_worst_first_and_exit_code() -> None:
    assert console.worst_first([WARNING, ERROR]) == [ERROR, WARNING]
    assert console.exit_code([WARNING]) == 0
    assert console.exit_code([WARNING, ERROR]) == 1


def test_findings_speak_on_stderr_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_findings([WARNING, ERROR])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: machine: there is no [card]",
        "warning: machine: the card is slow",
        "  hint: buy another",
    ]


def test_findings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_findings([WARNING], as_json=True)
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert set(finding) == {"code", "level", "where", "what", "why", "fix"}
