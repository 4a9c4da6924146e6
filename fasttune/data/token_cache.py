"""Tokens kept between runs: of a data set in which one line was edited, one sample is rendered.

    $XDG_CACHE_HOME/fasttune/tokens/KEY.tokens      (~/.cache where the variable is not set)

    sha256 of the rest │ sample's digest, number of spans, number of tokens, spans, tokens │ the next sample …

KEY stands for what decides the tokens of all samples: the tokenizer as it was loaded, the chat template, what is
learned, the versions of the libraries, and the source of the files that render. A sample's digest stands for its
messages and for what the template writes around them today.

The cache saves time and changes nothing. A file that is not what was written (cut off, damaged) is rendered anew, and
one that can't be written is done without; a file is written under a name of its own and renamed, so that runs beside
each other and a kill at any moment leave whole ones. What can't be rendered is never kept, so every message is the same
with and without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from fasttune.console import Finding
from fasttune.data import chat_template, tokenize
from fasttune.data.chat_template import ChatTemplate
from fasttune.data.dataset import Sample
from fasttune.data.tokenize import Example, Learn, encode_all

LIMIT = 256 * 1024 * 1024  # bytes of a file, some 200,000 samples of 300 tokens; the folder holds twice as much
SHARE = 10  # a file takes at most this part of the disk's free room: checkpoints need it more
DIGEST = hashlib.sha256().digest_size
HEADER = DIGEST + 8  # bytes of a record before its spans
LIBRARIES = ("tokenizers", "transformers", "jinja2")

Record = bytes | memoryview


class Cache:
    """What `tokenize_samples` may use as `encode`: renders only samples it has not seen; `rendered` counts those."""

    rendered = 0

    def __call__(self, samples: Sequence[Sample], chat: ChatTemplate, learn: Learn) -> list[Example | Finding]:
        """An example of any length, or the reason why not, for each sample."""
        path = folder() / f"{key(chat, learn)}.tokens"
        known, names = read(path), digests(samples, chat)
        missing = [sample for sample, name in zip(samples, names, strict=True) if name not in known]
        self.rendered += len(missing)
        rendered = iter(encode_all(missing, chat, learn))
        outcomes = [
            unpacked(known[name], sample.id) if name in known else next(rendered)
            for sample, name in zip(samples, names, strict=True)
        ]
        keep(path, known, dict(zip(names, outcomes, strict=True)))
        return outcomes


def keep(path: Path, known: Mapping[bytes, Record], outcomes: Mapping[bytes, Example | Finding]) -> None:
    """Write what was rendered anew beside what was known; those of now first, which stay where not all have room."""
    new = {name: packed(name, one) for name, one in outcomes.items() if name not in known and isinstance(one, Example)}
    if new:
        used = {name: known[name] for name in outcomes if name in known}
        write(path, (used | new | dict(known)).values())


def folder() -> Path:
    """Where the files lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fasttune" / "tokens"


# What decides the tokens ---------------------------------------------------------------------------------------------


def key(chat: ChatTemplate, learn: Learn) -> str:
    """A digest of what decides the tokens of all samples."""
    said = [learn, sys.byteorder, chat.tokenizer.chat_template, *map(metadata.version, LIBRARIES)]
    digest = hashlib.sha256(json.dumps(said).encode())
    digest.update(chat.backend.to_str().encode())
    for source in (tokenize.__file__, chat_template.__file__, __file__):
        digest.update(hashlib.sha256(Path(source).read_bytes()).digest())
    return digest.hexdigest()[:32]


def digests(samples: Sequence[Sample], chat: ChatTemplate) -> list[bytes]:
    """For each sample a digest of its messages, and of the template's text around them: it may hold a date."""
    around: dict[tuple[str, ...], str] = {}
    found = []
    for sample in samples:
        roles = tuple(message.role for message in sample.messages)
        if roles not in around:
            around[roles] = repr(chat.skeleton(roles))
        said = json.dumps([around[roles], *((message.role, message.content) for message in sample.messages)])
        found.append(hashlib.sha256(said.encode()).digest())
    return found


# Records and files ---------------------------------------------------------------------------------------------------


def packed(name: bytes, example: Example) -> bytes:
    """An example as a record of a file."""
    spans = [edge for span in example.supervised for edge in span]
    return name + array("I", [len(example.supervised), len(example.tokens), *spans, *example.tokens]).tobytes()


def unpacked(record: Record, sample_id: str) -> Example:
    """The example in a record."""
    spans, _tokens, *rest = memoryview(record)[DIGEST:].cast("I").tolist()
    edges = rest[: 2 * spans]
    return Example(sample_id, tuple(rest[2 * spans :]), tuple(zip(edges[::2], edges[1::2], strict=True)))


def read(path: Path) -> dict[bytes, Record]:
    """The records of a file by their sample's digest; none where it is missing or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    body = memoryview(content)[DIGEST:]
    if hashlib.sha256(body).digest() != content[:DIGEST]:
        return {}
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used: others go first
    found: dict[bytes, Record] = {}
    start = 0
    while start < len(body):
        spans, tokens = body[start + DIGEST : start + HEADER].cast("I")
        end = start + HEADER + 4 * (2 * spans + tokens)
        found[bytes(body[start : start + DIGEST])] = body[start:end]
        start = end
    return found


def write(path: Path, records: Iterable[Record]) -> None:
    """A file that appears whole, its first records as far as there is room; none at all where that can't be done."""
    partial = None
    with contextlib.suppress(OSError):  # no room, no right, no such disk: the next run renders again
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            body = b"".join(first(records, min(LIMIT, shutil.disk_usage(path.parent).free // SHARE)))
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as partial:
                partial.write(hashlib.sha256(body).digest())
                partial.write(body)
            os.replace(partial.name, path)
            prune(path.parent)
        finally:
            if partial is not None:
                Path(partial.name).unlink(missing_ok=True)


def first(records: Iterable[Record], limit: int) -> Iterable[Record]:
    """The first records that have at most `limit` bytes together."""
    size = 0
    for record in records:
        size += len(record)
        if size > limit:
            return
        yield record


def prune(where: Path) -> None:
    """Remove the files that were not used for longest, halves of killed runs among them, until the rest have room."""
    size = 0
    for path in sorted(where.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True):
        size += path.stat().st_size
        if size > 2 * LIMIT:
            path.unlink()
