"""Which conversations are nearly the same: Jaccard similarity of their character trigrams, exact for every pair named.

    Said(question, answer) ── trigrams ──► candidates (later, earlier) ── scored exactly ──► Pair

Trigrams of characters and not of words: a Chinese sentence has no spaces and would be one word. Unrelated sentences
stay below 0.2, one with a noun swapped reaches 0.5 and more (docs/linzhi.md), hence the threshold. White space does not
count.
Two conversations are nearly the same where both their questions and their answers are: another wording of a question
with the same answer is what good data have on purpose.

Candidates come from an inverted index over the rarest trigrams of each answer, which misses no pair above the threshold
(prefix filtering: Chaudhuri, Ganti, Kaushik, "A primitive operator for similarity joins in data cleaning", ICDE 2006).
Above EXACT_UP_TO conversations they come from MinHash with banding (rensa), which may miss a pair close to the
threshold and never names one below it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
PARTICLES = re.compile("[吗呢呀啊吧哦嘛了]+$")
SIMILAR = 0.5  # Jaccard similarity from which on two texts are nearly the same
EXACT_UP_TO = 20_000  # conversations that the inverted index takes
# A pair of similarity s becomes a candidate with probability 1 - (1 - s^4)^64: 0.98 at 0.5, 0.9998 at 0.6.
BANDS, BAND_ROWS, SEED = 64, 4, 3407
HASHED_AT_ONCE = 1_000  # texts whose trigrams are in memory together
MOST_SCORED = 2_000  # candidates of one conversation; only an answer that thousands share has more


@dataclass(frozen=True)
class Said:
    """All that the user says in a conversation, and all that the assistant says."""

    question: str
    answer: str


class Grams:
    """The trigrams of the two sides of a conversation, each made when it is first asked for: most pairs are told apart
    by their questions, and those of 100,000 conversations at once would take a gigabyte."""

    def __init__(self, said: Said) -> None:
        self.said = said

    @cached_property
    def question(self) -> frozenset[str]:
        return trigrams(self.said.question)

    @cached_property
    def answer(self) -> frozenset[str]:
        return trigrams(self.said.answer)


@dataclass(frozen=True)
class Pair:
    """Two conversations, by their indices, whose similarity is at least SIMILAR; `later` > `earlier`."""

    later: int
    earlier: int
    similarity: float


def trigrams(text: str) -> frozenset[str]:
    """The character trigrams of a text without its white space; of a shorter one the whole text."""
    text = "".join(text.split())
    return frozenset(text[at : at + 3] for at in range(max(1, len(text) - 2)))


def normal(text: str) -> str:
    """A text without marks and spaces, in one case and one width, its last particles left out."""
    letters = NOT_ALPHANUMERIC.sub("", unicodedata.normalize("NFKC", text).casefold())
    return PARTICLES.sub("", letters) or letters


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The size of the intersection by that of the union, of two sets that are not both empty: 0 to 1."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def similarity(one: Grams, other: Grams) -> float:
    """The similarity of two conversations: that of their questions or of their answers, whichever is less."""
    by_question = jaccard(one.question, other.question)
    return min(by_question, jaccard(one.answer, other.answer)) if by_question >= SIMILAR else by_question


def near_pairs(said: Sequence[Said], held_out: int = 0) -> list[Pair]:
    """For each conversation that is nearly the same as an earlier one its pair with the first such one, in order.

    The last `held_out` conversations are compared with all those before them, and not with each other.
    """
    train = len(said) - held_out
    answers = [one.answer for one in said]
    exactly = len(said) <= EXACT_UP_TO
    candidates = shared_trigrams([trigrams(one) for one in answers]) if exactly else shared_bands(answers)
    found = []
    for later, others in enumerate(candidates):
        grams = Grams(said[later])
        for earlier in sorted({other for other in others if other < min(later, train)})[:MOST_SCORED]:
            score = similarity(grams, Grams(said[earlier]))
            if score >= SIMILAR:
                found.append(Pair(later, earlier, score))
                break
    return found


def shared_trigrams(sets: Sequence[frozenset[str]]) -> Iterator[Iterable[int]]:
    """For each set the earlier ones that share one of its rarest trigrams: at least all that are similar to it.

    Of two sets of similarity t the rarest n - ceil(t * n) + 1 trigrams of each, ordered alike, have one in common.
    """
    frequency = Counter(gram for grams in sets for gram in grams)
    holders: dict[str, list[int]] = defaultdict(list)
    for number, grams in enumerate(sets):
        rarest = sorted((gram for gram in grams), key=lambda gram: (frequency[gram], gram))
        head = rarest[: len(rarest) - math.ceil(SIMILAR * len(rarest)) + 1]
        shared = [gram for gram in head if frequency[gram] > 1]
        yield {other for gram in shared for other in holders[gram]}
        for gram in shared:
            holders[gram].append(number)


def shared_bands(texts: Sequence[str]) -> Iterator[Iterable[int]]:
    """For each text those that share a band of its trigrams' MinHash, earlier and later ones: candidates, not yet
    pairs."""
    from rensa import RMinHash, RMinHashLSH

    hashes: list[RMinHash] = []
    for start in range(0, len(texts), HASHED_AT_ONCE):
        sets = [trigrams(text) for text in texts[start : start + HASHED_AT_ONCE]]
        hashes += RMinHash.from_token_sets(sets, BANDS * BAND_ROWS, SEED)
    index = RMinHashLSH(SIMILAR, BANDS * BAND_ROWS, BANDS)
    index.insert_many(hashes)
    for one in hashes:
        yield index.query(one)
