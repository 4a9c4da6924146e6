"""Findings, exit codes and languages."""

from __future__ import annotations

import json

import pytest

from fasttune import console
from fasttune.console import Finding

WARNING = Finding("slow-card", "warning", "machine", "the card is slow", fix="buy another")
ERROR = Finding("no-card", "error", "machine", "there is no [card]")


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


def test_the_language_may_change_within_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for language in ("en", "zh", "en"):
        monkeypatch.setenv("FASTTUNE_LANG", language)
        shown.append(console._(" and {count} more", count=2))
    assert shown == [" and 2 more", " 以及另外 2 个", " and 2 more"]


def test_messages_without_a_translation_or_values_are_shown_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    for language in ("en", "zh"):
        monkeypatch.setenv("FASTTUNE_LANG", language)
        assert console._("in {no} catalog") == "in {no} catalog"
        assert console._("a set {{…}} of {size}", size=2) == "a set {…} of 2"


@pytest.mark.parametrize(
    ("language", "n", "expected"),
    [
        ("en", 0, "linzhi has 0 runs:"),
        ("en", 1, "linzhi has 1 run:"),
        ("en", 2, "linzhi has 2 runs:"),
        ("zh", 1, "linzhi 已有 1 次训练："),
        ("zh", 2, "linzhi 已有 2 次训练："),
    ],
)
def test_ngettext(monkeypatch: pytest.MonkeyPatch, language: str, n: int, expected: str) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", language)
    assert console.ngettext("{name} has {n} run:", "{name} has {n} runs:", n, name="linzhi") == expected


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
