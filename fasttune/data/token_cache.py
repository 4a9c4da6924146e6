"""The token cache: of a data set in which one line was edited, one sample is rendered and one row is written.

    $XDG_CACHE_HOME/fasttune/tokens/examples.sqlite3      (~/.cache where the variable is not set)

    samples    name │ used │ example          64 bits of the sample's digest, day of last use, the row of its tokens
    examples   id │ content                   sha256 of digest and numbers │ number of spans, spans, tokens (uint32)

A sample's digest stands for everything that decides its tokens: its messages, what the template writes around them
today, and the key (the tokenizer as it was loaded, the chat template, what is supervised, the versions of the
libraries, the source of the files that render). The key is hashed into the digest and is neither a column nor a
database of its own: one database has one size limit and one order of use, and nothing ever asks for all rows of a key.
The two tables are apart so that marking samples as used does not write their tokens again, and `examples` grows at its
end, so that what is removed for its age frees whole pages.

The cache saves time and changes nothing. Whatever is wrong with the database (damaged, not ours, locked, read-only, on
a full disk) means that samples are rendered anew. SQLite has no checksums and finds only damage to its own structure:
the checksum in each row is what answers for the tokens, also where 64 bits of two digests are the same. What can't be
rendered is never kept, so every message is the same with and without the cache.

A rollback journal, not WAL: WAL shares memory between processes, which network file systems and the Windows drives of
WSL2 do not have (https://www.sqlite.org/wal.html). A kill at any moment leaves a journal that the next process rolls
back. `synchronous` is off: after a power failure the database may be damaged, and then it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from fasttune.console import Finding
from fasttune.data import chat_template, tokenize
from fasttune.data.chat_template import ChatTemplate
from fasttune.data.dataset import Sample
from fasttune.data.tokenize import Example, Learn, encode_all
from fasttune.machine import cache_folder, installed_version, without_cache_errors

LIMIT = 512 * 1024 * 1024  # bytes of the database, some 500,000 samples of 217 tokens
SHARE = 10  # the database takes at most this part of the disk's free space: checkpoints need it more
ROW = 64  # bytes that a sample takes beside its content
BUSY = 2.0  # seconds to wait for another process; 100,000 samples are written in about one
BATCH = 900  # names of one query; SQLite before 3.32 takes 999
CHECKSUM = hashlib.sha256().digest_size
LIBRARIES = ("tokenizers", "transformers", "jinja2")
OLD_FILES = ("*.tokens", "*.partial")  # of a format before this one

SETTINGS = (
    "PRAGMA journal_mode = DELETE",
    "PRAGMA synchronous = OFF",
    "PRAGMA cell_size_check = ON",  # damaged pages are found when they are read
)
LAYOUT = (  # of a database that is still empty
    "PRAGMA page_size = 4096",
    "PRAGMA auto_vacuum = FULL",  # the file shrinks when rows are removed
)
SCHEMA = (
    b"CREATE TABLE samples (name INTEGER PRIMARY KEY, used INTEGER, example INTEGER)",
    b"CREATE TABLE examples (id INTEGER PRIMARY KEY, content BLOB)",
)


class Cache:
    """What `tokenize_samples` may use as `encode`: renders only samples it has not seen; `rendered` counts those."""

    rendered = 0

    def __call__(self, samples: Sequence[Sample], chat: ChatTemplate, learn: Learn) -> list[Example | Finding]:
        """An example of any length, or the reason why not, for each sample."""
        names = digests(samples, chat, learn)
        known = read(dict.fromkeys(names))  # in the order in which they were written, most of the time
        missing = [sample for sample, name in zip(samples, names, strict=True) if name not in known]
        self.rendered += len(missing)
        rendered = iter(encode_all(missing, chat, learn))
        outcomes: list[Example | Finding] = []
        new: dict[bytes, bytes] = {}
        for sample, name in zip(samples, names, strict=True):
            outcome = unpacked(known[name][1], sample.id) if name in known else next(rendered)
            outcomes.append(outcome)
            if name not in known and isinstance(outcome, Example):
                new[name] = packed(name, outcome)
        write(new, {name: used for name, (used, _content) in known.items()})
        return outcomes


# What decides the tokens ---------------------------------------------------------------------------------------------


def key(chat: ChatTemplate, learn: Learn) -> bytes:
    """A digest of what decides the tokens of all samples."""
    said = [learn, sys.byteorder, chat.tokenizer.chat_template, *map(installed_version, LIBRARIES)]
    digest = hashlib.sha256(json.dumps(said).encode())
    digest.update(chat.backend.to_str().encode())
    for source in (tokenize.__file__, chat_template.__file__, __file__):
        digest.update(hashlib.sha256(Path(source).read_bytes()).digest())
    return digest.digest()


def digests(samples: Sequence[Sample], chat: ChatTemplate, learn: Learn) -> list[bytes]:
    """For each sample a digest of the key, of its messages, and of the template's text around them: it may hold a
    date."""
    common = hashlib.sha256(key(chat, learn))
    around: dict[tuple[str, ...], str] = {}
    found = []
    for sample in samples:
        roles = tuple(message.role for message in sample.messages)
        if roles not in around:
            around[roles] = repr(chat.skeleton(roles))
        said = json.dumps([around[roles], *((m.role, m.content, m.learn) for m in sample.messages)])
        digest = common.copy()
        digest.update(said.encode())
        found.append(digest.digest())
    return found


# Rows ----------------------------------------------------------------------------------------------------------------


def short(name: bytes) -> int:
    """The part of a sample's digest that its row is found by, as a signed 64-bit integer."""
    return int.from_bytes(name[:8], "big", signed=True)


def packed(name: bytes, example: Example) -> bytes:
    """The content of an example's row."""
    spans = [edge for span in example.supervised for edge in span]
    numbers = array("I", [len(example.supervised), *spans, *example.tokens]).tobytes()
    return hashlib.sha256(name + numbers).digest() + numbers


def is_whole(name: bytes, content: object) -> bool:
    """Whether the content of a row is what was written for the sample of this digest."""
    if not isinstance(content, bytes):
        return False
    return hashlib.sha256(name + content[CHECKSUM:]).digest() == content[:CHECKSUM]


def unpacked(content: bytes, sample_id: str) -> Example:
    """The example in a row's content, which is whole."""
    spans, *rest = memoryview(content)[CHECKSUM:].cast("I").tolist()
    edges = rest[: 2 * spans]
    return Example(sample_id, tuple(rest[2 * spans :]), tuple(zip(edges[::2], edges[1::2], strict=True)))


def read(names: Collection[bytes]) -> dict[bytes, tuple[int, bytes]]:
    """The day of last use and the content of each of these samples that is in the database, by its digest."""
    found: dict[bytes, tuple[int, bytes]] = {}
    with without_cache_errors(location), database(create=False) as connection:
        for batch in batches(names):
            by_short = {short(name): name for name in batch}
            query = (
                "SELECT name, used, content FROM samples JOIN examples ON id = example "
                f"WHERE name IN ({', '.join('?' * len(by_short))})"
            )
            for number, used, content in connection.execute(query, list(by_short)):
                name = by_short[number]
                if is_whole(name, content):
                    found[name] = (used if isinstance(used, int) else 0, content)
    return found


def write(new: Mapping[bytes, bytes], known: Mapping[bytes, int]) -> None:
    """Add the contents of new samples and mark the `known` ones, given with their day of last use, as used today.

    One transaction. Where there is no room for all, rows that were not used for longest are removed, none of those of
    now; then the first of the new ones are added.
    """
    today = int(time.time()) // 86400
    marked = sorted((today, short(name)) for name, used in known.items() if used != today)
    if not new and not marked:
        return
    with without_cache_errors(location), database(create=bool(new)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if not schema(connection):
            for statement in SCHEMA:
                connection.execute(statement.decode())
        connection.executemany("UPDATE samples SET used = ? WHERE name = ?", marked)
        remove(connection, [short(name) for name in new])  # damaged, or written by another process meanwhile
        limit, spare = size_limit(), {short(name) for name in known}
        make_room(connection, limit - sum(map(cost, new.values())), spare)
        add(connection, list(first(new.items(), limit - size(connection))), today)
        make_room(connection, limit, spare)  # pages are partly empty
        make_room(connection, limit, spare=())  # the disk may have become fuller
        connection.execute("COMMIT")


def add(connection: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]], today: int) -> None:
    """Add these digests and contents at the end, in their order."""
    start = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM examples").fetchone()[0]
    contents = ((id, content) for id, (_name, content) in enumerate(rows, start))
    connection.executemany("INSERT INTO examples VALUES (?, ?)", contents)
    samples = sorted((short(name), today, id) for id, (name, _content) in enumerate(rows, start))
    connection.executemany("INSERT OR REPLACE INTO samples VALUES (?, ?, ?)", samples)


def batches(items: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The items in lists that one query takes."""
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


# Size ----------------------------------------------------------------------------------------------------------------


def cost(content: bytes) -> int:
    """Bytes of the database that a sample takes, where its pages are full."""
    return len(content) + ROW


def size_limit() -> int:
    """Bytes that the database may have: `LIMIT`, less on a disk that is nearly full."""
    path = location()
    return min(LIMIT, (shutil.disk_usage(path.parent).free + path.stat().st_size) // SHARE)


def size(connection: sqlite3.Connection) -> int:
    """Bytes of all pages that are in use."""
    pages, free, bytes_ = (connection.execute(f"PRAGMA {name}").fetchone()[0]
                           for name in ("page_count", "freelist_count", "page_size"))  # fmt: skip
    return int((pages - free) * bytes_)


def first(rows: Iterable[tuple[bytes, bytes]], room: int) -> Iterator[tuple[bytes, bytes]]:
    """The first rows that take at most `room` bytes together."""
    for name, content in rows:
        room -= cost(content)
        if room < 0:
            return
        yield name, content


def make_room(connection: sqlite3.Connection, limit: int, spare: Collection[int]) -> None:
    """Remove the samples that were not used for longest, but none in `spare`, until the rest take `limit` bytes."""
    excess = size(connection) - limit
    if excess <= 0:
        return
    unused: list[int] = []
    for name, example in connection.execute("SELECT name, example FROM samples ORDER BY used, example"):
        if excess <= 0:
            break
        if name not in spare:
            unused.append(name)
            length = (
                "SELECT coalesce(max(length(content)), 0) FROM examples WHERE id = ?"  # 0 where damage took the row
            )
            excess -= ROW + connection.execute(length, (example,)).fetchone()[0]
    remove(connection, unused)


def remove(connection: sqlite3.Connection, names: Iterable[int]) -> None:
    """Remove the rows of these samples, where there are any."""
    numbers = [(name,) for name in names]
    connection.executemany("DELETE FROM examples WHERE id = (SELECT example FROM samples WHERE name = ?)", numbers)
    connection.executemany("DELETE FROM samples WHERE name = ?", numbers)


# The database --------------------------------------------------------------------------------------------------------


def location() -> Path:
    """Where the database lies; FileNotFoundError where there is no place for it."""
    return cache_folder() / "tokens" / "examples.sqlite3"


@contextlib.contextmanager
def database(*, create: bool) -> Iterator[sqlite3.Connection]:
    """The open database, in a transaction only where the block begins one.

    Raises sqlite3.OperationalError or OSError where it can't be used now, another sqlite3.Error where it is no use.
    """
    path = location()
    if create:
        prepare(path)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY, isolation_level=None)
    with contextlib.closing(connection):
        connection.text_factory = bytes  # damaged text is no UTF-8
        for setting in SETTINGS:
            connection.execute(setting)
        found = schema(connection)
        if found not in (set(), set(SCHEMA)):
            raise sqlite3.DatabaseError("not a token cache")
        for setting in LAYOUT if not found else ():
            connection.execute(setting)
        yield connection


def prepare(path: Path) -> None:
    """Make the database's folder and an empty file that other users can't read; remove what older versions left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for pattern in OLD_FILES:
        for old in path.parent.glob(pattern):
            old.unlink(missing_ok=True)
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # made by another process meanwhile
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


def schema(connection: sqlite3.Connection) -> set[object]:
    """The statements that made what the database holds."""
    return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
