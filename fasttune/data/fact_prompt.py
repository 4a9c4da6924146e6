"""The system prompt that a model is served with where export.prompt is "facts": the trained one and below it the facts.

A small model keeps few facts of its samples, and reads those in its prompt well. Each fact is its `text` as the sheet
states it. Those that stand in the trained prompt (source = "system") are not said twice.
"""

from __future__ import annotations

from fasttune.data.fact_sheet import FactSheet
from fasttune.data.matching import CHINESE

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
