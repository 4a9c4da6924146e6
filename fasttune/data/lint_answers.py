"""What is wrong with answers: empty, of one word, cut off, begun all alike, far longer than the others.

What counts as cut off depends on the data: an answer without a full stop is normal where most have none.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from fasttune.console import Finding, _, ngettext
from fasttune.data.dataset import Sample
from fasttune.data.matching import CHINESE
from fasttune.data.messages import listed
from fasttune.data.tokenize import estimate_tokens

WORD = re.compile(r"[A-Za-zÀ-ɏ'’]+|[0-9]+|[^\W_A-Za-zÀ-ɏ0-9]")  # an English word, a number, or a Chinese character
# What a whole sentence may end with: marks, closing quotes and brackets, emoji and other symbols.
ENDING = re.compile(r"(?:[.。!！?？…~～;；:：)）\]】}」』”\"'’》>—*`|]|[^\w\s,，、(（\[【{「『“《<-])$")
OPEN_END = re.compile(
    r"(?:[,，、(（\[【{「『“《]|(?:因为|所以|但是|而且|如果|虽然|以及|或者|然后|比如|并且|于是|不过|就是说)"
    r"|\b(?:and|or|but|because|the|a|an|of|to|with|for|that|which|is|are|in|my|your|if|when|from))$"
)
PAIRS = (("（", "）"), ("“", "”"), ("《", "》"), ("「", "」"), ("【", "】"))
USUAL_ENDING = 0.9  # of the answers: where so many end with a mark, one without is cut off
LEAST_WORDS = 8  # of an answer that may count as cut off for the missing mark alone
ONE_WORD, ONE_WORD_MEDIAN = 2, 6  # Chinese characters of an answer of one word; not where the median answer is as short
PARROT_SHARE, PARROT_LEAST = 0.2, 5  # of the answers that begin alike
OPENING_CHARACTERS, OPENING_WORDS = 4, 3  # of an answer's opening, in Chinese and in English
FIRST_WORDS = max(OPENING_CHARACTERS, OPENING_WORDS, ONE_WORD) + 1  # of an answer that are looked at one by one
OUTLIER_TIMES, OUTLIER_SPREAD = 4.0, 5.0  # times the median; robust standard deviations of the logarithm
LEAST_ANSWERS = 20  # that tell what is usual


@dataclass(frozen=True)
class Answer:
    """An answer that is learned; `words` are the first of its words and Chinese characters, `length` is how many it
    has."""

    sample_id: str
    text: str
    words: tuple[str, ...]
    length: int


def answers_of(sample: Sample) -> list[Answer]:
    """The answers of a sample that the loss is taken on."""
    learned = [message.content for message in sample.messages if message.role == "assistant" and message.learn]
    words = [WORD.findall(text) for text in learned]
    return [Answer(sample.id, text, tuple(all_of_it[:FIRST_WORDS]), len(all_of_it))
            for text, all_of_it in zip(learned, words, strict=True)]  # fmt: skip


def findings(answers: Sequence[Answer]) -> Iterator[Finding]:
    """What is wrong with the answers of a data set."""
    lengths = [answer.length for answer in answers]
    usual = median(lengths) if lengths else 0
    ends = sum(bool(ENDING.search(answer.text.rstrip())) for answer in answers) >= USUAL_ENDING * len(answers)
    for answer in answers:
        yield from empty_or_one_word(answer, usual)
        yield from cut_off(answer, ends and len(answers) >= LEAST_ANSWERS)
    yield from length_outliers(answers)
    yield from parrot_openings(answers)


def empty_or_one_word(answer: Answer, usual: float) -> Iterator[Finding]:
    """An answer without a word, or of one word where others say more."""
    if answer.length and (usual < ONE_WORD_MEDIAN or not is_one_word(answer)):
        return
    text, why = answer.text.strip()[:20], _("the model learns to answer like that")
    if not answer.length:
        what = _("the answer '{text}' holds no word", text=text)
        yield Finding(
            "empty-answer", "warning", answer.sample_id, what, why, _("write an answer, or remove the sample")
        )
    else:
        what = _("the answer is one word: '{text}'", text=text)
        fix = _("answer in a sentence, unless the persona is that curt")
        yield Finding("one-word-answer", "info", answer.sample_id, what, why, fix)


def is_one_word(answer: Answer) -> bool:
    """Whether an answer is an English word, or up to ONE_WORD Chinese characters."""
    return answer.length == 1 or (answer.length <= ONE_WORD and all(map(CHINESE.match, answer.words)))


def cut_off(answer: Answer, usual: bool) -> Iterator[Finding]:
    """An answer that ends in mid-sentence; `usual`: nearly all answers end with a mark, so that a missing one tells."""
    text = answer.text.rstrip()
    unclosed = next((one for one, other in PAIRS if text.count(one) > text.count(other)), "")
    if OPEN_END.search(text) and answer.words:
        what = _("the answer ends in mid-sentence: '…{end}'", end=text[-20:])
    elif text.count("```") % 2 or (unclosed and not ENDING.search(text)):
        what = _("the answer ends inside {mark}: '…{end}'", mark=unclosed or "```", end=text[-20:])
    elif usual and answer.length >= LEAST_WORDS and not ENDING.search(text):
        what = _("the answer ends without a mark, which nearly all others have: '…{end}'", end=text[-20:])
    else:
        return
    why = _("the model learns to stop in the middle")
    yield Finding("cut-off-answer", "warning", answer.sample_id, what, why, _("write its end, or remove the sample"))


def length_outliers(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Answers far longer than the others: their logarithm is OUTLIER_SPREAD robust deviations above the median."""
    longer = [answer for answer in answers if answer.words]
    if len(longer) < LEAST_ANSWERS:
        return
    logs = [math.log(answer.length) for answer in longer]
    middle = median(logs)
    spread = max(1.4826 * median(abs(one - middle) for one in logs), 0.2)
    least = math.exp(middle) * OUTLIER_TIMES
    for answer, one in zip(longer, logs, strict=True):
        if one > middle + OUTLIER_SPREAD * spread and answer.length > least:
            what = _("the answer has about {tokens:.0f} tokens, {times:.0f} times the median's words",
                     tokens=estimate_tokens(answer.text), times=answer.length / math.exp(middle))  # fmt: skip
            why = _("the loss is a mean over tokens: this answer counts like that many others")
            yield Finding("long-answer", "info", answer.sample_id, what, why, _("shorten or split it"))


def parrot_openings(answers: Sequence[Answer]) -> Iterator[Finding]:
    """An opening with which more than PARROT_SHARE of the answers begin."""
    beginning: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        if start := opening(answer.words):
            beginning[start].append(answer)
    for start, same in sorted(beginning.items(), key=lambda item: -len(item[1])):
        # The same answer to several wordings of a question is one answer.
        different = {answer.text: answer.sample_id for answer in same}
        if len(different) < PARROT_LEAST or len(same) <= PARROT_SHARE * len(answers):
            return
        what = ngettext("{n} of {all} answers begins with '{opening}': {ids}",
                        "{n} of {all} answers begin with '{opening}': {ids}", len(same), all=len(answers),
                        opening=start, ids=listed(list(different.values())))  # fmt: skip
        why = _("the model will begin many answers like that")
        yield Finding("parrot-opening", "warning", same[0].sample_id, what, why, _("let answers begin in other ways"))


def opening(words: Sequence[str]) -> str:
    """The first OPENING_CHARACTERS Chinese characters or OPENING_WORDS words of an answer; "" where it has no more."""
    if CHINESE.match(words[0] if words else ""):
        return "".join(words[:OPENING_CHARACTERS]) if len(words) > OPENING_CHARACTERS else ""
    return " ".join(words[:OPENING_WORDS]).lower() if len(words) > OPENING_WORDS else ""
