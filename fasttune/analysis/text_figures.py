"""Figures of a model's answers that need no judge: length, repetition, how many of them begin differently.

A text is cut into units: a character outside ASCII, or a word of ASCII letters and digits; marks and spaces don't
count. So one measure serves Chinese and English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNIT = re.compile(r"[0-9A-Za-z]+|[^\W_]")
GRAM = 4  # units of a repeated stretch, and of an opening


def units(text: str) -> list[str]:
    """The units of a text, in small letters."""
    return UNIT.findall(text.lower())


def repetition(text: str) -> float:
    """The share of a text's stretches of four units that occurred in it before: 0 for none, near 1 for babble."""
    found = units(text)
    grams = [tuple(found[start : start + GRAM]) for start in range(len(found) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_openings(texts: Sequence[str]) -> float:
    """The share of different beginnings among texts: their first four units; 1 where all begin differently."""
    openings = [tuple(units(text)[:GRAM]) for text in texts]
    return len(set(openings)) / len(openings) if openings else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean, 0 for none."""
    return sum(values) / len(values) if values else 0.0
