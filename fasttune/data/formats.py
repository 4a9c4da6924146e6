"""From a record to a checked conversation: which format its keys make, and who says what in it.

    value ── _format ──► "Alpaca" ── _turns ──► Turn(label, role, content)… ── messages.checked ──► Message…

Four formats, recognized by the keys of a record (data/formats/ has a small file of each): `messages` (OpenAI/ChatML),
`conversations` (ShareGPT), `instruction`/`output` (Alpaca), `prompt`/`completion`. Nothing is repaired silently. What
records of other formats resemble, other_formats.py says.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from fasttune.console import N_, _
from fasttune.data import other_formats
from fasttune.data.loss_mask import MASKS, SPANS, check_record, learned
from fasttune.data.messages import Label, Message, Notes, Turn, checked, json_type, listed

# format -> (keys that make it, keys that may come with them); `system` is understood in all of them
FORMATS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "messages": (frozenset({"messages"}), frozenset()),
    "ShareGPT": (frozenset({"conversations"}), frozenset()),
    "Alpaca": (frozenset({"instruction", "output"}), frozenset({"input", "history"})),
    "prompt/completion": (frozenset({"prompt", "completion"}), frozenset()),
}
# What a message is called in findings, with its `{number}` and `{key}` (messages.Label).
QUESTION_LABEL, ANSWER_LABEL = N_("history {number}, question"), N_("history {number}, answer")
MESSAGE_LABEL, MESSAGE_OF_KEY_LABEL = N_("message {number}"), N_('message {number} of "{key}"')
LABELS = (QUESTION_LABEL, ANSWER_LABEL, MESSAGE_LABEL, MESSAGE_OF_KEY_LABEL)
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
# Keys whose content would change what the model sees or says: a sample without them is another one.
REASONING = ("reasoning_content", "reasoning", "thinking", "thoughts")
MEDIA = ("images", "image", "image_url", "videos", "video", "audios", "audio")
SYSTEM_NAMES = ("system_prompt", "system_message", "sys_prompt", "system_instruction", "systemInstruction")
TEXT_BESIDE = (
    "context",
    "input",
    "history",
    "instruction",
    "question",
    "documents",
)  # beside Alpaca, prompt/completion
MESSAGE_CONTENT = (*REASONING, *MEDIA)
PLAIN = {"role", "content"}  # the keys of a message without anything to look into
MARK = "made_from"  # key of a record that `fasttune augment` wrote: {"sheet": file, "facts": [id, …]}
RECORD_CONTENT = ("tools", "functions", *REASONING, *MEDIA, *SYSTEM_NAMES)


def conversation(value: Any, notes: Notes) -> tuple[str | None, tuple[Message, ...] | None]:
    """The format of a record and its checked messages, each None where a finding in `notes` says why.

    `value` is any JSON value. The format is one of FORMATS.
    """
    name = _format(value, notes)
    turns = None if name is None else _turns(name, value, notes)
    return name, None if turns is None else checked(turns, notes)


# --- a record's format -----------------------------------------------------------------------------------------------


def _format(value: Any, notes: Notes) -> str | None:
    """The format that a record's keys make; None after a finding, where they make none or several."""
    if not isinstance(value, dict):
        fix = _('write each conversation as an object: {"messages": […]}')
        notes.add("not-an-object", _("this is {kind}, not an object", kind=json_type(value)), fix=fix)
        return None
    found = [name for name, (needed, _optional) in FORMATS.items() if needed <= value.keys()]
    if len(found) > 1:
        what = _("the record is {formats} at once", formats=listed(found, " + "))
        notes.add("ambiguous-format", what, why=_("the format is unclear"), fix=_("keep the keys of one of them"))
        return None
    problem = other_formats.obstacle(value, found, FORMATS, path=notes.where.rpartition(":")[0])
    if problem is not None:
        notes.add(problem.code, problem.what, why=problem.why, fix=problem.fix)
        return None
    needed, optional = FORMATS[found[0]]
    unknown = value.keys() - needed - optional - {"system"} - ({MARK} if made_from(value) else set())
    texts = TEXT_BESIDE if found[0] in ("Alpaca", "prompt/completion") else ()
    _check_keys("", value, unknown, (*RECORD_CONTENT, *texts), notes)
    check_record(value, notes)
    return found[0]


def made_from(value: Any) -> str:
    """The mark of a record that was made of a fact sheet, as "facts.toml#cat-name+price"; "" for any other record.

    It is no part of what is trained on.
    """
    mark = value.get(MARK) if isinstance(value, dict) else None
    if not isinstance(mark, dict) or not isinstance(mark.get("sheet"), str) or not isinstance(mark.get("facts"), list):
        return ""
    return f"{mark['sheet']}#{'+'.join(map(str, mark['facts']))}"


def _check_keys(
    label: str | Label, holder: dict[str, Any], keys: AbstractSet[str], contents: Sequence[str], notes: Notes
) -> None:
    """Add a finding for each of `contents` that holds something; count the other keys as ignored.

    `label` names the message that has the keys; it is empty for the record itself.
    """
    for key in sorted(keys):
        if key not in contents or _is_nothing(holder[key]):
            notes.ignored[f"message.{key}" if label else key] += 1
            continue
        subject = label or _("the record")
        what = _('{subject} has "{key}", which fasttune does not train on', subject=subject, key=key)
        notes.add("unsupported-key", what, why=_("without it the sample means something else"), fix=_remedy(key))


def _is_nothing(value: Any) -> bool:
    """Whether a value holds nothing, also where it is written as text, as data sets of Hugging Face have it."""
    if isinstance(value, (list, tuple)):
        return all(_is_nothing(inner) for inner in value)
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null", "None"))


def _remedy(key: str) -> str:
    """What to do about a key whose content would be lost."""
    if key in SYSTEM_NAMES:
        return _('rename the key to "system"')
    if key in TEXT_BESIDE:
        return _("write its text into the question, or remove the key")
    if key in REASONING:
        return _('write it into the content ("<think>…</think>" before the answer), or remove the key')
    return _("remove the key or the sample")


# --- a record's turns ------------------------------------------------------------------------------------------------


def _turns(name: str, value: dict[str, Any], notes: Notes) -> list[Turn] | None:
    """The turns of a record of format `name`, contents unchecked; None after a finding about the record's shape."""
    system = [Turn('"system"', "system", value["system"])] if value.get("system") not in (None, "") else []
    if name == "Alpaca":
        turns = _alpaca(value, notes)
    elif name == "prompt/completion":
        turns = _prompt_completion(value, notes)
    else:
        key = "messages" if name == "messages" else "conversations"
        turns = _message_list(key, value[key], notes)
    return None if turns is None else system + turns


def _alpaca(value: dict[str, Any], notes: Notes) -> list[Turn] | None:
    """The history's pairs, then instruction (joined with the input by a line break) and output."""
    turns = []
    history = value.get("history") or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        notes.add(
            "bad-history",
            _('"history" is not a list of [question, answer] pairs'),
            fix=_('write "history": [["question", "answer"], …]'),
        )
        return None
    for number, (question, answer) in enumerate(history, 1):
        turns.append(Turn(Label(QUESTION_LABEL, number), "user", question))
        turns.append(Turn(Label(ANSWER_LABEL, number), "assistant", answer))
    question = value["instruction"]
    if value.get("input") not in (None, ""):
        parts = [question, value["input"]]
        if all(isinstance(part, str) for part in parts):
            question = "\n".join(part for part in parts if part)
        else:
            question = value["input"] if isinstance(question, str) else question
    return [*turns, Turn('"instruction"', "user", question), Turn('"output"', "assistant", value["output"])]


def _prompt_completion(value: dict[str, Any], notes: Notes) -> list[Turn] | None:
    """Two texts, the user's and the assistant's, or two lists of messages joined (TRL's prompt-completion format)."""
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _message_list("prompt", prompt, notes)
        after = _message_list("completion", completion, notes)
        return None if before is None or after is None else before + after
    if isinstance(prompt, list) or isinstance(completion, list):
        notes.add(
            "prompt-shape",
            _('of "prompt" and "completion" one is a list of messages, the other is not'),
            fix=_("write both as text or both as lists"),
        )
        return None
    return [Turn('"prompt"', "user", prompt), Turn('"completion"', "assistant", completion)]


def _message_list(key: str, messages: Any, notes: Notes) -> list[Turn] | None:
    """The turns of a list of messages, which stands under `key` in the record; None after a finding."""
    if not isinstance(messages, list):
        fix = _("write the list itself, without quotation marks around it") if isinstance(messages, str) else ""
        what = _('"{key}" is {kind}, not a list of messages', key=key, kind=json_type(messages))
        notes.add("not-a-list", what, fix=fix)
        return None
    if not messages:
        fix = _("remove the record or write its messages")
        notes.add("no-messages", _('"{key}" is an empty list', key=key), fix=fix)
        return None
    whole = key in ("messages", "conversations")
    name = MESSAGE_LABEL if whole else MESSAGE_OF_KEY_LABEL
    turns = [_turn(Label(name, number, key), message, notes) for number, message in enumerate(messages, 1)]
    return [turn for turn in turns if turn is not None] if None not in turns else None


def _turn(label: Label, message: Any, notes: Notes) -> Turn | None:
    """One message with OpenAI's keys (role, content) or ShareGPT's (from, value); None after a finding."""
    if isinstance(message, dict) and message.keys() == PLAIN and isinstance(message["content"], str):
        return Turn(label, _role(label, message["role"], notes), message["content"])  # nearly all are like this
    if not isinstance(message, dict):
        notes.add("not-a-message", _("{label} is {kind}, not an object", label=label, kind=json_type(message)))
        return None
    pair = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    calls = [key for key in ("tool_calls", "function_call") if not _is_nothing(message.get(key))]
    if calls:
        notes.add(
            "tool-calls",
            _('{label} has "{key}": tool use is not supported', label=label, key=calls[0]),
            fix=_("remove the sample"),
        )
        return None
    missing = [key for key in pair if key not in message]
    if missing:
        absent, keys = listed(missing, '", "'), listed(sorted(message)) or _("none")
        what = _('{label} has no "{missing}"; its keys are {keys}', label=label, missing=absent, keys=keys)
        notes.add("message-keys", what, fix=_('write {"role": "user", "content": "…"}'))
        return None
    _check_keys(
        label, message, message.keys() - {*pair, *MASKS, *SPANS, "tool_calls", "function_call"}, MESSAGE_CONTENT, notes
    )
    content = message[pair[1]]
    return Turn(label, _role(label, message[pair[0]], notes), content, learned(label, message, content, notes))


def _role(label: Label, role: Any, notes: Notes) -> str | None:
    """The role under its name here: system, user or assistant; None after a finding."""
    if isinstance(role, str) and role in ROLES:
        return ROLES[role]
    if role in TOOL_ROLES:
        notes.add(
            "tool-role",
            _('{label} has the role "{role}": tool use is not supported', label=label, role=role),
            fix=_("remove the sample"),
        )
        return None
    near = difflib.get_close_matches(str(role).strip().lower(), ROLES, n=1)
    near = ["system"] if role == "developer" else near
    fix = _('did you mean "{role}"?', role=near[0]) if near else _("use system, user (human) or assistant (gpt)")
    notes.add(
        "unknown-role",
        _("{label} has the role {role}", label=label, role=json.dumps(role, ensure_ascii=False)),
        fix=fix,
    )
    return None
