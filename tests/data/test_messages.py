"""The checks on a conversation's messages: their contents, their characters and their order."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from data_files import pair, refusal, turns, write

from fasttune.data.dataset import read_samples
from fasttune.data.messages import Message, Notes, Turn, check_characters, checked, heap_of_marks, json_type, listed


def test_contents_become_nfc_and_ignored_keys_are_named_once(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("cafe\u0301") | {"id": 1}, pair("b") | {"id": 2, "source": "x"})
    reading = read_samples(path)
    assert turns(reading.samples[0])[0] == ("user", "caf\u00e9")
    assert [(f.code, f.level) for f in reading.findings] == [("ignored-keys", "info"), ("normalised", "info")]
    assert "id (2), source (1)" in reading.findings[0].what


def test_contents_are_not_trimmed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("  a\n", "\n\tb \r\n"))
    assert turns(read_samples(path).samples[0]) == [("user", "  a\n"), ("assistant", "\n\tb \r\n")]


def test_replacement_character_warns(tmp_path: Path) -> None:
    (finding,) = read_samples(write(tmp_path / "t.jsonl", pair("好\ufffd"))).findings
    assert (finding.code, finding.level) == ("replacement-character", "warning")


def turn(role: str | None, content: Any = "text") -> Turn:
    return Turn(str(role), role, content)


@pytest.mark.parametrize(
    ("roles", "codes"),
    [
        ("user assistant", []),
        ("system user assistant user assistant", []),
        ("system", ["nothing-to-learn"]),
        ("assistant user assistant", []),
        ("system assistant user assistant", []),
        ("system assistant", []),
        ("assistant", ["starts-with-assistant"]),
        ("user system assistant", ["system-not-first"]),
        ("user user assistant", ["same-role-twice"]),
        ("user", ["ends-with-user"]),
        ("assistant user", ["ends-with-user"]),
    ],
)
def test_the_order_of_roles(roles: str, codes: list[str]) -> None:
    notes = Notes()
    messages = checked([turn(role) for role in roles.split()], notes)
    assert [finding.code for finding in notes.findings] == codes
    assert (messages is None) is bool(codes)


@pytest.mark.parametrize(
    ("content", "expected", "codes"),
    [
        ("好", "好", []),
        ("cafe\u0301", "caf\u00e9", []),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab", []),
        ([{"type": "image_url"}], None, ["content-parts"]),
        ([], None, ["content-not-text"]),
        (3, None, ["content-not-text"]),
        (None, None, ["content-not-text"]),
        ("", None, ["empty-content"]),
        (" \u200b\n", None, ["empty-content"]),
        ("a\x00", None, ["control-character"]),
        ("\ud83d", None, ["empty-content"]),
        ("a\ud83d", None, ["lone-surrogate"]),
        ("a\ufffd", "a\ufffd", ["replacement-character"]),
    ],
)
def test_the_content_of_a_message(content: Any, expected: str | None, codes: list[str]) -> None:
    notes = Notes()
    messages = checked([turn("user"), turn("assistant", content)], notes)
    assert [finding.code for finding in notes.findings] == codes
    assert messages == (None if expected is None else (Message("user", "text"), Message("assistant", expected)))


def test_a_message_of_an_unknown_role_ends_the_sample_without_a_finding_about_the_order() -> None:
    notes = Notes()
    assert checked([turn(None), turn("user")], notes) is None and notes.findings == []


def test_line_breaks_and_tabs_are_characters_of_text() -> None:
    notes = Notes()
    check_characters("message 1", "a\tb\r\nc\u2028", notes)
    assert notes.findings == []


def test_long_lists_are_cut_with_their_number() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(12)], "; ") == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9 and 2 more"


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "null"), (True, "true or false"), ("a", "text"), (1.5, "a number"), ([], "a list"), ({}, "an object")],
)
def test_json_types_in_words(value: Any, words: str) -> None:
    assert json_type(value) == words


def test_a_heap_of_combining_marks_is_refused_before_it_is_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFC sorts the marks of a letter, which takes quadratic time: 400,000 of them over a minute."""
    normalised, normalize = [], unicodedata.normalize

    def noted(form: Literal["NFC"], text: str) -> str:
        normalised.append(text)
        return normalize(form, text[:100])

    monkeypatch.setattr(unicodedata, "normalize", noted)
    heap = "a" + "\u0301\u0323" * 200_000
    (finding,) = read_samples(write(tmp_path / "t.jsonl", pair(heap))).findings
    assert (finding.code, finding.level) == ("combining-marks", "error")
    assert finding.what == '"prompt" has more than 30 combining marks in a row at character 2'
    (finding,) = refusal(write(tmp_path / "u.jsonl", pair("a"), pair("b")), system=heap)
    assert (finding.code, finding.where) == ("combining-marks", "data.system")
    assert heap not in normalised


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("a" + "\u0301" * 30 + "b", None),
        ("好" + "\u0323" * 31, 1),
        ("x" * 50 + "—" * 40 + "\u0301" * 31, 90),
        ("—" * 1000 + "♪" * 1000, None),
        ("e\u0301" * 1000, None),
    ],
)
def test_marks_in_a_row_are_counted(text: str, at: int | None) -> None:
    assert heap_of_marks(text) == at
