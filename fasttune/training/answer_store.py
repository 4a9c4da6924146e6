"""Answers that were given before, so that no model is asked the same thing twice.

    $XDG_CACHE_HOME/fasttune/answers/answers.sqlite3      (~/.cache where the variable is not set)

    answers    name │ used │ content       the sha256 of all that decides an answer, the time of last use, the answer

A greedy answer, and one by a fixed seed, follows from the model, the prompt and the sampling: their digest is its name.
As with the token cache, whatever is wrong with the database means that models are asked again; each content begins
with a checksum, because SQLite has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fasttune.machine import cache_folder, without_cache_errors

MOST_ROWS = 100_000  # some 30 MB
BUSY = 2.0  # seconds to wait for another process
CHECKSUM = hashlib.sha256().digest_size
TABLE = "CREATE TABLE IF NOT EXISTS answers (name BLOB PRIMARY KEY, used INTEGER, content BLOB) WITHOUT ROWID"


def read(names: Sequence[bytes]) -> dict[bytes, str]:
    """The answers of these names that are kept, and whole; they count as used now."""
    found: dict[bytes, str] = {}
    with without_cache_errors(location), database() as connection:
        for name in dict.fromkeys(names):
            row = connection.execute("SELECT content FROM answers WHERE name = ?", (name,)).fetchone()
            if row and is_whole(name, row[0]):
                found[name] = row[0][CHECKSUM:].decode("utf-8")
        marked = [(int(time.time()), name) for name in found]
        connection.executemany("UPDATE answers SET used = ? WHERE name = ?", marked)
    return found


def write(answers: Mapping[bytes, str]) -> None:
    """Keep answers by their names; beyond MOST_ROWS those that were not used for longest are removed."""
    now = int(time.time())
    rows = [(name, now, checksum(name, text.encode()) + text.encode()) for name, text in answers.items()]
    with without_cache_errors(location), database() as connection:
        connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
        (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
        oldest = "DELETE FROM answers WHERE name IN (SELECT name FROM answers ORDER BY used LIMIT ?)"
        connection.execute(oldest, (max(0, count - MOST_ROWS),))


def checksum(name: bytes, content: bytes) -> bytes:
    """What stands before a content."""
    return hashlib.sha256(name + content).digest()


def is_whole(name: bytes, content: object) -> bool:
    """Whether a content is what was written under this name."""
    return isinstance(content, bytes) and checksum(name, content[CHECKSUM:]) == content[:CHECKSUM]


def location() -> Path:
    """Where the database lies; FileNotFoundError where there is no place for it."""
    return cache_folder() / "answers" / "answers.sqlite3"


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """The database in a transaction, made where there is none. Raises sqlite3.Error or OSError where that fails."""
    path = location()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # what people ask is nobody else's business
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY)) as connection, connection:
        connection.text_factory = bytes  # damaged text is no UTF-8
        connection.execute("PRAGMA synchronous = OFF")  # a database that a power failure damages is made anew
        connection.execute(TABLE)
        yield connection
