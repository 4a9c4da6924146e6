"""Kept answers: found again by their name, and never the reason for a failure or a wrong answer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fasttune.training import answer_store

ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fasttune" / "answers" / "answers.sqlite3"


def test_what_is_written_is_found_again(cache: Path) -> None:
    assert answer_store.read([ONE]) == {}
    answer_store.write({ONE: "小灯。\n", TWO: ""})
    assert answer_store.read([TWO, ONE, b"3" * 32]) == {ONE: "小灯。\n", TWO: ""}
    assert cache.parent.stat().st_mode & 0o077 == 0


def test_a_changed_answer_is_not_used(cache: Path) -> None:
    answer_store.write({ONE: "by this model", TWO: "kept"})
    with sqlite3.connect(cache) as connection:
        connection.execute("UPDATE answers SET content = content || 'x' WHERE name = ?", (ONE,))
    assert answer_store.read([ONE, TWO]) == {TWO: "kept"}


def test_a_damaged_database_is_made_anew(cache: Path) -> None:
    answer_store.write({ONE: "first"})
    cache.write_bytes(b"no database at all" * 300)
    assert answer_store.read([ONE]) == {}
    answer_store.write({ONE: "second"})
    assert answer_store.read([ONE]) == {ONE: "second"}


@pytest.mark.parametrize("offset", [18, 19, 47, 100])
def test_a_database_with_a_damaged_header_is_made_anew(cache: Path, offset: int) -> None:
    """One field of the header is damaged: SQLite calls that an operational error, as it does a full disk."""
    answer_store.write({ONE: "first"})
    content = bytearray(cache.read_bytes())
    content[offset : offset + 1] = b"\xff"
    cache.write_bytes(content)
    answer_store.read([ONE])
    answer_store.write({ONE: "second"})
    answer_store.write({ONE: "third"})
    assert answer_store.read([ONE]) == {ONE: "third"}


def test_where_nothing_can_be_written_nothing_is_kept(cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file in its place")
    answer_store.write({ONE: "first"})
    assert answer_store.read([ONE]) == {}


def test_the_oldest_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_store, "MOST_ROWS", 3)
    for at in range(5):
        monkeypatch.setattr("fasttune.training.answer_store.time.time", lambda at=at: 1000 + at)
        answer_store.write({bytes([at]) * 32: str(at)})
    assert sorted(answer_store.read([bytes([at]) * 32 for at in range(5)]).values()) == ["2", "3", "4"]
