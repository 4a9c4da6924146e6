"""What is wrong with a text whatever it says: encoding damage, control tokens, invisible characters, space around it.

    Sample ── findings ──► Finding…        text ── mended ──► (text, what was done)

Encoding damage is recognized by undoing it: a text that was UTF-8 and was read as Windows-1252 or GBK becomes valid
UTF-8 again when it is written in that encoding, which correct text does not. Only such damage is mended.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

from fasttune.console import Finding, _, ngettext
from fasttune.data.dataset import PLACEHOLDER, Message, Sample
from fasttune.data.messages import CONTROL
from fasttune.decoding import FREQUENT

# Control tokens of the usual chat templates and tokenizers. <think> is not among them: reasoning is written with it.
CONTROL_TEXT = re.compile(
    r"<\|[A-Za-z_][\w ]*\|>|<｜[^｜>\n]{1,30}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|"
    r"<(?:unk|pad|bos|eos|mask)>|\[(?:UNK|PAD|CLS|SEP|MASK|EOS|BOS|gMASK)\]|^### (?:Instruction|Response|Input):",
    re.MULTILINE,
)
INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\u00ad]")  # not the joiners, which emoji need
LOST = re.compile("锟斤拷|锟叫|烫烫烫|屯屯屯|\u00ef\u00bf\u00bd")  # damage that no longer says what was there
SHORTEST_DAMAGE = 6  # bytes of Chinese that are valid UTF-8 by more than accident
MOST_LOST = 0.25  # of the characters of damaged text that can no longer be told
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def findings(sample: Sample) -> Iterator[Finding]:
    """What is wrong with the texts of a sample: at most one finding of each kind."""
    messages = [one for one in sample.messages if one.role != "system" or not is_faultless(one)]
    for rule in (encoding_damage, control_text, invisible, outer_space, placeholder):
        if found := next((one for message in messages if (one := rule(sample.id, message))), None):
            yield found
            if rule is encoding_damage:  # garbled text breaks every other rule too
                return


@functools.lru_cache(maxsize=1024)  # most samples share their system prompt
def is_faultless(message: Message) -> bool:
    """Whether no rule finds anything in a message."""
    rules = (encoding_damage, control_text, invisible, outer_space, placeholder)
    return not any(rule("", message) for rule in rules)


def control_text(where: str, message: Message) -> Finding | None:
    """Text that looks like a control token, such as <|im_end|>."""
    match = CONTROL_TEXT.search(message.content) if "<" in message.content or "[" in message.content or (
        "###" in message.content) else None  # fmt: skip
    if match is None:
        return None
    what = _("the {role}'s text holds {token}, which looks like a control token", role=message.role, token=match[0])
    why = _("it is trained on as plain text, and what serves the model may read it as the control token")
    fix = _("if the chat template was already applied to the data, undo that; else remove the text")
    return Finding("control-text", "warning", where, what, why, fix)


def encoding_damage(where: str, message: Message) -> Finding | None:
    """Text that was read in another encoding than it was written in."""
    text = message.content
    if text.isascii() or "\ufffd" in text:  # U+FFFD is a finding of the reader
        return None
    better = undamaged(text)
    if better != text:
        fix = _("it should begin '{text}'; `--fix OUT` mends it", text=better.strip()[:20])
    elif LOST.search(text) or is_beyond_mending(text):
        fix = _("a part of it is lost: write the text again, or remove the sample")
    else:
        return None
    what = _("the {role}'s text was read in a wrong encoding: '{text}'", role=message.role, text=text.strip()[:20])
    return Finding("encoding-damage", "warning", where, what, _("the model would learn the garbled text"), fix)


def invisible(where: str, message: Message) -> Finding | None:
    """Characters that nobody sees and that a tokenizer does."""
    match = INVISIBLE.search(message.content)
    if match is None:
        return None
    what = _("the {role}'s text holds the invisible character U+{code:04X} at character {at}", role=message.role,
             code=ord(match[0]), at=match.start() + 1)  # fmt: skip
    why = _("it becomes tokens that a person who types the same words does not write")
    return Finding("invisible-character", "warning", where, what, why, _("remove it; `--fix OUT` does"))


def outer_space(where: str, message: Message) -> Finding | None:
    """White space before or after a text."""
    if message.content == message.content.strip():
        return None
    what = _("the {role}'s text begins or ends with white space", role=message.role)
    why = _("it becomes tokens of its own, which the model learns or expects")
    return Finding("outer-space", "info", where, what, why, _("remove it; `--fix OUT` does"))


def placeholder(where: str, message: Message) -> Finding | None:
    """A template field in an answer that was never filled, such as {{name}}."""
    match = PLACEHOLDER.search(message.content) if message.role == "assistant" and message.learn else None
    if match is None:
        return None
    what = _("the answer holds a field that was never filled: {field}", field=match[0])
    why = _("the model would learn to say it as it stands")
    return Finding("placeholder", "warning", where, what, why, _("write the name in its place"))


# Mending ------------------------------------------------------------------------------------------------------------


def mended(text: str) -> tuple[str, list[str]]:
    """The text with what can be mended safely, and what was done, in words: encoding, control and invisible characters,
    white space around it."""
    done = []
    if (better := undamaged(text)) != text:
        text = better
        done.append(_("its encoding undone: it begins '{text}' now", text=text.strip()[:20]))
    for characters, name in ((CONTROL, _("control")), (INVISIBLE, _("invisible"))):
        better, count = characters.subn("", text)
        if count and not re.search("[\ud800-\udfff]", text):  # half an emoji: its other half is missing
            text = better
            done.append(ngettext("{n} {kind} character removed", "{n} {kind} characters removed", count, kind=name))
    if text != text.strip() and text.strip():
        count = len(text) - len(text.strip())
        text = text.strip()
        done.append(ngettext("{n} character of white space around it removed",
                             "{n} characters of white space around it removed", count))  # fmt: skip
    return text, done


@functools.lru_cache(maxsize=1024)  # of many samples the system prompt is the same, and the longest text
def undamaged(text: str) -> str:
    """The text, with what was UTF-8 and was read as Windows-1252 or GBK as UTF-8 again; unchanged where nothing was."""
    return text if text.isascii() else NOT_ASCII.sub(lambda match: reread(match[0]), text)


def reread(text: str) -> str:
    """A run of characters outside ASCII as UTF-8 again; unchanged where it was not read wrongly, as all but all correct
    text shows by not being valid UTF-8 then."""
    if not FREQUENT.isdisjoint(text):
        return text  # damaged text has none of the commonest characters and marks
    for raw, least in ((as_windows_1252(text), 2), (as_gb18030(text), SHORTEST_DAMAGE)):
        if raw is not None and len(raw) >= least:
            with contextlib.suppress(UnicodeDecodeError):
                return raw.decode("utf-8")
    return text


def as_windows_1252(text: str) -> bytes | None:
    """The text's bytes in Windows-1252, its gaps filled by Latin-1 as browsers do; None where it has others."""
    if max(text) > "\u2122":  # the highest of Windows-1252
        return None
    with contextlib.suppress(UnicodeEncodeError):
        return b"".join(one.encode("cp1252", "ignore") or one.encode("latin-1") for one in text)
    return None


def as_gb18030(text: str) -> bytes | None:
    """The text's bytes in GB18030; None where a half of a surrogate pair stands in it."""
    with contextlib.suppress(UnicodeEncodeError):
        return text.encode("gb18030")
    return None


def is_beyond_mending(text: str) -> bool:
    """Whether a text was UTF-8 and was read as GBK, with losses: undone as far as it goes it reads like Chinese."""
    if not FREQUENT.isdisjoint(text):
        return False
    better = (as_gb18030(text) or b"").decode("utf-8", "replace")
    lost = better.count("\ufffd")
    return len(better) - lost >= 4 and lost <= MOST_LOST * len(better) and sum(map(FREQUENT.__contains__, better)) >= 2
