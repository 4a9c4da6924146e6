"""What two samples say together: the same one twice, nearly the same, contradictions, held-out samples in training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

from fasttune.console import Finding, _
from fasttune.data.dataset import Message, Sample, conversation_key
from fasttune.data.near_duplicates import SIMILAR, Pair, Said, jaccard, near_pairs, normal, trigrams

# Questions with one right answer: who, what name, how many, where, when, which colour.
ASKS_A_FACT = re.compile(
    "叫什么|名字|几岁|多大|多少|几[个只点月号块年]|哪[里儿年天国]|是谁|什么颜色|什么时候|生日|多高|多重"
    r"|\b(?:your name|called|how (?:old|many|much|tall)|where|when|which|what colou?r|who is|birthday)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"([0-9]+|[零〇一二两三四五六七八九十百千万]+)\s?([A-Za-z]+|[\u4e00-\u9fff])")
YES = re.compile(r"^(?:是|对|嗯|会|能|有|可以|当然|yes\b|sure\b|of course)", re.IGNORECASE)
NO = re.compile(r"^(?:不|没|否|别|no\b|not\b|never\b)", re.IGNORECASE)
YES_OR_NO = re.compile(r"吗[？?]?$|是不是|会不会|有没有|能不能|\?$")
TELLS_NOTHING = frozenset("的了是我你他她它在有不就都和也一个这那着吗呢吧呀啊叫名字说什么没很还要人")
STOP_WORDS = frozenset(
    [
        "the",
        "and",
        "you",
        "are",
        "was",
        "his",
        "her",
        "its",
        "for",
        "not",
        "but",
        "with",
        "that",
        "this",
        "have",
        "has",
        "name",
        "called",
        "i'm",
        "it's",
    ]
)
LEAST_ANSWER = 4  # letters of an answer that is no accident in both training and held-out samples


def duplicates(samples: Sequence[Sample]) -> tuple[list[Sample], list[Finding]]:
    """The samples without those whose messages are all equal to an earlier one's, and a finding for each of these."""
    first: dict[tuple[Message, ...], Sample] = {}
    found = []
    for sample in samples:
        if (same := first.setdefault(sample.messages, sample)) is not sample:
            what = _("the sample repeats {other}", other=same.id)
            why, fix = (
                _("each copy is trained on in every epoch"),
                _("remove it unless it is intended; `--fix OUT` does"),
            )
            found.append(Finding("duplicate-sample", "warning", sample.id, what, why, fix))
    return list(first.values()), found


def near_duplicates(train: Sequence[Sample], held_out: Sequence[Sample]) -> tuple[set[str], list[Finding]]:
    """The ids of held-out samples that are nearly the same as a training sample, and a finding for each pair.

    Samples with equal conversations are findings of other rules and belong in neither list. Those that were made of a
    fact sheet say the same several times on purpose: they are compared with all others and not with each other.
    """
    written = [sample for sample in train if not sample.made_from]
    made = [sample for sample in train if sample.made_from]
    out = {sample.id for sample in held_out}
    leaks: set[str] = set()
    found = []
    from_sheet = [pair for pair in close_pairs(made, held_out) if pair[0].id in out]
    for one, other, pair in [*close_pairs(written, [*made, *held_out]), *from_sheet]:
        if one.id in out:
            if one.id in leaks:
                continue
            leaks.add(one.id)
            what = _("held out, and nearly the same as {other} in training: {share:.0%} of the trigrams are in both",
                     other=other.id, share=pair.similarity)  # fmt: skip
            why, fix = _("the held-out loss will look better than the model is"), _("remove it from one side")
            found.append(Finding("held-out-near-duplicate", "warning", one.id, what, why, fix))
        else:
            what = _("nearly the same as {other}: {share:.0%} of the trigrams are in both", other=other.id,
                     share=pair.similarity)  # fmt: skip
            why, fix = _("the model learns the words they share by heart"), _("keep one of them, or reword it")
            found.append(Finding("near-duplicate-sample", "warning", one.id, what, why, fix))
    return leaks, found


def close_pairs(samples: Sequence[Sample], others: Sequence[Sample]) -> Iterator[tuple[Sample, Sample, Pair]]:
    """(later, earlier, pair) of samples that are nearly the same: of `samples` with each other, and of each of `others`
    with them."""
    both = [*samples, *others]
    for pair in near_pairs([said_in(sample) for sample in both], len(others)):
        yield both[pair.later], both[pair.earlier], pair


def said_in(sample: Sample) -> Said:
    """What the two sides say in a sample."""
    sides = ("\n".join(m.content for m in sample.messages if m.role == role) for role in ("user", "assistant"))
    return Said(*sides)


def leaks(train: Sequence[Sample], held_out: Sequence[Sample]) -> tuple[list[Sample], list[Finding]]:
    """The held-out samples whose conversation is not trained on, and an error for each of the others."""
    if not held_out:
        return [], []
    first = {conversation_key(sample): sample.id for sample in reversed(train)}
    found, kept = [], []
    for sample in held_out:
        if (key := conversation_key(sample)) not in first:
            kept.append(sample)
            continue
        what = _("held out, and {other} in training is the same conversation", other=first[key])
        why = _("the held-out loss then measures memory: it looks better than the model is")
        fix = _("remove it from one side; `--fix OUT` removes it from the training samples")
        found.append(Finding("val-in-train", "error", sample.id, what, why, fix))
    return kept, found


def shared_turns(train: Sequence[Sample], held_out: Sequence[Sample]) -> Iterator[Finding]:
    """A held-out sample with a first question, or an answer, that stands in a training sample too."""
    if not held_out:
        return
    questions = {normal(first_question(sample)): sample.id for sample in reversed(train)}
    answers = {
        normal(m.content): sample.id for sample in reversed(train) for m in sample.messages if m.role == "assistant"
    }
    why, fix = _("the held-out loss will look better than the model is"), _("remove it from one side")
    for sample in held_out:
        said = [normal(m.content) for m in sample.messages if m.role == "assistant"]
        if other := questions.get(normal(first_question(sample))):
            what = _("held out, and its question stands in {other} in training", other=other)
            yield Finding("held-out-question-in-train", "warning", sample.id, what, why, fix)
        elif other := next((answers[one] for one in said if len(one) >= LEAST_ANSWER and one in answers), None):
            what = _("held out, and its answer stands in {other} in training", other=other)
            yield Finding("held-out-answer-in-train", "warning", sample.id, what, why, fix)


@dataclass(frozen=True)
class Asked:
    """A question with its answer. `key` is equal for the same question after the same turns, `turn` counts questions
    from 1."""

    key: bytes
    turn: int
    question: str
    answer: str


def questions_of(sample: Sample) -> Iterator[Asked]:
    """The questions of a sample whose answers are learned; the system prompt is no turn."""
    said = [message for message in sample.messages if message.role != "system"]
    last = max((n for n, message in enumerate(said) if message.role == "user"), default=-1)
    turns, turn = hashlib.sha256(), 0
    for message, reply in pairwise(said[: last + 2]):
        words = normal(message.content)
        turns.update(f"{message.role}:{words}\n".encode("utf-8", "surrogatepass"))
        if message.role == "user":
            turn += 1
            if words and reply.learn:
                yield Asked(turns.digest(), turn, message.content, reply.content)


def contradictions(samples: Sequence[Sample], close: AbstractSet[str] = frozenset()) -> Iterator[Finding]:
    """The same question after the same turns, answered otherwise.

    Of the samples whose ids are in `close`, which are nearly the same as others, only contradictions are named. Two
    that were made of a fact sheet can't contradict each other: all that it says holds what it accepts.
    """
    first: dict[bytes, tuple[Sample, Asked]] = {}
    for sample in samples:
        for asked in questions_of(sample):
            other, before = first.setdefault(asked.key, (sample, asked))
            if before is asked or (other.made_from and sample.made_from) or alike(before.answer, asked.answer):
                continue
            found = judged(sample.id, asked, other.id, before)
            if found.level == "warning" or sample.id not in close:
                yield found


def alike(one: str, other: str) -> bool:
    """Whether two answers are nearly the same, marks aside."""
    return jaccard(trigrams(normal(one)), trigrams(normal(other))) >= SIMILAR


def judged(where: str, asked: Asked, other: str, before: Asked) -> Finding:
    """The finding about a question that sample `other` answers otherwise: a contradiction, or another good answer."""
    if contradict(asked.question, before.answer, asked.answer):
        now, then = asked.answer[:30], before.answer[:30]
        what = _("the question of {other} with another answer: '{now}' against '{before}'", other=other, now=now,
                 before=then)  # fmt: skip
        if asked.turn > 1:
            what = _("its question {turn} is asked after the same turns as in {other}, with another answer: '{now}' "
                     "against '{before}'", turn=asked.turn, other=other, now=now, before=then)  # fmt: skip
        why, fix = _("the model can learn neither; it will say one of them by chance"), _("keep the right one")
        return Finding("contradicting-answers", "warning", where, what, why, fix)
    what = _("the question of {other} has another answer here", other=other)
    if asked.turn > 1:
        what = _("its question {turn} is asked after the same turns as in {other}, with another answer",
                 turn=asked.turn, other=other)  # fmt: skip
    return Finding("several-answers", "info", where, what, _("fine for a greeting; of a fact the model would learn a "
                                                             "mixture"))  # fmt: skip


def contradict(question: str, one: str, other: str) -> bool:
    """Whether two answers to a question can't both be right: other numbers of the same thing, yes and no, or, to a
    question for a fact, nothing in common."""
    numbers = [{(unit, number) for number, unit in NUMBER.findall(text)} for text in (one, other)]
    units = [{unit for unit, _number in found} for found in numbers]
    asks = ASKS_A_FACT.search(question)
    if asks and units[0] & units[1] and not numbers[0] & numbers[1]:
        return True
    if YES_OR_NO.search(question.strip()) and any(
        YES.search(a) and NO.search(b) for a, b in ((one, other), (other, one))
    ):
        return True
    return bool(asks) and not (telling(one) & telling(other)) - telling(question)


def telling(text: str) -> set[str]:
    """What a text tells: pairs of Chinese characters that are no function words, and English words."""
    chinese = {text[n : n + 2] for n in range(len(text) - 1) if all("\u4e00" <= c <= "\u9fff" for c in text[n : n + 2])}
    words = {word for word in re.findall(r"[a-z']{3,}", text.lower()) if word not in STOP_WORDS}
    return {pair for pair in chinese if not TELLS_NOTHING & set(pair)} | words


def first_question(sample: Sample) -> str:
    """The first thing the user says."""
    return next((message.content for message in sample.messages if message.role == "user"), "")
