"""From a record to a checked conversation: which format its keys make, who says what, and what can't be learned.

    value ── _format ──► "Alpaca" ── _turns ──► _Turn(label, role, content)… ── checks ──► Message(role, content)…

Four formats, found from the keys of a record (data/formats/ has a small file of each): `messages` (OpenAI/ChatML),
`conversations` (ShareGPT), `instruction`/`output` (Alpaca), `prompt`/`completion`. A conversation is an optional system
message, then user and assistant in turn, ending with the assistant. Contents are NFC-normalised, because llama.cpp does
not normalise what Hugging Face tokenizers do, and kept as they are otherwise. Nothing is repaired in silence.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fasttune.console import Finding, Level, _

# format -> (keys that make it, keys that may come with them); `system` is understood in all of them
FORMATS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "messages": (frozenset({"messages"}), frozenset()),
    "ShareGPT": (frozenset({"conversations"}), frozenset()),
    "Alpaca": (frozenset({"instruction", "output"}), frozenset({"input", "history"})),
    "prompt/completion": (frozenset({"prompt", "completion"}), frozenset()),
}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
# Keys whose content would change what the model sees: ignoring them would train on half a sample.
UNSUPPORTED = ("tools", "functions", "images", "image", "videos", "audios")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
SHOWN = 10  # how many items a finding lists


@dataclass(frozen=True)
class Message:
    """One turn; `role` is system, user or assistant, `content` NFC text that is not empty."""

    role: str
    content: str


@dataclass(frozen=True)
class _Turn:
    """One turn as the file has it: `label` names it in findings, `role` is None where it could not be understood."""

    label: str
    role: str | None
    content: Any


@dataclass
class Notes:
    """Findings of a file as they are made; `where` is the record being read."""

    where: str = ""
    findings: list[Finding] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    normalised: list[str] = field(default_factory=list)
    errors: int = 0

    def say(self, code: str, what: str, *, why: str = "", fix: str = "", level: Level = "error") -> None:
        self.findings.append(Finding(code, level, self.where, what, why, fix))
        self.errors += level == "error"


def conversation(value: Any, notes: Notes) -> tuple[str | None, tuple[Message, ...] | None]:
    """The format of a record and its checked messages, each None where a finding in `notes` says why."""
    name = _format(value, notes)
    turns = None if name is None else _turns(name, value, notes)
    return name, None if turns is None else _messages(turns, notes)


# --- a record's format -----------------------------------------------------------------------------------------------


def _format(value: Any, notes: Notes) -> str | None:
    """The format that a record's keys make; None, and a finding, where they make none or two."""
    if not isinstance(value, dict):
        fix = _('write each conversation as an object: {"messages": […]}')
        notes.say("not-an-object", _("this is {kind}, not an object", kind=_kind(value)), fix=fix)
        return None
    found = [name for name, (needed, _optional) in FORMATS.items() if needed <= value.keys()]
    if len(found) > 1:
        what = _("the record is {formats} at once", formats=listed(found, " + "))
        notes.say("ambiguous-format", what, why=_("each could be meant"), fix=_("keep the keys of one of them"))
        return None
    if not found:
        notes.say(*_unknown_format(value))
        return None
    needed, optional = FORMATS[found[0]]
    for key in value.keys() - needed - optional - {"system"}:
        if key in UNSUPPORTED and value[key]:
            what = _('the record has "{key}", which fasttune does not train on', key=key)
            why, fix = _("without it the sample means something else"), _("remove the key or the sample")
            notes.say("unsupported-key", what, why=why, fix=fix)
        else:
            notes.ignored[key] += 1
    return found[0]


def _unknown_format(value: dict[str, Any]) -> tuple[str, str]:
    """(code, what) for an object of no accepted format, by what it looks like."""
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    for name, (needed, _optional) in FORMATS.items():
        if needed & value.keys():
            missing = listed(sorted(f'"{key}"' for key in needed - value.keys()))
            if {"chosen", "rejected"} & value.keys():
                return "preference-data", _("a preference pair (chosen, rejected); write the good answer as completion")
            return "missing-key", _("the record looks like {format} but has no {missing}", format=name, missing=missing)
    if {"role", "content"} <= value.keys():
        return "message-alone", _('a message on its own; a sample is {"messages": [all messages of a conversation]}')
    if lists:
        what = _('the list stands inside an object, under "{key}"; save that list alone', key=lists[0])
        return "object-around-list", what
    if isinstance(value.get("text"), str):
        return "raw-text", _('only "text", which does not say who speaks; write prompt and completion')
    keys = listed(sorted(map(str, value)), ", ") or _("none")
    expected = "messages, conversations, instruction + output, prompt + completion"
    return "unknown-format", _("the keys are {keys}; expected are {expected}", keys=keys, expected=expected)


# --- a record's turns ------------------------------------------------------------------------------------------------


def _turns(name: str, value: dict[str, Any], notes: Notes) -> list[_Turn] | None:
    """The turns of a record of format `name`, contents not looked at yet; None where the record's shape is wrong."""
    system = [_Turn('"system"', "system", value["system"])] if value.get("system") not in (None, "") else []
    if name == "Alpaca":
        turns = _alpaca(value, notes)
    elif name == "prompt/completion":
        turns = _prompt_completion(value, notes)
    else:
        key = "messages" if name == "messages" else "conversations"
        turns = _message_list(key, value[key], notes)
    return None if turns is None else system + turns


def _alpaca(value: dict[str, Any], notes: Notes) -> list[_Turn] | None:
    turns = []
    history = value.get("history") or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        notes.say(
            "bad-history",
            _('"history" is not a list of [question, answer] pairs'),
            fix=_('write "history": [["question", "answer"], …]'),
        )
        return None
    for number, (question, answer) in enumerate(history, 1):
        turns.append(_Turn(_("history {number}, question", number=number), "user", question))
        turns.append(_Turn(_("history {number}, answer", number=number), "assistant", answer))
    question = value["instruction"]
    if value.get("input") not in (None, ""):
        parts = [question, value["input"]]
        if all(isinstance(part, str) for part in parts):
            question = "\n".join(part for part in parts if part)
        else:
            question = value["input"] if isinstance(question, str) else question
    return [*turns, _Turn('"instruction"', "user", question), _Turn('"output"', "assistant", value["output"])]


def _prompt_completion(value: dict[str, Any], notes: Notes) -> list[_Turn] | None:
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _message_list("prompt", prompt, notes)
        after = _message_list("completion", completion, notes)
        return None if before is None or after is None else before + after
    if isinstance(prompt, list) or isinstance(completion, list):
        notes.say(
            "prompt-shape",
            _('of "prompt" and "completion" one is a list of messages and the other is not'),
            fix=_("write both as text or both as lists"),
        )
        return None
    return [_Turn('"prompt"', "user", prompt), _Turn('"completion"', "assistant", completion)]


def _message_list(key: str, messages: Any, notes: Notes) -> list[_Turn] | None:
    if not isinstance(messages, list):
        notes.say("not-a-list", _('"{key}" is {kind}, not a list of messages', key=key, kind=_kind(messages)))
        return None
    if not messages:
        fix = _("remove the record or write its messages")
        notes.say("no-messages", _('"{key}" is an empty list', key=key), fix=fix)
        return None
    whole = key in ("messages", "conversations")
    labels = [
        _("message {number}", number=number) if whole else _('message {number} of "{key}"', number=number, key=key)
        for number in range(1, len(messages) + 1)
    ]
    turns = [_turn(label, message, notes) for label, message in zip(labels, messages, strict=True)]
    return [turn for turn in turns if turn is not None] if None not in turns else None


def _turn(label: str, message: Any, notes: Notes) -> _Turn | None:
    """One entry of a message list, in OpenAI's or ShareGPT's keys; None where it is no message."""
    if not isinstance(message, dict):
        notes.say("not-a-message", _("{label} is {kind}, not an object", label=label, kind=_kind(message)))
        return None
    pair = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    calls = [key for key in ("tool_calls", "function_call") if message.get(key)]
    if calls:
        notes.say(
            "tool-calls",
            _('{label} has "{key}": tool use is not supported', label=label, key=calls[0]),
            fix=_("remove the sample"),
        )
        return None
    missing = [key for key in pair if key not in message]
    if missing:
        what = _(
            '{label} has no "{missing}"; its keys are {keys}',
            label=label,
            missing=listed(missing, '", "'),
            keys=listed(sorted(message)) or _("none"),
        )
        notes.say("message-keys", what, fix=_('write {"role": "user", "content": "…"}'))
        return None
    if message.get("weight") == 0:
        notes.say(
            "message-weight",
            _("{label} has weight 0, but every assistant message is learned", label=label),
            fix=_("remove the key to learn it, or end the conversation before it"),
        )
    ignored = message.keys() - {*pair, "weight", "tool_calls", "function_call"}
    notes.ignored.update(f"message.{key}" for key in ignored)
    return _Turn(label, _role(label, message[pair[0]], notes), message[pair[1]])


def _role(label: str, role: Any, notes: Notes) -> str | None:
    if isinstance(role, str) and role in ROLES:
        return ROLES[role]
    if role in TOOL_ROLES:
        notes.say(
            "tool-role",
            _('{label} has the role "{role}": tool use is not supported', label=label, role=role),
            fix=_("remove the sample"),
        )
        return None
    near = difflib.get_close_matches(str(role).strip().lower(), ROLES, n=1)
    near = ["system"] if role == "developer" else near
    fix = _('did you mean "{role}"?', role=near[0]) if near else _("use system, user (human) or assistant (gpt)")
    notes.say(
        "unknown-role",
        _("{label} has the role {role}", label=label, role=json.dumps(role, ensure_ascii=False)),
        fix=fix,
    )
    return None


# --- checks ----------------------------------------------------------------------------------------------------------


def _messages(turns: list[_Turn], notes: Notes) -> tuple[Message, ...] | None:
    """The checked messages of a sample, None after a finding."""
    before = notes.errors
    contents = [_content(turn, notes) for turn in turns]
    roles = [turn.role for turn in turns]
    if None not in roles:
        _check_order(turns, notes)
    if None in roles or notes.errors > before:
        return None
    return tuple(Message(str(role), str(content)) for role, content in zip(roles, contents, strict=True))


def _content(turn: _Turn, notes: Notes) -> str | None:
    """A turn's text, NFC-normalised; None after a finding."""
    content, label = turn.content, turn.label
    if isinstance(content, list) and content:
        bad = [part for part in content if not _is_text_part(part)]
        if bad:
            what = _("{label} has the part {part}", label=label, part=json.dumps(bad[0], ensure_ascii=False)[:40])
            notes.say("content-parts", what, fix=_('only {"type": "text", "text": "…"} parts can be learned'))
            return None
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        notes.say("content-not-text", _("the content of {label} is {kind}, not text", label=label, kind=_kind(content)))
        return None
    if not any(character.isprintable() and not character.isspace() for character in content):
        what = _("{label} is empty", label=label) if not content else _("{label} is white space only", label=label)
        fix = _("write its text or remove the sample")
        if turn.role == "system":
            fix = _("remove the message; data.system = '' gives samples without one an empty system message")
        notes.say("empty-content", what, fix=fix)
        return None
    check_characters(label, content, notes)
    normal = unicodedata.normalize("NFC", content)
    if normal != content:
        notes.normalised.append(notes.where)
    return normal


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def check_characters(label: str, content: str, notes: Notes) -> None:
    bad = CONTROL.search(content)
    if bad and bad[0] >= "\ud800":
        what = _(
            "{label} has half a surrogate pair, U+{code:04X}, at character {at}",
            label=label,
            code=ord(bad[0]),
            at=bad.start() + 1,
        )
        notes.say(
            "lone-surrogate",
            what,
            why=_("a character (often an emoji) was cut in two and is no text any more"),
            fix=_("write the whole character again"),
        )
    elif bad:
        what = _(
            "{label} has the control character U+{code:04X} at character {at}",
            label=label,
            code=ord(bad[0]),
            at=bad.start() + 1,
        )
        notes.say("control-character", what, fix=_("remove it"))
    if "\ufffd" in content:
        what = _(
            "{label} has the replacement character U+FFFD at character {at}",
            label=label,
            at=content.index("\ufffd") + 1,
        )
        notes.say("replacement-character", what, why=_("an earlier conversion lost text here"), level="warning")


def _check_order(turns: list[_Turn], notes: Notes) -> None:
    """System first if at all, then user and assistant in turn, the assistant last."""
    spoken = turns[1:] if turns[0].role == "system" else turns
    if any(turn.role == "system" for turn in spoken):
        late = next(turn for turn in spoken if turn.role == "system")
        what = _("{label} is a system message, but comes after {first}", label=late.label, first=turns[0].label)
        notes.say("system-not-first", what, fix=_("move its text to the first message"))
        return
    if not spoken:
        notes.say("nothing-to-learn", _("the sample has a system message only"))
        return
    if spoken[0].role != "user":
        notes.say(
            "starts-with-assistant",
            _("{label} speaks first, as assistant", label=spoken[0].label),
            fix=_("put the user's message before it or remove it"),
        )
    for one, other in pairwise(spoken):
        if one.role == other.role:
            what = _("{one} and {other} are both {role}", one=one.label, other=other.label, role=one.role)
            notes.say(
                "same-role-twice",
                what,
                why=_("chat models are trained on turns that alternate"),
                fix=_("join them into one message"),
            )
    if spoken[-1].role != "assistant":
        notes.say(
            "ends-with-user",
            _("the last message, {label}, is the user's", label=spoken[-1].label),
            why=_("there is no answer to learn"),
            fix=_("add the assistant's answer or remove the message"),
        )


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The items in one line, at most SHOWN of them."""
    more = _(" and {count} more", count=len(items) - SHOWN) if len(items) > SHOWN else ""
    return separator.join(items[:SHOWN]) + more


def _kind(value: Any) -> str:
    """What people call a JSON value: text, a number, a list, an object, true or false, null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return _("true or false")
    names = {str: _("text"), int: _("a number"), float: _("a number"), list: _("a list"), dict: _("an object")}
    return names[type(value)]
