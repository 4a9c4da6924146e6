"""Findings, exit codes, languages, and that every message of the code has its Chinese."""

from __future__ import annotations

import ast
import json
import string
from pathlib import Path

import pytest

from fasttune import console
from fasttune.console import Finding

PACKAGE = Path(console.__file__).parent
WARNING = Finding("slow-card", "warning", "machine", "the card is slow", fix="buy another")
ERROR = Finding("no-card", "error", "machine", "there is no [card]")


def messages() -> set[str]:
    """Every literal text passed to `_()` in the package, and the texts that reach it through a name."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="_"), args=[ast.Constant(value=str(text)), *_rest]):
                    found.add(text)
    return found


def placeholders(message: str) -> list[str]:
    return sorted(name for _text, name, _spec, _conversion in string.Formatter().parse(message) if name is not None)


def test_every_message_has_its_chinese() -> None:
    missing = messages() - set(console.catalog())
    assert not missing, "\n".join(sorted(missing))


def test_translations_have_the_same_placeholders() -> None:
    for english, chinese in console.catalog().items():
        assert placeholders(english) == placeholders(chinese), english


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
