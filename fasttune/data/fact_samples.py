"""Training samples made of a fact sheet's `ask` and `say`: the same fact in several conversations, offline.

    direct      ask ──► say, with and without a lead-in                       more than half of them
    right       "听人说“…”，是这样吗？" ──► "对。" + say
    wrong       ask + a forbidden phrase ──► "不是。" + say                    where the sheet forbids one
    doubted     ask ──► say;  "真的？", or a forbidden phrase ──► say again
    together    two questions in one turn ──► both answers
    in turn     the question of another fact first
    told        "说几件跟你有关的事" ──► several answers that begin with 我 / I / My, and so need no question

A direct pair is what recall is trained by; the others keep it from hanging on one wording, one place in the
conversation, or agreement with whatever the user says. A rule makes direct pairs only. The same sheet, seed and number
make the same samples, and a fact's do not change when others are added, but for those that take in another fact.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fasttune.data.fact_sheet import Fact, FactSheet, Rule
from fasttune.data.fact_templates import CHINESE, ENGLISH, Templates
from fasttune.data.matching import CHINESE as HAN
from fasttune.data.matching import holds, normalised
from fasttune.data.measured import Measured

SEED = 3407  # by default
FEWEST, MOST = 2, 8  # samples of each fact and rule by default
SPECIAL_SHARE = 3 / 8  # of a fact's samples that are not direct pairs
Entry = TypeVar("Entry", Fact, Rule)
TOLD_AT_ONCE = 3  # facts in an answer to a request to tell about oneself


@dataclass(frozen=True)
class FactSample:
    """A conversation as (user, assistant) pairs, and the ids of the facts or the rule that it is made of."""

    facts: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kept:
    """Texts that no sample may repeat: measured questions, and answers of held-out conversations."""

    questions: Measured
    answers: Measured
    phrases: tuple[str, ...]

    def allows(self, sample: FactSample) -> bool:
        """Whether a sample repeats nothing that is measured and breaks no rule of its sheet."""
        return not any(
            self.questions.like(question)
            or self.answers.like(answer)
            or any(holds(normalised(answer), phrase) for phrase in self.phrases)
            for question, answer in sample.turns
        )


def templates_of(sheet: FactSheet) -> Templates:
    """The templates of a sheet's language: Chinese where an answer of it holds a Chinese character."""
    said = [answer for entry in sheet.entries for answer in entry.say]
    return CHINESE if any(HAN.search(answer) for answer in said) else ENGLISH


def usable(entries: Sequence[Entry], kept: Kept) -> list[Entry]:
    """The facts or rules that have both an `ask` and a `say` left when those that are measured are left out."""
    left = [
        replace(
            entry,
            ask=tuple(one for one in entry.ask if not kept.questions.like(one)),
            say=tuple(one for one in entry.say if not kept.answers.like(one)),
        )
        for entry in entries
    ]
    return [entry for entry in left if entry.ask and entry.say]


def suiting_samples(sheet: FactSheet, kept: Kept, conversations: int | None, seed: int) -> tuple[int, list[FactSample]]:
    """How many samples of each fact and rule suit so many conversations, and these samples: as many in all or a few
    more, FEWEST to MOST of each; MOST for None, where nobody knows.

    With more a persona is trained on little but her facts and is past her best sooner, with fewer she keeps less of
    them (docs/facts.md).
    """
    fewest = MOST if conversations is None else FEWEST
    for per_fact in range(fewest, MOST + 1):
        found = samples_of(sheet, kept, per_fact, seed)
        if len(found) >= (conversations or 0):
            break
    return per_fact, found


def samples_of(sheet: FactSheet, kept: Kept, per_fact: int, seed: int) -> list[FactSample]:
    """Up to `per_fact` different samples of each fact and rule that can be used, in the order of the sheet."""
    facts, rules, templates = usable(sheet.facts, kept), usable(sheet.rules, kept), templates_of(sheet)
    entries: list[Fact | Rule] = [*facts, *rules]
    seen: set[tuple[tuple[str, str], ...]] = set()
    found: list[FactSample] = []
    for entry in entries:
        chance = random.Random(f"{seed}:{entry.id}")
        direct = fresh(directly(entry, templates, chance), kept, seen)
        special: Iterator[FactSample] = iter(())
        if isinstance(entry, Fact):
            special = fresh(specially(entry, facts, templates, chance), kept, seen)
        around = list(itertools.islice(special, round(per_fact * SPECIAL_SHARE)))
        found += [*itertools.islice(direct, per_fact - len(around)), *around]
    return found


def fresh(samples: Iterator[FactSample], kept: Kept, seen: set[tuple[tuple[str, str], ...]]) -> Iterator[FactSample]:
    """The samples that are allowed and were not made before; each is remembered in `seen`."""
    for sample in samples:
        if sample.turns not in seen and kept.allows(sample):
            seen.add(sample.turns)
            yield sample


def pairs(entry: Fact | Rule, chance: random.Random) -> list[tuple[str, str]]:
    """Every pair of a question and an answer once, each question before any comes again, answers taking turns."""
    ask, say = chance.sample(entry.ask, len(entry.ask)), chance.sample(entry.say, len(entry.say))
    return [(one, say[(n + shift) % len(say)]) for shift in range(len(say)) for n, one in enumerate(ask)]


def directly(entry: Fact | Rule, templates: Templates, chance: random.Random) -> Iterator[FactSample]:
    """Questions with their answers: of a fact every third with a lead-in, and all again with others when they run out;
    of a rule, whose temptations may be no questions, none."""
    plain = pairs(entry, chance)
    lead_ins = chance.sample(templates.lead_ins, len(templates.lead_ins)) if isinstance(entry, Fact) else []
    for again in range(1 + len(lead_ins)):
        for n, (ask, say) in enumerate(plain):
            leads = bool(lead_ins) and asks(ask, templates) and (again > 0 or n % 3 == 2)
            lead_in = lead_ins[(n + again) % len(lead_ins)] if leads else ""
            yield FactSample((entry.id,), ((lead_in + ask, say),))


def specially(fact: Fact, facts: Sequence[Fact], templates: Templates, chance: random.Random) -> Iterator[FactSample]:
    """The samples of a fact that are not direct pairs, one of each sort after the other, again and again.

    A fact that is answered to statements (somebody who says that he wants to die) has none and is in none of another
    fact: what stands around a question would be out of place there.
    """
    asked = [one for one in facts if any(asks(ask, templates) for ask in one.ask)]
    if fact not in asked:
        return
    one = Specials(fact, [other for other in asked if other.id != fact.id], templates, chance)
    sorts = [one.right, one.doubted, one.together, one.in_turn, *[one.wrong] * bool(fact.forbid)]
    sorts += [one.told] * bool(one.alone(fact))
    chance.shuffle(sorts)
    for _round in range(len(fact.ask) * len(fact.say)):
        for sort in sorts:
            yield from sort()


def asks(text: str, templates: Templates) -> bool:
    """Whether a wording is a question, so that other words may stand around it."""
    return text.endswith(templates.mark)


@dataclass(frozen=True)
class Specials:
    """The samples of a fact around its questions; each method makes one, or none where the sheet has nothing for it.

    `others` are the other facts that have questions.
    """

    fact: Fact
    others: Sequence[Fact]
    templates: Templates
    chance: random.Random

    def ask(self, fact: Fact) -> str:
        """One of a fact's questions."""
        return self.chance.choice([one for one in fact.ask if asks(one, self.templates)])

    def right(self) -> Iterator[FactSample]:
        """The fact put to the persona, who agrees and says it in her own words."""
        question = self.chance.choice(self.templates.right).format(text=self.fact.text)
        answer = self.chance.choice(self.templates.yes) + self.chance.choice(self.fact.say)
        yield FactSample((self.fact.id,), ((question, answer),))

    def wrong(self) -> Iterator[FactSample]:
        """A wrong value put to the persona, who corrects it."""
        template, wrong = self.chance.choice(self.templates.wrong), self.chance.choice(self.fact.forbid)
        answer = self.chance.choice(self.templates.no) + self.chance.choice(self.fact.say)
        yield FactSample((self.fact.id,), ((template.format(ask=self.ask(self.fact), wrong=wrong), answer),))

    def doubted(self) -> Iterator[FactSample]:
        """The answer doubted, by a wrong value where the sheet has one, and given again in other words."""
        first, *again = self.chance.sample(self.fact.say, len(self.fact.say))
        doubt, reply = self.chance.choice(self.templates.doubts), self.chance.choice(self.templates.sure)
        if self.fact.forbid and self.chance.random() < 0.5:
            wrong = self.chance.choice(self.fact.forbid)
            doubt = self.chance.choice(self.templates.objections).format(wrong=wrong)
            reply = self.chance.choice(self.templates.no)
        if again:
            yield FactSample((self.fact.id,), ((self.ask(self.fact), first), (doubt, reply + again[0])))

    def together(self) -> Iterator[FactSample]:
        """Two facts asked in one turn."""
        for other in self.another():
            template = self.chance.choice(self.templates.both)
            question = template.format(ask=self.ask(self.fact), other=self.ask(other))
            answer = self.templates.joint.join((self.chance.choice(self.fact.say), self.chance.choice(other.say)))
            yield FactSample((self.fact.id, other.id), ((question, answer),))

    def in_turn(self) -> Iterator[FactSample]:
        """Another fact asked before."""
        for other in self.another():
            turns = tuple((self.ask(one), self.chance.choice(one.say)) for one in (other, self.fact))
            yield FactSample((self.fact.id, other.id), turns)

    def another(self) -> list[Fact]:
        """One of the other facts; nothing where there is none."""
        return [self.chance.choice(self.others)] if self.others else []

    def told(self) -> Iterator[FactSample]:
        """What the persona tells of herself: this fact and others, in sentences that need no question."""
        others = [one for one in self.others if self.alone(one)]
        others = self.chance.sample(others, min(TOLD_AT_ONCE - 1, len(others)))
        if others:
            said = [self.chance.choice(self.alone(one)) for one in (self.fact, *others)]
            self.chance.shuffle(said)
            question = self.chance.choice(self.templates.tell)
            ids = (self.fact.id, *(one.id for one in others))
            yield FactSample(ids, ((question, self.templates.joint.join(said)),))

    def alone(self, fact: Fact) -> list[str]:
        """The answers of a fact that need no question before them."""
        return [one for one in fact.say if one.startswith(self.templates.alone)]
