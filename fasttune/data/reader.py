"""From a file to its JSON records, each with the line it starts on: bytes, encoding and syntax, no meaning.

    bytes ── _decode ──► text ── _json_lines or _json_array ──► Record(line, value)…

Accepted: JSONL (one object a line, blank lines fine) and one JSON array of objects, told apart by the first character
and not by the file's name. UTF-8 with or without BOM, any line ends, and GB18030, which Windows editors in China write.
Everything else is a finding that says what the file is and how to turn it into one of these. Reading goes on after a
bad line, so that one call names every problem. What a record means is `fasttune.data`'s business.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.console import N_, Finding, Level, _, ngettext

BINARY_KINDS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"PK\x03\x04": "Excel or ZIP",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF": "PDF",
    b"SQLite format 3": "SQLite",
}
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
# Half of any Chinese text is these; Big5, EUC-JP or EUC-KR bytes that decode as GB18030 give a tenth at most.
FREQUENT = frozenset(
    "的一是了我不在人有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"
    "小么心多天能好都然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面公同三已老从动两长知样"
    "现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿，。？！、：；“”"
)
FULL_WIDTH = "“”‘’：，｛｝［］、"
UTF8_HINT = N_("save it as UTF-8 in your editor (VS Code: click the encoding in the status bar, 'Save with Encoding')")


@dataclass(frozen=True)
class Record:
    """One top-level JSON value of a file.

    `line` counts from 1 and is where the value starts; `place` is the line too, or "line#n" for the n-th element of an
    array that shares its line with another one, and unique in the file.
    """

    line: int
    place: str
    value: Any


# What the JSON parser noticed in the value being parsed: ("duplicate-key", key) or ("json-nan", constant).
Flaws = list[tuple[str, str]]


def problem(code: str, where: str, what: str, *, why: str = "", fix: str = "", level: Level = "error") -> Finding:
    """A finding, an error unless said otherwise."""
    return Finding(code, level, where, what, why, fix)


def read_records(path: str) -> tuple[list[Record], list[Finding]]:
    """All records of a JSONL or JSON array file and all that is wrong with its encoding and syntax; raises nothing."""
    raw, findings = _bytes(path)
    text, decoding = _decode(path, raw) if raw is not None else (None, [])
    findings += decoding
    if text is None:
        return [], findings
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = text.lstrip()[:1]
    if not start:
        return [], [*findings, problem("no-samples", path, _("the file is empty"))]
    if start == "[":
        records, syntax = _json_array(path, text)
    elif re.search(r"^\s*\{", text, re.MULTILINE):
        records, syntax = _json_lines(path, text)
    else:
        records, syntax = [], [_not_json(path, text)]
    return records, findings + syntax


# --- bytes -----------------------------------------------------------------------------------------------------------


def _bytes(path: str) -> tuple[bytes | None, list[Finding]]:
    file = Path(path)
    if file.is_dir():
        inside = sorted(entry.name for entry in file.iterdir() if entry.suffix in (".jsonl", ".json"))
        fix = _("name the file: {files}", files=", ".join(inside)) if inside else _("name a JSONL or JSON file")
        return None, [problem("is-a-directory", path, _("this is a directory, not a file"), fix=fix)]
    try:
        return file.read_bytes(), []
    except FileNotFoundError:
        return None, [_missing(path)]
    except OSError as error:
        what = _("the file can't be read: {reason}", reason=error.strerror or str(error))
        return None, [problem("unreadable-file", path, what)]


def _missing(path: str) -> Finding:
    folder = Path(path).parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, names, n=1, cutoff=0.6)
    fix = _("relative paths are taken from the current directory")
    if near:
        fix = _("did you mean {path}?", path=(folder / near[0]).as_posix())
    return problem("file-not-found", path, _("there is no such file"), fix=fix)


def _decode(path: str, raw: bytes) -> tuple[str | None, list[Finding]]:
    """Text of the bytes: UTF-8, else GB18030 where the outcome reads like Chinese, else None and why."""
    for magic, kind in BINARY_KINDS.items():
        if raw.startswith(magic):
            return None, [_binary(path, kind)]
    if raw.startswith(WIDE_BOMS) or raw[:400].count(0) > len(raw[:400]) // 4:
        what = _("the file is UTF-16 or UTF-32 (Notepad calls it 'Unicode'), not UTF-8")
        return None, [problem("utf-16", path, what, fix=_(UTF8_HINT))]
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode(), []
    except UnicodeDecodeError as error:
        utf8_error = error
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        text = ""
    if _reads_like_chinese(text):
        chinese = "".join(re.findall(r"[\u4e00-\u9fff，。？！]+", text))[:20]
        what = _("read as GB18030 (GBK), not UTF-8; it begins '{text}'", text=chinese)
        why = _("if that is not what the file says, it is in a third encoding and would be learned wrong")
        return text, [problem("gb18030", path, what, why=why, fix=_(UTF8_HINT), level="info")]
    line = raw.count(b"\n", 0, utf8_error.start) + 1
    what = _("byte 0x{byte:02X} is neither UTF-8 nor GB18030 Chinese", byte=raw[utf8_error.start])
    why = _("guessing the encoding would train on garbled text")
    return None, [problem("unknown-encoding", f"{path}:{line}", what, why=why, fix=_(UTF8_HINT))]


def _reads_like_chinese(text: str) -> bool:
    """Whether text decoded as GB18030 is plausibly that: enough of it are everyday characters."""
    foreign = [character for character in text if ord(character) > 127]
    frequent = sum(character in FREQUENT for character in foreign)
    return bool(foreign) and frequent >= 0.25 * len(foreign)


def _binary(path: str, kind: str) -> Finding:
    fix = _("unpack it and name the JSONL or JSON file inside")
    if kind in ("Parquet", "Arrow"):
        fix = _(
            "convert it: python -c \"import datasets; datasets.Dataset.from_parquet('{path}')"
            ".to_json('train.jsonl', force_ascii=False)\"",
            path=path,
        )
    elif kind.startswith("Excel"):
        fix = _("save the sheet as 'CSV UTF-8', with the columns prompt and completion, and convert that to JSONL")
    return problem("not-json", path, _("the file is {kind}, not JSONL or JSON", kind=kind), fix=fix)


def _not_json(path: str, text: str) -> Finding:
    """The finding for text that holds no JSON object: CSV, a Python list, plain text."""
    first = text.strip().split("\n")[0]
    if Path(path).suffix.lower() in (".csv", ".tsv") or re.fullmatch(r"[\w ]+([,\t;][\w ]+)+", first):
        fix = _(
            'name the columns prompt and completion and convert it: python -c "import datasets; '
            "datasets.Dataset.from_csv('{path}').to_json('train.jsonl', force_ascii=False)\"",
            path=path,
        )
        return problem("not-json", path, _("the file is a CSV table, not JSONL or JSON"), fix=fix)
    what = _("the file is plain text, not JSONL or JSON; it begins '{text}'", text=first[:30])
    why = _("fasttune learns conversations: it has to know who says what")
    fix = _('write one conversation a line: {"prompt": "…", "completion": "…"}')
    return problem("not-json", path, what, why=why, fix=fix)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _decoder(flaws: Flaws) -> json.JSONDecoder:
    """A strict JSON decoder that notes duplicate keys and NaN in `flaws` and survives numbers of any length."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(items)
        if len(record) < len(items):
            names = [name for name, _value in items]
            flaws.extend(("duplicate-key", name) for name in record if names.count(name) > 1)
        return record

    def constant(name: str) -> None:
        flaws.append(("json-nan", name))

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) < 100 else float(digits)

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant, parse_int=integer)


def _take(decoder: json.JSONDecoder, flaws: Flaws, text: str, at: int, where: str) -> tuple[Any, int, list[Finding]]:
    """The JSON value at `at`, the index after it, and what is wrong inside; raises JSONDecodeError."""
    flaws.clear()
    try:
        value, end = decoder.raw_decode(text, at)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, at) from None
    findings = []
    for code, name in flaws:
        if code == "duplicate-key":
            what = _('the key "{name}" occurs twice in one object', name=name)
            why = _("JSON would silently keep the last one and lose the other")
            findings.append(problem(code, where, what, why=why, fix=_("keep one of them")))
        else:
            what = _("{name} is not JSON", name=name)
            findings.append(problem(code, where, what, fix=_('write null, or text in "quotes"')))
    return value, end, findings


def _json_lines(path: str, text: str) -> tuple[list[Record], list[Finding]]:
    """Records of JSONL; objects spread over lines are read too (to check them) but refused in one finding."""
    flaws: Flaws = []
    decoder = _decoder(flaws)
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
            value, end, inside = _take(decoder, flaws, chunk, 0, where)
        except json.JSONDecodeError as error:
            last = _last_line(lines, first) if _cut_off(error) else first
            chunk = "\n".join(lines[first - 1 : last]).strip()
            try:
                value, end, inside = _take(decoder, flaws, chunk, 0, where)
            except json.JSONDecodeError:
                findings.append(_syntax_problem(path, first, last, error))
                continue
            spread.append((first, last))
        records.append(Record(first, str(first), value))
        findings += inside
        if chunk[end:].strip():
            findings.append(_extra_text(where, chunk[end:].strip()))
    if spread:
        findings.append(_spread_problem(path, spread, len(records)))
    return records, findings


def _cut_off(error: json.JSONDecodeError) -> bool:
    """Whether a line's JSON is fine as far as it goes, but goes on on the next line."""
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")


def _last_line(lines: list[str], number: int) -> int:
    """The last line of the object that starts on line `number` (from 1) and is cut off there."""
    last = number
    while last < len(lines) and not lines[last].startswith("{"):
        last += 1
    while last > number and not lines[last - 1].strip():
        last -= 1
    return last


def _spread_problem(path: str, spread: list[tuple[int, int]], records: int) -> Finding:
    first, last = spread[0]
    what = ngettext(
        "{n} object is spread over several lines, {first} to {last}",
        "{n} objects are spread over several lines, the first over lines {first} to {last}",
        len(spread),
        first=first,
        last=last,
    )
    if len(spread) == 1 and records == 1:
        what = _("the file is one object spread over lines {first} to {last}", first=first, last=last)
    fix = _("write one object a line (jq -c . {path}), or all of them as one JSON array: [ {{…}}, {{…}} ]", path=path)
    return problem("json-pretty-printed", f"{path}:{first}", what, fix=fix)


def _json_array(path: str, text: str) -> tuple[list[Record], list[Finding]]:
    """Elements of the one JSON array a file holds; a syntax error ends the reading, what came before is kept."""
    flaws: Flaws = []
    decoder = _decoder(flaws)
    records: list[Record] = []
    findings: list[Finding] = []
    space = re.compile(r"\s*")

    def skip(at: int) -> int:
        match = space.match(text, at)
        return match.end() if match else at

    one_line = "\n" not in text.strip()
    at = skip(skip(0) + 1)
    line, counted = 1, 0
    closed = text[at : at + 1] == "]"
    try:
        while not closed:
            breaks = text.count("\n", counted, at)
            line, counted = line + breaks, at
            place = f"{line}#{len(records) + 1}" if one_line or (records and not breaks) else str(line)
            value, at, inside = _take(decoder, flaws, text, at, f"{path}:{place}")
            findings += inside
            records.append(Record(line, place, value))
            at = skip(at)
            closed = text[at : at + 1] == "]"
            if not closed and text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = at if closed else skip(at + 1)
    except json.JSONDecodeError as error:
        return records, [*findings, _syntax_problem(path, error.lineno, error.lineno, error)]
    after = skip(at + 1)
    if after < len(text):
        where = f"{path}:{text.count(chr(10), 0, after) + 1}"
        findings.append(_extra_text(where, text[after:].split("\n")[0]))
    return records, findings


def _extra_text(where: str, rest: str) -> Finding:
    what = _("the JSON ends, but the line goes on with '{text}'", text=rest[:20])
    fix = _("write one object a line and nothing else")
    if rest.startswith(","):
        fix = _("drop the comma after the object, or put the whole file in [ ]")
    elif rest.startswith("{"):
        fix = _("put each object on a line of its own")
    elif rest.startswith("["):
        fix = _('write each conversation as an object: {"messages": […]}')
    return problem("json-extra-text", where, what, fix=fix)


def _syntax_problem(path: str, first: int, last: int, error: json.JSONDecodeError) -> Finding:
    """The finding for a JSON syntax error, naming the usual mistakes by their name."""
    text, at = error.doc, error.pos
    here, before = text[at:].lstrip(), text[:at].rstrip()
    if "trailing comma" in error.msg or (before.endswith(",") and here[:1] in ("}", "]")):
        code, what, fix = "json-trailing-comma", _("comma before a closing bracket"), _("remove the comma")
    elif here.startswith("'"):
        code, what = "json-single-quotes", _("text in single quotes: this is Python, not JSON")
        fix = _("write the file with json.dumps(record, ensure_ascii=False)")
    elif here.startswith(tuple(FULL_WIDTH)):
        code, what = "json-full-width", _("full-width punctuation {mark} where JSON has its own", mark=here[0])
        fix = _('switch the input method to English: " : , { } [ ]')
    elif here.startswith(("//", "/*", "#")):
        code, what, fix = "json-comment", _("a comment, which JSON does not have"), _("remove the comment")
    elif here.startswith(("True", "False", "None")):
        code, what = "json-python-value", _("{value} is Python, not JSON", value=re.split(r"\W", here)[0])
        fix = _("write the file with json.dumps(record, ensure_ascii=False)")
    elif error.msg.startswith("Invalid control character"):
        code, what = "json-control-character", _("a raw line break, tab or control character inside a string")
        fix = _(r"write it as \n or \t")
    elif error.msg.startswith("Invalid \\"):
        code, what = "json-escape", _(r"a single backslash inside a string: '{text}'", text=text[at : at + 12])
        fix = _(r"write it as \\")
    elif _cut_off(error):
        code, what = "json-cut-off", _("the text ends in the middle of the JSON")
        fix = _(r"write one object a line, line breaks inside text as \n; or the file was not copied to its end")
        if last > first:
            what = _("the JSON is cut off; lines {first} to {last} can't be read", first=first, last=last)
    else:
        code, what = "bad-json", _("this is not JSON: '{text}'", text=here.split("\n")[0][:20])
        fix = _('each line is one object: {"messages": […]}')
    why = _("column {column}: {reason}", column=error.colno, reason=error.msg)
    return problem(code, f"{path}:{first}", what, why=why, fix=fix)
