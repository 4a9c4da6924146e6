"""What is measured and must not be trained on: the questions of a fact sheet, and held-out conversations.

A text is *like* a measured one where their trigrams are similar (near_duplicates.SIMILAR), marks and particles counted
or not, or where it holds the whole of it: a lead-in before a measured question is still that question. A short held-out
answer ("二十六。") is the fact itself and stands in every answer that says it, so that only a longer one counts there.
"""

from __future__ import annotations

from collections.abc import Iterable

from fasttune.data.near_duplicates import SIMILAR, jaccard, normal, trigrams

QUESTION_LETTERS, ANSWER_LETTERS = 3, 12  # of a measured text that is no accident inside another one


class Measured:
    """Texts that a training sample may not repeat."""

    def __init__(self, texts: Iterable[str], least_held: int = QUESTION_LETTERS) -> None:
        """Their trigrams are made once; one of fewer letters than `least_held` may stand inside another text."""
        self.least_held = least_held
        self.forms = [(text, normal(text), trigrams(text), trigrams(normal(text))) for text in dict.fromkeys(texts)]

    def like(self, text: str) -> str | None:
        """The first measured text that this one repeats; None where it repeats none."""
        plain = normal(text)
        grams, plain_grams = trigrams(text), trigrams(plain)
        for other, form, other_grams, form_grams in self.forms:
            if plain == form or (len(form) >= self.least_held and form in plain):
                return other
            if max(jaccard(grams, other_grams), jaccard(plain_grams, form_grams)) >= SIMILAR:
                return other
        return None
