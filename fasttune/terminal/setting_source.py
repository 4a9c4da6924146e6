"""Where a setting's value comes from, in the user's language: plan.json holds it in English, and scripts read that."""

from __future__ import annotations

import re
from collections.abc import Callable

from fasttune.analysis import words
from fasttune.console import N_, _, ngettext

WORDS = N_("recipe"), N_("override"), N_("default")
# What the planning writes in brackets, and the message that says the same; all of it ends in the bracket.
REASONS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"auto: (\d+) samples?",
     lambda found: ngettext("auto: {n} sample", "auto: {n} samples", int(found[1]))),
    (r"auto: (\S+) epochs? of (\d+) samples?, alpha (\d+)",
     lambda found: _("auto: {epochs} of {samples}, alpha {alpha}", epochs=words.epochs_word(float(found[1])),
                     samples=ngettext("{n} sample", "{n} samples", int(found[2])), alpha=found[3])),
    (r"auto: the processor has (.+)", lambda found: _("auto: the processor has {instructions}", instructions=found[1])),
    (r"auto: (\S+)", lambda found: _("auto: as {run}", run=found[1])),
    (r"constant has no warmup", lambda _found: _("constant has no warmup")),
    (r"(\S+) counts", lambda found: _("{key} counts", key=found[1])),
)  # fmt: skip


def source_word(source: str) -> str:
    """A source for people: `recipe`, `default (2 × r)`, `parent run linzhi/001-fresh`; what is not known as it is."""
    if run := source.removeprefix("parent run ") if source.startswith("parent run ") else "":
        return _("parent run {run}", run=run)
    word, sign, more = source.partition(" (")
    word = _("left out") if word == "left out" else _(word)
    return _("{source} ({reason})", source=word, reason=reason(more.removesuffix(")"))) if sign else word


def reason(text: str) -> str:
    """What stands in the brackets of a source."""
    for pattern, said in REASONS:
        if found := re.fullmatch(pattern, text):
            return said(found)
    return text
