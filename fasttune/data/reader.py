"""From a file to its JSON records, each with the line it starts on: bytes, encoding and syntax, no meaning.

    bytes ── decode_text ──► text ── _json_lines or _json_array ──► Record(line, value)…

Accepted: JSONL (one object a line, blank lines fine) and one JSON array of objects, told apart by the first character
and not by the file's name. UTF-8 with or without BOM, any line ends, and GB18030, which Windows editors in China write.
Everything else is a finding that says what the file is and how to turn it into one of these. After a bad line the next
one is read, so that one call names every problem. Of what the records mean, formats.py knows.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.console import N_, Finding, _
from fasttune.data.json_errors import extra_text, is_cut_off, spread_over_lines, syntax_error
from fasttune.decoding import UndecodableText, decode_text
from fasttune.files import read_file

BINARY_FORMATS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"PK\x03\x04": "Excel or ZIP",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF": "PDF",
    b"SQLite format 3": "SQLite",
}
SPACE = re.compile(r"\s*")
OBJECT = re.compile(r"^[^\S\n]*\{", re.MULTILINE)  # its spaces end with the line: blank lines are looked at once
UTF8_HINT = N_("save it as UTF-8 in your editor (VS Code: click the encoding in the status bar, 'Save with Encoding')")


@dataclass(frozen=True)
class Record:
    """One JSON value of a file: a line of JSONL, or an element of an array.

    `line` counts from 1 and is where the value starts; `place` is the line too, or "line#n" for the n-th element of an
    array that shares its line with another one, and unique in the file. `last` is the line where the value ends.
    """

    line: int
    place: str
    value: Any
    last: int


def read_records(path: str) -> tuple[list[Record], list[Finding]]:
    """All records of a JSONL or JSON array file, and a finding for each fault of its encoding and syntax.

    Raises nothing: a file that can't be read is a finding too.
    """
    raw, findings = _read_bytes(path)
    text, decoding = _decode(path, raw) if raw is not None else (None, [])
    findings += decoding
    if text is None:
        return [], findings
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = text.lstrip()[:1]
    if not start:
        return [], [*findings, Finding("no-samples", "error", path, _("the file is empty"))]
    if start == "[":
        records, syntax = _json_array(path, text)
    elif OBJECT.search(text):
        records, syntax = _json_lines(path, text)
    else:
        records, syntax = [], [_not_json(path, text)]
    return records, findings + syntax


# --- bytes -----------------------------------------------------------------------------------------------------------


def _read_bytes(path: str) -> tuple[bytes | None, list[Finding]]:
    """A file's bytes, or None and the finding that says why they can't be read."""
    file = expanded(path)
    if file.is_dir():
        inside = sorted(entry.name for entry in file.iterdir() if entry.suffix in (".jsonl", ".json"))
        fix = _("name the file: {files}", files=", ".join(inside)) if inside else _("name a JSONL or JSON file")
        return None, [Finding("is-a-directory", "error", path, _("this is a directory, not a file"), fix=fix)]
    try:
        return read_file(file), []
    except FileNotFoundError:
        return None, [_missing(path)]
    except OSError as error:
        what = _("the file can't be read: {reason}", reason=error.strerror or str(error))
        return None, [Finding("unreadable-file", "error", path, what)]


def expanded(path: str) -> Path:
    """The path with `~` as the user's home folder, where there is one."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def _missing(path: str) -> Finding:
    """The finding for a path where no file is, with what it looks like or the name that comes closest."""
    return Finding("file-not-found", "error", path, _("there is no such file"), fix=_looks_like(path))


def _looks_like(path: str) -> str:
    """What to write for a path where no file is."""
    drive = re.match(r"([A-Za-z]):[\\/]+", path)
    if drive:
        rest = path[drive.end() :].replace("\\", "/")
        return _("under WSL2 this is {path}", path=f"/mnt/{drive[1].lower()}/{rest}")
    network = re.match(r"[\\/]{2}wsl(?:\$|\.localhost)[\\/]+[^\\/]+", path)
    if network:
        return _("in this Linux it is {path}", path=path[network.end() :].replace("\\", "/"))
    if expanded(path).is_symlink():
        return _("it is a link to a file that is not there")
    folder = expanded(path).parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    name = Path(path).name
    same = [one for one in names if one.lower() == name.lower()]
    if not same and re.search(r"[*?\[]", name):
        return _('a pattern is not expanded: list the files, ["a.jsonl", "b.jsonl"]')
    if not same and "$" in path:
        return _("variables are not expanded: write the whole path; ~ is the home folder")
    near = same or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return _("did you mean {path}?", path=(folder / near[0]).as_posix())
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and "." not in name:
        return _("for a data set of a hub: download its file and name that file")
    return _("relative paths are taken from the current directory")


def _decode(path: str, raw: bytes) -> tuple[str | None, list[Finding]]:
    """The text of a file's bytes, None where it has none; and what is worth saying about its encoding."""
    for magic, kind in BINARY_FORMATS.items():
        if raw.startswith(magic):
            return None, [_binary(path, kind)]
    try:
        text, encoding = decode_text(raw)
    except UndecodableText as failure:
        if failure.is_wide:
            what = _("the file is UTF-16 or UTF-32 (Notepad calls it 'Unicode'), not UTF-8")
            return None, [Finding("utf-16", "error", path, what, fix=_(UTF8_HINT))]
        what = _("byte 0x{byte:02X} is neither UTF-8 nor GB18030 Chinese", byte=failure.byte)
        why = _("guessing the encoding would train on garbled text")
        return None, [Finding("unknown-encoding", "error", f"{path}:{failure.line}", what, why=why, fix=_(UTF8_HINT))]
    return text, [_read_as_gb18030(path, text)] if encoding == "gb18030" else []


def _read_as_gb18030(path: str, text: str) -> Finding:
    """The note about a file that was not UTF-8, with its first Chinese words, which show whether that is right."""
    chinese = "".join(re.findall(r"[\u4e00-\u9fff，。？！]+", text))[:20]
    what = _("read as GB18030 (GBK), not UTF-8; it begins '{text}'", text=chinese)
    why = _("if that is not what the file says, it has a third encoding, and garbled text would be trained on")
    return Finding("gb18030", "info", path, what, why=why, fix=_(UTF8_HINT))


def _binary(path: str, kind: str) -> Finding:
    """The finding for a file in a binary format, with the way to JSONL."""
    fix = _("unpack it and name the JSONL or JSON file inside")
    if kind in ("Parquet", "Arrow"):
        fix = _(
            "convert it: python -c \"import datasets; datasets.Dataset.from_parquet('{path}')"
            ".to_json('train.jsonl', force_ascii=False)\"",
            path=path,
        )
    elif kind.startswith("Excel"):
        fix = _("save the sheet as 'CSV UTF-8', with the columns prompt and completion, and convert that to JSONL")
    return Finding("not-json", "error", path, _("the file is {kind}, not JSONL or JSON", kind=kind), fix=fix)


def _not_json(path: str, text: str) -> Finding:
    """The finding for text that holds no JSON object: CSV, a Python list, plain text."""
    first = text.strip().split("\n")[0]
    if Path(path).suffix.lower() in (".csv", ".tsv") or re.fullmatch(r"[\w ]+([,\t;][\w ]+)+", first):
        fix = _(
            'name the columns prompt and completion and convert it: python -c "import datasets; '
            "datasets.Dataset.from_csv('{path}').to_json('train.jsonl', force_ascii=False)\"",
            path=path,
        )
        return Finding("not-json", "error", path, _("the file is a CSV table, not JSONL or JSON"), fix=fix)
    what = _("the file is plain text, not JSONL or JSON; it begins '{text}'", text=first[:30])
    why = _("fasttune trains on conversations: it has to know who says what")
    fix = _('write one conversation a line: {"prompt": "…", "completion": "…"}')
    return Finding("not-json", "error", path, what, why=why, fix=fix)


# --- JSON ------------------------------------------------------------------------------------------------------------


class _StrictDecoder:
    """A JSON decoder that reports duplicate keys and NaN, and takes numbers of any length."""

    def __init__(self) -> None:
        self.flaws: list[
            tuple[str, str]
        ] = []  # of the value being read: ("duplicate-key", key), ("json-nan", constant)
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_int=self._integer
        )

    def value_at(self, text: str, at: int, where: str) -> tuple[Any, int, list[Finding]]:
        """The JSON value at index `at`, the index after it, and findings about its inside. Raises JSONDecodeError."""
        self.flaws.clear()
        try:
            value, end = self.decoder.raw_decode(text, at)
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, at) from None
        return value, end, [self._finding(code, name, where) for code, name in self.flaws]

    def _object(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object from its pairs; notes keys that occur twice."""
        record = dict(items)
        if len(record) < len(items):
            counts = Counter(name for name, _value in items)
            self.flaws.extend(("duplicate-key", name) for name, count in counts.items() if count > 1)
        return record

    def _constant(self, name: str) -> None:
        """None in place of NaN and the infinities, which JSON does not have."""
        self.flaws.append(("json-nan", name))

    @staticmethod
    def _integer(digits: str) -> int | float:
        """A number from its digits; Python limits how many an int may be parsed from."""
        return int(digits) if len(digits) < 100 else float(digits)

    @staticmethod
    def _finding(code: str, name: str, where: str) -> Finding:
        """The finding for a flaw that was noted."""
        if code == "duplicate-key":
            what = _('the key "{name}" occurs twice in one object', name=name)
            why = _("JSON would silently keep the last one and lose the other")
            return Finding(code, "error", where, what, why, _("keep one of them"))
        what = _("{name} is not JSON", name=name)
        return Finding(code, "error", where, what, fix=_('write null, or text in "quotes"'))


def _json_lines(path: str, text: str) -> tuple[list[Record], list[Finding]]:
    """Records of JSONL; objects spread over lines are read too (to check them) but refused in one finding."""
    decoder = _StrictDecoder()
    records: list[Record] = []
    findings: list[Finding] = []
    spread: list[tuple[int, int]] = []
    lines = text.split("\n")
    last = 0
    while last < len(lines):
        first = last = last + 1
        chunk = lines[first - 1].strip()
        if not chunk:
            continue
        where = f"{path}:{first}"
        try:
            value, end, inside = decoder.value_at(chunk, 0, where)
        except json.JSONDecodeError as error:
            last = _last_line(lines, first) if is_cut_off(error) else first
            chunk = "\n".join(lines[first - 1 : last]).strip()
            try:
                value, end, inside = decoder.value_at(chunk, 0, where)
            except json.JSONDecodeError:
                findings.append(syntax_error(path, first, last, error))
                continue
            spread.append((first, last))
        records.append(Record(first, str(first), value, last))
        findings += inside
        if chunk[end:].strip():
            findings.append(extra_text(where, chunk[end:].strip()))
    if spread:
        findings.append(spread_over_lines(path, spread, len(records)))
    return records, findings


def _last_line(lines: list[str], number: int) -> int:
    """The last line of the object that starts on line `number` (from 1) and is cut off there."""
    last = number
    while last < len(lines) and not lines[last].startswith("{"):
        last += 1
    while last > number and not lines[last - 1].strip():
        last -= 1
    return last


def _json_array(path: str, text: str) -> tuple[list[Record], list[Finding]]:
    """Elements of the one JSON array that a file holds; reading ends at a syntax error, the records before it count."""
    records: list[Record] = []
    findings: list[Finding] = []
    end = text.index("[") + 1
    try:
        for record, end, inside in _elements(path, text):  # noqa: B007, read after the loop
            records.append(record)
            findings += inside
    except json.JSONDecodeError as error:
        return records, [*findings, syntax_error(path, error.lineno, error.lineno, error)]
    after = _skip_space(text, _skip_space(text, end) + 1)
    if after < len(text):
        line = text.count("\n", 0, after) + 1
        findings.append(extra_text(f"{path}:{line}", text[after:].split("\n")[0]))
    return records, findings


def _elements(path: str, text: str) -> Iterator[tuple[Record, int, list[Finding]]]:
    """Each element of an array, the index after it, and findings about its inside. Raises JSONDecodeError."""
    decoder = _StrictDecoder()
    one_line = "\n" not in text.strip()
    at = _skip_space(text, text.index("[") + 1)
    closed = text.startswith("]", at)
    line, counted, number = 1, 0, 0
    while not closed:
        breaks = text.count("\n", counted, at)
        line, counted, number = line + breaks, at, number + 1
        place = f"{line}#{number}" if one_line or (number > 1 and not breaks) else str(line)
        value, end, inside = decoder.value_at(text, at, f"{path}:{place}")
        yield Record(line, place, value, line + text.count("\n", at, end)), end, inside
        at = _skip_space(text, end)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = at if closed else _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    """The index of the first character from `at` on that is not white space."""
    match = SPACE.match(text, at)
    return match.end() if match else at
