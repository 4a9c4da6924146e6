"""What is wrong with the JSON of a data file: one finding for each of the usual mistakes, named and with its remedy.

The JSON parser says where it stopped and what it expected there; from that and the text around, these tell a trailing
comma from a Python literal, a full-width quotation mark or a line that was cut off.
"""

from __future__ import annotations

import json
import re

from fasttune.console import Finding, _, ngettext

FULL_WIDTH = "“”‘’：，｛｝［］、"


def is_cut_off(error: json.JSONDecodeError) -> bool:
    """Whether the text is valid JSON up to its end, but not complete: the next line may hold the rest."""
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")


def spread_over_lines(path: str, spread: list[tuple[int, int]], records: int) -> Finding:
    """The finding for JSONL whose objects are spread over several lines: (first, last) of each, of so many records."""
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
    fix = _("write one object a line (`jq -c . {path}`), or all of them as one JSON array: [ {{…}}, {{…}} ]", path=path)
    return Finding("json-pretty-printed", "error", f"{path}:{first}", what, fix=fix)


def extra_text(where: str, rest: str) -> Finding:
    """The finding for `rest`, which stands behind a complete JSON value on its line."""
    what = _("the JSON ends, but '{text}' follows on the line", text=rest[:20])
    fix = _("write one object a line and nothing else")
    if rest.startswith(","):
        fix = _("drop the comma after the object, or put the whole file in [ ]")
    elif rest.startswith("{"):
        fix = _("put each object on a line of its own")
    elif rest.startswith("["):
        fix = _('write each conversation as an object: {"messages": […]}')
    return Finding("json-extra-text", "error", where, what, fix=fix)


def syntax_error(path: str, first: int, last: int, error: json.JSONDecodeError) -> Finding:
    """The finding for a JSON syntax error, naming the usual mistakes by their name."""
    text, at = error.doc, error.pos
    here, before = text[at:].lstrip(), text[:at].rstrip()
    if "trailing comma" in error.msg or (before.endswith(",") and here[:1] in ("}", "]")):
        code, what, fix = "json-trailing-comma", _("comma before a closing bracket"), _("remove the comma")
    elif here.startswith("'"):
        code, what = "json-single-quotes", _("text in single quotes: this is Python, not JSON")
        fix = _("write the file with `json.dumps(record, ensure_ascii=False)`")
    elif here.startswith(tuple(FULL_WIDTH)):
        code, what = "json-full-width", _("full-width punctuation {mark} where JSON has its own", mark=here[0])
        fix = _('switch the input method to English: " : , { } [ ]')
    elif here.startswith(("//", "/*", "#")):
        code, what, fix = "json-comment", _("a comment, which JSON does not have"), _("remove the comment")
    elif here.startswith(("True", "False", "None")):
        code, what = "json-python-value", _("{value} is Python, not JSON", value=re.split(r"\W", here)[0])
        fix = _("write the file with `json.dumps(record, ensure_ascii=False)`")
    elif error.msg.startswith("Invalid control character"):
        code, what = "json-control-character", _("a raw line break, tab or control character inside a string")
        fix = _(r"write it as \n or \t")
    elif error.msg.startswith("Invalid \\"):
        code, what = "json-escape", _(r"a single backslash inside a string: '{text}'", text=text[at : at + 12])
        fix = _(r"write it as \\")
    elif is_cut_off(error):
        code, what = "json-cut-off", _("the text ends in the middle of the JSON")
        fix = _(r"write one object a line, line breaks inside text as \n; or the file was not copied to its end")
        if last > first:
            what = _("the JSON is cut off; lines {first} to {last} can't be read", first=first, last=last)
    else:
        code, what = "bad-json", _("this is not JSON: '{text}'", text=here.split("\n")[0][:20])
        fix = _('each line is one object: {"messages": […]}')
    why = _("column {column}: {reason}", column=error.colno, reason=error.msg)
    return Finding(code, "error", f"{path}:{first}", what, why=why, fix=fix)
