"""chrF: how much an answer shares with a reference in character n-grams, by sacrebleu (Popović 2015). 0 to 100.

Characters need no segmentation, so Chinese and English are treated alike. The only home of sacrebleu.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF


def corpus_chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """The chrF of all answers against their references together."""
    return float(CHRF().corpus_score(list(answers), [list(references)]).score)


def sentence_chrf(answer: str, reference: str) -> float:
    """The chrF of one answer."""
    return float(CHRF().sentence_score(answer, [reference]).score)
