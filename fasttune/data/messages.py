"""A conversation's messages, and the checks on their contents and their order.

A conversation is an optional system message, then user and assistant in turn, ending with the assistant. It may begin
with the assistant, as a character's greeting does, where something else is in the sample. Contents are
normalised to Unicode form NFC, because Hugging Face's tokenizers of Qwen2.5 do that and llama.cpp does not; otherwise
they are kept as they are. What can't be trained on is a finding, and nothing is repaired silently.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from fasttune.console import Finding, Level, _

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
MOST_LISTED = 10  # how many items a finding lists
# Unicode's limit (UAX #15, Stream-Safe Text Format) on combining marks in a row: to sort more takes quadratic time.
MOST_MARKS = 30
SYMBOLS = re.compile(rf"[^\w\s]{{{MOST_MARKS + 1},}}")  # a mark is neither a letter, a digit nor a space


@dataclass(frozen=True)
class Message:
    """One message; `role` is system, user or assistant, `content` text in NFC that is not empty.

    `learn` is False where its file excludes it from training: it is context only, and no loss is taken on it.
    """

    role: str
    content: str
    learn: bool = True


@dataclass(frozen=True)
class Sample:
    """One conversation. `id` is "file:line": the file as the user named it, the line its record starts on.

    Where several elements of a JSON array start on one line, "file:line#n" is the n-th element of the array.
    `made_from` names the fact sheet and the facts that `fasttune augment` made it of; "" for any other sample.
    """

    id: str
    messages: tuple[Message, ...]
    made_from: str = ""


class Label(NamedTuple):
    """What a message is called in findings: `message` with its `{number}` and `{key}`. It is put into words where a
    finding needs it and not before, for a file has hundreds of thousands of messages that need none."""

    message: str
    number: int
    key: str = ""

    def __str__(self) -> str:
        return _(self.message, number=self.number, key=self.key)


@dataclass(frozen=True)
class Turn:
    """A message as the file has it, unchecked: `label` names it in findings; `role` is None where it is unknown.

    `learn` is False where the file excludes it from training.
    """

    label: str | Label
    role: str | None
    content: Any
    learn: bool = True


@dataclass
class Notes:
    """The findings of a file as they are made.

    `where` is the record being read; `ignored` counts the keys without a meaning, `normalised` lists the records with a
    content that was not NFC, `errors` is the number of findings that are errors. `systems` holds each system prompt
    once: the one that most samples share is checked once, and is the same object in all of them.
    """

    where: str = ""
    findings: list[Finding] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    normalised: list[str] = field(default_factory=list)
    errors: int = 0
    systems: dict[str, Message] = field(default_factory=dict)

    def add(self, code: str, what: str, *, why: str = "", fix: str = "", level: Level = "error") -> None:
        """Add a finding about the record being read."""
        self.findings.append(Finding(code, level, self.where, what, why, fix))
        self.errors += level == "error"


def checked(turns: list[Turn], notes: Notes) -> tuple[Message, ...] | None:
    """The messages of a sample after all checks; None after a finding that is an error."""
    before = notes.errors
    messages = [_message(turn, notes) for turn in turns]
    if any(turn.role is None for turn in turns):
        return None
    _check_order(turns, notes)
    if notes.errors > before:
        return None
    return tuple(one for one in messages if one is not None)


def _message(turn: Turn, notes: Notes) -> Message | None:
    """The message that a turn makes; None after a finding that is an error, or for a role that is unknown."""
    is_system = turn.role == "system" and turn.learn and isinstance(turn.content, str)
    if is_system and (known := notes.systems.get(turn.content)) is not None:
        return known
    found = len(notes.findings), len(notes.normalised)
    text = _content(turn, notes)
    if text is None or turn.role is None:
        return None
    message = Message(turn.role, text, turn.learn)
    if is_system and (len(notes.findings), len(notes.normalised)) == found:
        notes.systems[turn.content] = message
    return message


def _content(turn: Turn, notes: Notes) -> str | None:
    """A turn's text in NFC; None after a finding. A list of text parts (OpenAI's content parts) is joined."""
    content, label = turn.content, turn.label
    if isinstance(content, list) and content:
        bad = [part for part in content if not _is_text_part(part)]
        if bad:
            what = _("{label} has the part {part}", label=label, part=json.dumps(bad[0], ensure_ascii=False)[:40])
            notes.add("content-parts", what, fix=_('only {"type": "text", "text": "…"} parts can be trained on'))
            return None
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        what = _("the content of {label} is {kind}, not text", label=label, kind=json_type(content))
        fix = _("write its text or remove the sample")
        if isinstance(content, (int, float)):
            fix = _("write it as text: {text}", text=json.dumps(json.dumps(content)))
        notes.add("content-not-text", what, fix=fix)
        return None
    if not any(character.isprintable() and not character.isspace() for character in content):
        what = _("{label} is empty", label=label) if not content else _("{label} is white space only", label=label)
        fix = _("write its text or remove the sample")
        if turn.role == "system":
            fix = _("remove the message; data.system = '' gives samples without one an empty system message")
        notes.add("empty-content", what, fix=fix)
        return None
    before = notes.errors
    check_characters(label, content, notes)
    if notes.errors > before:
        return None
    normal = unicodedata.normalize("NFC", content)
    if normal != content:
        notes.normalised.append(notes.where)
    return normal


def _is_text_part(part: Any) -> bool:
    """Whether a part of a content is text and not, for example, an image."""
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def check_characters(label: str | Label, content: str, notes: Notes) -> None:
    """Findings for characters that no text should hold: controls, lone surrogates, heaps of combining marks, and U+FFFD
    (a warning)."""
    bad = CONTROL.search(content)
    if bad and bad[0] >= "\ud800":
        what = _("{label} has half a surrogate pair, U+{code:04X}, at character {at}", label=label, code=ord(bad[0]),
                 at=bad.start() + 1)  # fmt: skip
        why = _("a character (often an emoji) was split in two, which is not valid text")
        notes.add("lone-surrogate", what, why=why, fix=_("write the whole character again"))
    elif bad:
        what = _("{label} has the control character U+{code:04X} at character {at}", label=label, code=ord(bad[0]),
                 at=bad.start() + 1)  # fmt: skip
        notes.add("control-character", what, fix=_("remove it"))
    if (heap := heap_of_marks(content)) is not None:
        what = _("{label} has more than {n} combining marks in a row at character {at}", label=label, n=MOST_MARKS,
                 at=heap + 1)  # fmt: skip
        why = _("no writing has so many: they are there to break programs, or a conversion went wrong")
        notes.add("combining-marks", what, why=why, fix=_("remove them"))
    if "\ufffd" in content:
        at = content.index("\ufffd") + 1
        what = _("{label} has the replacement character U+FFFD at character {at}", label=label, at=at)
        notes.add("replacement-character", what, why=_("an earlier conversion lost text here"), level="warning")


def heap_of_marks(text: str) -> int | None:
    """The index of the first of more than MOST_MARKS combining marks in a row; None where there is no such heap."""
    for found in SYMBOLS.finditer(text):
        length = 0
        for at, character in enumerate(found[0], found.start()):
            length = length + 1 if unicodedata.combining(character) else 0
            if length > MOST_MARKS:
                return at - MOST_MARKS
    return None


def _check_order(turns: list[Turn], notes: Notes) -> None:
    """System first if at all, then user and assistant in turn, the assistant last, and not its message alone."""
    others = turns[1:] if turns[0].role == "system" else turns
    late = next((turn for turn in others if turn.role == "system"), None)
    if late:
        what = _("{label} is a system message, but comes after {first}", label=late.label, first=turns[0].label)
        notes.add("system-not-first", what, fix=_("move its text to the first message"))
        return
    if not others:
        notes.add("nothing-to-learn", _("the sample has a system message only"))
        return
    first, last = others[0], others[-1]
    if first.role != "user" and len(turns) == 1:
        what = _("the only message, {label}, is the assistant's", label=first.label)
        notes.add("starts-with-assistant", what, fix=_("put a system message or the user's message before it"))
    for one, other in pairwise(others):
        if one.role == other.role:
            what = _("{one} and {other} are both {role}", one=one.label, other=other.label, role=one.role)
            why, fix = _("chat models are trained on turns that alternate"), _("join them into one message")
            notes.add("same-role-twice", what, why=why, fix=fix)
    if last.role != "assistant":
        what = _("the last message, {label}, is the user's", label=last.label)
        fix = _("add the assistant's answer or remove the message")
        notes.add("ends-with-user", what, why=_("there is no answer to train on"), fix=fix)
    answers = [turn for turn in others if turn.role == "assistant"]
    if answers and not any(turn.learn for turn in answers):
        what = _("every assistant message is excluded from training (weight 0 or train false)")
        notes.add("nothing-to-learn", what, fix=_("remove the sample, or the key from a message that is to be learned"))


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The items in one line, at most MOST_LISTED of them and the number of the rest."""
    more = _(" and {count} more", count=len(items) - MOST_LISTED) if len(items) > MOST_LISTED else ""
    return separator.join(items[:MOST_LISTED]) + more


def json_type(value: Any) -> str:
    """The type of a JSON value in words: text, a number, a list, an object, true or false, null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return _("true or false")
    if isinstance(value, (int, float)):
        return _("a number")
    return _("text") if isinstance(value, str) else _("a list") if isinstance(value, list) else _("an object")
