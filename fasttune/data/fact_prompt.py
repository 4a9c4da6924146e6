"""The system prompt with facts: a persona's own one, and below it the facts of a sheet.

data.system_facts trains with it and serves it; export.prompt = "facts" serves it to a model trained with the bare one.

A small model keeps few facts of its samples, and reads those in its prompt well. Each fact is its `text` as the sheet
states it. Those that stand in the trained prompt (source = "system") are not said twice.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.console import UsageError
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.data.matching import CHINESE
from fasttune.data.messages import Message, Notes, Sample, check_characters
from fasttune.recipe.schema import DataRecipe

FULL_STOPS = "。！？.!?"
CHINESE_HEADING = "下面是关于你的事，“她”“他”说的就是你，问到了照着说："
ENGLISH_HEADING = 'What follows is true of you; "she" and "he" mean you. Asked about it, say so:'


def with_facts(system: str | None, sheet: FactSheet) -> str:
    """The system prompt with the facts of a sheet in plain sentences; those alone where there is no prompt."""
    told = [fact.text.strip() for fact in sheet.facts if fact.source == "data" or not system]
    if not told:
        return system or ""
    is_chinese = any(CHINESE.search(text) for text in told)
    stop, joint = ("。", "") if is_chinese else (".", " ")
    sentences = [text if text.endswith(tuple(FULL_STOPS)) else text + stop for text in told]
    facts = f"{CHINESE_HEADING if is_chinese else ENGLISH_HEADING}\n{joint.join(sentences)}"
    return f"{system}\n\n{facts}" if system else facts


def sheet_to_tell(recipe: DataRecipe) -> FactSheet | None:
    """The fact sheet of data.system_facts, None where there is none.

    Raises UsageError where it can't be used, or a fact holds characters that no sample may.
    """
    if not recipe.system_facts:
        return None
    sheet = read_fact_sheet(Path(recipe.system_facts))
    notes = Notes(where=recipe.system_facts)
    for fact in sheet.facts:
        check_characters(fact.id, fact.text, notes)
    if notes.findings:
        raise UsageError(*notes.findings)
    return sheet


def tell_facts(samples: Sequence[Sample], sheet: FactSheet | None, train: Sequence[Sample]) -> list[Sample]:
    """The samples with the facts of a sheet below their system prompt; with None all of them unchanged.

    Where prompts differ it is the one that most of `train` have, or none, that gets the facts; the others say who else
    speaks.
    """
    persona = Counter(map(system_of, train)).most_common(1)[0][0] if train else None
    text = with_facts(persona, sheet) if sheet else ""
    if not text:
        return list(samples)
    message = Message("system", unicodedata.normalize("NFC", text))
    return [with_message(sample, message) if system_of(sample) == persona else sample for sample in samples]


def with_message(sample: Sample, message: Message) -> Sample:
    """The sample with this system message, in place of its own where it has one."""
    turns = sample.messages if system_of(sample) is None else sample.messages[1:]
    return replace(sample, messages=(message, *turns))


def system_of(sample: Sample) -> str | None:
    """The system prompt of a sample, None where it has no system message."""
    first = sample.messages[0]
    return first.content if first.role == "system" else None
