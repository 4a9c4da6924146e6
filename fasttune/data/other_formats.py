"""Records of no accepted format, by what they resemble, and what to write instead.

    {"query": …, "response": …}                 the keys of a format under other names
    {"conversation": [{"role": …}, …]}          a conversation under another key, or as pairs of question and answer
    {"train": [{"prompt": …}, …]}               records in a list that an object stands around
    {"prompt": [a, b], "completion": [c, d]}    a table by columns, as pandas and datasets write it
    {"0": {"prompt": …}, "1": …}                records by number
    {"chosen": …, "rejected": …}                a preference pair

Nothing of this is read: which key holds what is for the file's owner to say. Each is one finding with its remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from fasttune.console import _
from fasttune.data.messages import listed

Formats = Mapping[str, tuple[AbstractSet[str], AbstractSet[str]]]  # formats.FORMATS

# What other data sets call the user's text and the assistant's, in lower case.
QUESTIONS = (
    "prompt", "instruction", "query", "question", "input", "user", "human", "message", "q", "problem", "问题", "问",
)  # fmt: skip
ANSWERS = (
    "completion", "output", "response", "answer", "reply", "assistant", "bot", "gpt", "target", "a", "solution", "答案",
    "回答", "答",
)  # fmt: skip
TEXTS = ("content", "value", "text", "parts", "message", "utterance", "content_text")  # of a message
SPEAKERS = ("role", "from", "speaker", "author")
CONTAINERS = ("data", "train", "records", "rows", "samples", "examples", "items", "dataset", "instances")
MESSAGES = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
EXPECTED = "messages, conversations, instruction + output, prompt + completion"


@dataclass(frozen=True)
class Problem:
    """A finding about a record, without the record's place."""

    code: str
    what: str
    why: str = ""
    fix: str = ""


def obstacle(value: Mapping[str, Any], found: Sequence[str], formats: Formats, path: str) -> Problem | None:
    """Why an object is no conversation, None where it is one of the formats `found`, at most one.

    `path` is its file, for the command that converts it.
    """
    needed, optional = formats[found[0]] if found else (frozenset(), frozenset())
    problem = as_table(value, formats, path) or as_preference(value, value.keys() - needed - optional)
    return problem or (None if found else resembled(value, formats))


# --- what is in the way of every format -------------------------------------------------------------------------------


def as_table(value: Mapping[str, Any], formats: Formats, path: str) -> Problem | None:
    """The problem of an object that holds a whole table: columns as lists or by number, or records by number."""
    if _are_numbers(value) and all(isinstance(record, dict) for record in value.values()):
        what = _("the object holds {n} records by number", n=len(value))
        return Problem("table", what, fix=_as_records(path, ", orient='index'"))
    for needed, _optional in formats.values():
        if not needed <= value.keys():
            continue
        columns = [value[key] for key in needed]
        if all(isinstance(column, dict) and _are_numbers(column) for column in columns):
            what = _("the file is a table by columns, as pandas' to_json() writes it")
            return Problem("table", what, fix=_as_records(path))
        # A list of texts under "messages" alone is a conversation written wrong, a list of lists is a column of them.
        cell = str if len(columns) > 1 else list
        if all(isinstance(column, list) and column and isinstance(column[0], cell) for column in columns):
            what = _("the file is a table by columns, each a list")
            return Problem("table", what, fix=_as_records(path))
    return None


def _are_numbers(keyed: Mapping[str, Any]) -> bool:
    """Whether the keys of an object number what it holds."""
    return bool(keyed) and all(key.isdecimal() for key in keyed)


def _as_records(path: str, orient: str = "") -> str:
    """How to write a table one record a line."""
    return _(
        "write it with df.to_json('train.jsonl', orient='records', lines=True, force_ascii=False), or convert it: "
        "python -c \"import pandas; pandas.read_json('{path}'{orient}, dtype=False, convert_dates=False)"
        ".to_json('train.jsonl', orient='records', lines=True, force_ascii=False)\"",
        path=path,
        orient=orient,
    )


def as_preference(value: Mapping[str, Any], keys: Collection[str]) -> Problem | None:
    """The problem of a preference pair; `keys` are those of the record that have no other meaning. None for others."""
    chosen = next((key for key in keys if key.startswith("chosen")), None)
    rejected = next((key for key in keys if key.startswith("rejected")), None)
    if chosen is None or rejected is None:
        return None
    what = _("a preference pair ({chosen}, {rejected}): a good answer and a bad one", chosen=chosen, rejected=rejected)
    fix = _('keep the good answer alone, as "completion" or as the last message of the conversation')
    if isinstance(value[chosen], list):
        fix = _('rename "{chosen}" to "messages" and remove "{rejected}"', chosen=chosen, rejected=rejected)
    elif isinstance(value[chosen], str) and "prompt" in value:
        fix = _('rename "{chosen}" to "completion" and remove "{rejected}"', chosen=chosen, rejected=rejected)
    return Problem("preference-data", what, _("the bad answer would be learned like the good one"), fix)


# --- what an object of no format resembles ----------------------------------------------------------------------------


def resembled(value: Mapping[str, Any], formats: Formats) -> Problem:
    """The problem of an object of no accepted format, by what it resembles most."""
    if {"role", "content"} <= value.keys():
        what = _('a message on its own; a sample is {"messages": [all messages of a conversation]}')
        return Problem("message-alone", what)
    renamed = _renamed(value)
    near = next((name for name, (needed, _optional) in formats.items() if needed & value.keys()), None)
    if near:
        missing = listed(sorted(f'"{key}"' for key in formats[near][0] - value.keys()))
        what = _("the record looks like {format} but has no {missing}", format=near, missing=missing)
        return Problem("missing-key", what, fix=renamed)
    if renamed:
        return Problem("unknown-format", _unknown(value), fix=renamed)
    for key, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            return _around_list(key, inner[0], formats)
    if isinstance(value.get("text"), str):
        return Problem("raw-text", _('only "text", which does not say who speaks; write prompt and completion'))
    fix = _('write {"prompt": "…", "completion": "…"}, or {"messages": […]} for a conversation of several turns')
    return Problem("unknown-format", _unknown(value), fix=fix)


def _unknown(value: Mapping[str, Any]) -> str:
    """What is said of keys that make no format."""
    keys = listed(sorted(map(str, value)), ", ") or _("none")
    return _("the keys are {keys}; expected are {expected}", keys=keys, expected=EXPECTED)


def _renamed(value: Mapping[str, Any]) -> str:
    """Which keys to rename, where the record's question and answer stand under other names; "" where they don't."""
    question, answer = (
        min((key for key in value if key.lower() in names), key=lambda key: names.index(key.lower()), default=None)
        for names in (QUESTIONS, ANSWERS)
    )
    if question is None or answer is None or not isinstance(value[question], str):
        return ""
    is_alpaca = question.lower() == "instruction" or "history" in value
    new = ("instruction", "output") if is_alpaca else ("prompt", "completion")
    pairs = [(question, new[0]), (answer, new[1])]
    renaming = [_('"{old}" to "{new}"', old=old, new=new) for old, new in pairs if old != new]
    return _("rename {keys}", keys=listed(renaming)) if renaming else ""


def _around_list(key: str, first: Mapping[str, Any], formats: Formats) -> Problem:
    """The problem of an object around a list whose first element is the object `first`: records, or a conversation."""
    is_record = any(needed <= first.keys() for needed, _optional in formats.values())
    if is_record or (key.lower() in CONTAINERS and not first.keys() & set(SPEAKERS)):
        what = _('records in a list inside an object, under "{key}"', key=key)
        fix = _("save that list alone; where each line has such a list, the records of all of them")
        return Problem("object-around-list", what, fix=fix)
    shown = listed(sorted(map(str, first)))
    what = _('the record has a list under "{key}", of elements with the keys {keys}', key=key, keys=shown)
    speaker, text = (next((name for name in names if name in first), None) for names in (SPEAKERS, TEXTS))
    fix = _("write each conversation as {messages}", messages=MESSAGES)
    if (speaker, text) in (("role", "content"), ("from", "value")):
        new = "conversations" if key.startswith("conversation") else "messages"
        fix = _('rename "{key}" to "{new}"', key=key, new=new)
    elif speaker is None and _is_pair(first):
        fix = _("write each pair as two messages: {messages}", messages=MESSAGES)
    elif text and speaker == "role":
        fix = _('write "{text}" as "content", and the roles user and assistant: {messages}', text=text,
                messages=MESSAGES)  # fmt: skip
    elif text and speaker:
        fix = _('write "{speaker}" as "role" (user or assistant) and "{text}" as "content": {messages}',
                speaker=speaker, text=text, messages=MESSAGES)  # fmt: skip
    return Problem("conversation-key" if speaker or text or _is_pair(first) else "unknown-format", what, fix=fix)


def _is_pair(element: Mapping[str, Any]) -> bool:
    """Whether an element of a list holds a question and its answer."""
    keys = {key.lower() for key in element}
    return bool(keys & set(QUESTIONS)) and bool(keys & set(ANSWERS))
