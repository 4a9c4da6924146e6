"""What is wrong with answers, told by counting: no model judges another.

Chinese has no spaces, so similarity is counted in characters, and repetition in the units of text_figures.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from fasttune.analysis import text_figures
from fasttune.data.lint_persona import AI_PHRASE, BASE_NAMES

PARROT = 0.9  # an answer this similar to a training answer is that answer
SHORTEST = 8  # characters: shorter answers (yes, hello) are alike by nature
# An answer babbles where this share of its 4-grams stand in it before: ordinary Chinese and English prose of a hundred
# characters comes to less than 0.1.
REPEATED, LONG_ENOUGH = 0.4, 24
# An answer that says nothing new any more is stopped while it is generated: a loop, of which this much must be there.
LONGEST_LOOP = 100  # characters of the stretch that a loop repeats
LOOP_CHARACTERS = 60  # "哈哈哈哈哈哈" is an answer; a loop is longer,
LOOP_TIMES = 4  # and says the same at least this often
# What is wrong in data (lint_persona.py), and words that a sample may use but that no answer about the character needs.
OUT_OF_CHARACTER = re.compile(
    rf"{BASE_NAMES.pattern}|{AI_PHRASE.pattern}|通义|an ai (?:language )?model|language model|"
    r"作为一?[个名位]?(?:ai|人工智能)|(?:人工智能|ai|语言)(?:语言)?(?:模型|助手)|大模型",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """A text without blanks and punctuation, in small letters."""
    return "".join(one for one in text.lower() if one.isalnum())


def similarity(one: str, other: str, least: float = 0.0) -> float:
    """1 - edit distance / length of the longer text (Levenshtein, normalized); 0 where it is below `least`."""
    if not one or not other:
        return float(one == other)
    length = max(len(one), len(other))
    most = int((1 - least) * length + 1e-9)  # edits
    common = sum((Counter(one) & Counter(other)).values())
    if length - common > most:
        return 0.0
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        here = [row]
        for column, against in enumerate(other, 1):
            here.append(min(before[column] + 1, here[-1] + 1, before[column - 1] + (letter != against)))
        if min(here) > most:
            return 0.0
        before = here
    return 1 - before[-1] / length if before[-1] <= most else 0.0


def parroted(answer: str, known: Iterable[tuple[str, str]]) -> tuple[str, float] | None:
    """The training answer that an answer repeats: its sample's name and the similarity. `known` are (name, plain
    text)."""
    text = plain(answer)
    if len(text) < SHORTEST:
        return None
    found = [(name, similarity(text, other, PARROT)) for name, other in known]
    best = max(found, key=lambda one: one[1], default=("", 0.0))
    return best if best[1] >= PARROT else None


def repeated_share(answer: str) -> float:
    """The repetition of a whole answer (text_figures.py); 0 for a short one. It judges an answer that has ended, also
    one that varies what it repeats; find_loop ends one."""
    return text_figures.repetition(answer) if len(plain(answer)) >= LONG_ENOUGH else 0.0


def find_loop(text: str) -> int:
    """How many characters at the end of a text repeat what stands before them, 0 where it is no loop.

    A loop says the same stretch of up to LONGEST_LOOP characters at least LOOP_TIMES times and over at least
    LOOP_CHARACTERS; all but its first time are counted.
    """
    for length in range(1, LONGEST_LOOP + 1):
        times = max(LOOP_TIMES, math.ceil(LOOP_CHARACTERS / length))
        if len(text) >= length * times and text.endswith(text[-length:] * times):
            return length * (times - 1)
    return 0


def out_of_character(answer: str, training_answers: Sequence[str]) -> str:
    """The words with which an answer falls out of character: the base's own name, or that it is a model; "" where the
    training answers say them too, or it says none."""
    match = OUT_OF_CHARACTER.search(answer)
    if match is None or any(OUT_OF_CHARACTER.search(one) for one in training_answers):
        return ""
    return match[0]
