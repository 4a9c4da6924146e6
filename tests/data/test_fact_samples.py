"""Samples made of a fact sheet: how many, how varied, the same each time, and nothing in them that is measured."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
from conftest import REPOSITORY

from fasttune.data.fact_samples import FactSample, Kept, samples_of
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.data.matching import holds, normalised
from fasttune.data.measured import ANSWER_LETTERS, Measured

FREE = Kept(Measured([]), Measured([]), ())


@functools.cache
def shipped(name: str) -> FactSheet:
    """The sheet of an example, read where a test needs it: reading both takes half a second, of every process that
    collects tests."""
    return read_fact_sheet(REPOSITORY / "data" / name / "facts.toml")


def kept(sheet: FactSheet) -> Kept:
    return Kept(Measured(sheet.questions), Measured([], ANSWER_LETTERS), ())


@pytest.fixture(scope="module", params=["linzhi", "nell"])
def sheet(request: pytest.FixtureRequest) -> FactSheet:
    return shipped(request.param)


@pytest.fixture(scope="module")
def samples(sheet: FactSheet) -> list[FactSample]:
    return samples_of(sheet, kept(sheet), 8, 3407)


def test_every_fact_has_as_many_samples_as_were_asked_for_and_no_two_are_equal(
    sheet: FactSheet, samples: list[FactSample]
) -> None:
    counts = Counter(sample.facts[0] for sample in samples)
    assert {counts[fact.id] for fact in sheet.facts} == {8}
    assert all(2 <= counts[rule.id] <= 8 for rule in sheet.rules)
    assert len({sample.turns for sample in samples}) == len(samples)


def test_the_same_seed_makes_the_same_samples_and_another_one_others(
    sheet: FactSheet, samples: list[FactSample]
) -> None:
    assert samples_of(sheet, kept(sheet), 8, 3407) == samples
    assert samples_of(sheet, kept(sheet), 8, 3408) != samples


def test_every_last_answer_holds_its_facts(sheet: FactSheet, samples: list[FactSample]) -> None:
    facts = {fact.id: fact for fact in sheet.facts}
    for sample in samples:
        said = normalised(" ".join(answer for _question, answer in sample.turns))
        for fact in [facts[id] for id in sample.facts if id in facts]:
            assert any(holds(said, normalised(phrase)) for phrase in fact.accept), (fact.id, sample.turns)


def test_no_question_that_is_measured_is_asked(sheet: FactSheet, samples: list[FactSample]) -> None:
    measured = Measured(sheet.questions)
    assert [question for one in samples for question, _answer in one.turns if measured.like(question)] == []


def test_a_fact_is_said_in_several_sorts_of_conversation(sheet: FactSheet, samples: list[FactSample]) -> None:
    asked = {ask for fact in sheet.facts for ask in fact.ask}
    direct = [one for one in samples if len(one.turns) == 1 and one.turns[0][0] in asked]
    several = [one for one in samples if len(one.facts) > 1]
    in_turn = [one for one in samples if len(one.turns) == 2]
    told = [one for one in samples if len(one.facts) > 2]
    assert min(len(direct), len(several), len(in_turn), len(told)) >= 3
    wrong = {phrase for fact in sheet.facts for phrase in fact.forbid}
    assert any(f"“{phrase}”" in text or f'"{phrase}"' in text for one in samples for text, _answer in one.turns
               for phrase in wrong)  # fmt: skip


def one_fact(sheet: FactSheet, ask: tuple[str, ...] | None = None, say: tuple[str, ...] | None = None) -> FactSheet:
    fact = next(fact for fact in sheet.facts if fact.id == "price")
    fact = replace(fact, ask=fact.ask if ask is None else ask, say=fact.say if say is None else say)
    return FactSheet(sheet.path, (fact,), ())


def test_a_fact_that_is_told_and_not_asked_is_left_as_it_is() -> None:
    """Nobody who wants to die is asked whether he is sure, or made to ask for the price too."""
    hotline = next(fact for fact in shipped("linzhi").facts if fact.id == "hotline")
    made = [one for one in samples_of(shipped("linzhi"), FREE, 8, 1) if "hotline" in one.facts]
    assert {(one.facts, len(one.turns)) for one in made} == {(("hotline",), 1)}
    assert {one.turns[0][0] for one in made} == set(hotline.ask)


def test_facts_without_wordings_make_no_samples() -> None:
    assert samples_of(one_fact(shipped("linzhi"), say=()), FREE, 8, 1) == []
    assert samples_of(one_fact(shipped("linzhi"), ask=()), FREE, 8, 1) == []


def test_few_wordings_come_again_with_lead_ins() -> None:
    made = samples_of(one_fact(shipped("linzhi"), ask=("贵不贵呀？",), say=("二十块一版。",)), FREE, 6, 1)
    assert len(made) == 6 and len({one.turns for one in made}) == 6


def test_no_sample_is_made_twice_however_many_are_asked_for() -> None:
    made = samples_of(one_fact(shipped("linzhi")), FREE, 120, 1)
    assert len(made) > 60 and len({one.turns for one in made}) == len(made)


def test_what_is_held_out_is_left_out() -> None:
    sheet = one_fact(shipped("linzhi"))
    ask, say = sheet.facts[0].ask[0], sheet.facts[0].say[0]
    held_out = Kept(Measured([ask]), Measured([say], ANSWER_LETTERS), ())
    texts = {text for one in samples_of(sheet, FREE, 40, 1) for turn in one.turns for text in turn}
    left = {text for one in samples_of(sheet, held_out, 40, 1) for turn in one.turns for text in turn}
    assert ask in texts and any(say in text for text in texts)
    assert not any(ask in text or say in text for text in left) and len(left) > 5


def test_an_answer_that_would_break_a_rule_is_not_made() -> None:
    sheet = one_fact(shipped("linzhi"))
    forbidden = Kept(Measured([]), Measured([]), (normalised("不是。"), normalised("没这回事")))
    answers = [answer for one in samples_of(sheet, forbidden, 40, 1) for _question, answer in one.turns]
    assert answers and not [one for one in answers if one.startswith(("不是", "没这回事"))]
