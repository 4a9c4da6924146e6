"""`fasttune check --fix OUT`: a mended copy of a data file, and what was done to it, line by line.

Only what can be mended safely: copies of samples, samples that are held out too, damaged encodings that can be undone,
control and invisible characters, white space around texts. The original is never touched; all else stays as it is. The
copy is JSONL in UTF-8; a line of a JSONL file that needs nothing is taken over as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fasttune import files
from fasttune.console import FasttuneError, Finding, _, usage_error
from fasttune.data.dataset import Message, Sample, conversation_key
from fasttune.data.formats import conversation
from fasttune.data.lint_text import mended
from fasttune.data.messages import Notes
from fasttune.data.reader import expanded, read_records
from fasttune.decoding import decode_text

TEXTS = frozenset(
    {"content", "value", "text", "system", "instruction", "input", "output", "prompt", "completion", "history"}
)


def mend(path: str, out: Path, held_out: Collection[Sample]) -> list[Finding]:
    """Write the mended copy of a data file to `out`; returns what was done, a note for each change.

    Raises UsageError where `out` exists, FasttuneError where the file can't be read as a whole.
    """
    if out.exists():
        fix = _("name a file that does not exist yet; nothing is overwritten")
        raise usage_error("file-exists", _("the file already exists"), where=str(out), fix=fix)
    records, findings = read_records(path)
    if problems := [finding for finding in findings if finding.level == "error"]:
        raise FasttuneError(*problems)
    originals = lines_of(path)
    leaked = {conversation_key(sample): sample.id for sample in held_out}
    first: dict[tuple[Message, ...], str] = {}
    kept, done = [], []
    for record in records:
        where = f"{path}:{record.place}"
        value, changes = mended_value(record.value)
        if reason := reason_to_remove(where, value, first, leaked):
            done.append(note("removed", where, reason))
            continue
        done += [note("mended", where, change) for change in changes]
        kept.append(originals.get(record.line, as_line(value)) if not changes else as_line(value))
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, "".join(line + "\n" for line in kept))
    return done


def reason_to_remove(where: str, value: Any, first: dict[tuple[Message, ...], str], leaked: dict[str, str]) -> str:
    """Why a record is not taken over; "" for none, and then it is remembered in `first`."""
    _format, messages = conversation(value, Notes(where=where))
    if messages is None:
        return ""
    if other := leaked.get(conversation_key(Sample(where, messages))):
        return _("removed: it is {other}, which is held out", other=other)
    other = first.setdefault(messages, where)
    return _("removed: it repeats {other}", other=other) if other != where else ""


def mended_value(value: Any, key: str = "") -> tuple[Any, list[str]]:
    """A JSON value with the texts in it mended, and what was done to them."""
    if isinstance(value, str):
        return mended(value) if key in TEXTS else (value, [])
    done: list[str] = []
    if isinstance(value, dict):
        pairs = {name: mended_value(inner, name) for name, inner in value.items()}
        done = [change for _inner, changes in pairs.values() for change in changes]
        return {name: inner for name, (inner, _changes) in pairs.items()}, done
    if isinstance(value, list):
        found = [mended_value(inner, key) for inner in value]
        done = [change for _inner, changes in found for change in changes]
        return [inner for inner, _changes in found], done
    return value, done


def lines_of(path: str) -> dict[int, str]:
    """{line: its text} of a JSONL file; empty for an array, whose elements are written anew."""
    text, _encoding = decode_text(expanded(path).read_bytes())
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return {} if text.lstrip().startswith("[") else {n: line.strip() for n, line in enumerate(text.split("\n"), 1)}


def as_line(value: Any) -> str:
    """A record as a line of JSONL; half a surrogate pair, which UTF-8 does not have, stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    return text if all(not "\ud800" <= one <= "\udfff" for one in text) else json.dumps(value)


def note(code: str, where: str, what: str) -> Finding:
    """What was done to one record."""
    return Finding(code, "info", where, what)
