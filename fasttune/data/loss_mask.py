"""What a file excludes from training: messages, parts of them, whole samples, and answers that it calls bad.

Trainers write it under several keys: `weight` (OpenAI), `train`, `training` (axolotl), `loss` (ms-swift), `loss_weight`
(LLaMA-Factory). 0 or false: the message is context, and no loss is taken on it. What can't be followed (half a weight,
a part of a message) is a finding: learned in full, it would teach what the file excludes.
"""

from __future__ import annotations

import json
from typing import Any

from fasttune.console import _
from fasttune.data.messages import Label, Notes

MASKS = ("weight", "train", "training", "loss", "loss_weight", "loss_scale")  # of a message, or of a part of one
SPANS = ("train_detail", "training_detail")  # axolotl: character ranges of a message
LABELS = ("label", "kto_tag")  # KTO: whether the sample's answer is a good one
NO = ("false", "no", "0")


def learned(label: str | Label, message: dict[str, Any], content: Any, notes: Notes) -> bool:
    """Whether the loss may be taken on a message; adds a finding where its file asks for what can't be done."""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    said = [[_says(label, key, one[key], notes) for key in MASKS if key in one] for one in (message, *parts)]
    of_message, *of_parts = map(all, said)
    if any(message.get(key) for key in SPANS) or (any(of_parts) and not all(of_parts)):
        notes.add(
            "message-weight",
            _("{label} excludes a part of its content from training, which can't be done", label=label),
            why=_("learned in full, it would teach what the file excludes"),
            fix=_("keep the part that is to be learned, or exclude the whole message with weight 0"),
        )
    return of_message and (any(of_parts) or not of_parts)


def _says(label: str | Label, key: str, value: Any, notes: Notes) -> bool:
    """Whether a key lets its message be learned: 1, true or null does; what is neither 1 nor 0 is a finding."""
    if value is None or (isinstance(value, (bool, int, float)) and value in (0, 1)):
        return value is None or bool(value)
    shown = _json(value)
    what = _('{label} has "{key}": {value}; a message is learned (1) or not (0)', label=label, key=key, value=shown)
    notes.add("message-weight", what, fix=_("write 1 or 0, as a number, or remove the key"))
    return True


def check_record(value: dict[str, Any], notes: Notes) -> None:
    """Add a finding where a record as a whole is not to be learned, or its answer is a bad one."""
    for key in LABELS:
        if key in value and (value[key] in (0, False) or str(value[key]).strip().lower() in NO):
            shown = _json(value[key])
            what = _('the sample has "{key}": {value}, which marks a bad answer (KTO)', key=key, value=shown)
            why = _("trained on, it would be learned like a good one")
            fix = _("keep only the samples with good answers; remove the key if it means something else")
            notes.add("preference-data", what, why=why, fix=fix)
    for key in ("sample_weight", *MASKS):
        if value.get(key) is not None:
            _check_weight(key, value[key], notes)


def _check_weight(key: str, weight: Any, notes: Notes) -> None:
    """Add a finding for a weight of the whole sample other than 1; a loss that was measured is none, nor is a text
    such as "train": "first part"."""
    is_number = isinstance(weight, (int, float))
    if not is_number and key in ("train", "training"):
        return
    if (is_number and weight == 1) or (key in ("loss", "loss_scale") and not isinstance(weight, bool)):
        return
    if is_number and weight == 0:
        what = _('the sample has "{key}": {value}, which excludes it from training', key=key, value=_json(weight))
        fix = _("remove the sample, or the key to train on it")
    else:
        what = _('the sample has "{key}": {value}; all samples count the same', key=key, value=_json(weight))
        fix = _("remove the key to train on it like on any other")
    notes.add("message-weight", what, fix=fix)


def _json(value: Any) -> str:
    """A value as the file has it, in a few characters."""
    return json.dumps(value, ensure_ascii=False)[:40]
