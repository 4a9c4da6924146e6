"""The showcase data keeps what it promises: one system prompt, no near-duplicates, nothing shared with the held-out part."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter

import pytest
from conftest import REPOSITORY

from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.data.matching import holds, normalised

FOLDER = REPOSITORY / "data" / "linzhi"
# Jaccard similarity of character trigrams, exact over all pairs. Unrelated Chinese sentences stay below 0.2; a sentence with
# one noun swapped reaches 0.5 and more.
SIMILAR = 0.5
BANNED = ("作为一个AI", "语言模型", "希望对你有帮助", "很高兴为您服务", "加油", "综上所述", "首先，")


def conversations(name: str) -> list[list[dict[str, str]]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


TRAIN, VAL = conversations("train"), conversations("val")


@functools.cache
def sheet() -> FactSheet:
    """The fact sheet, read where a test needs it: it takes long for a process that only collects tests."""
    return read_fact_sheet(FOLDER / "facts.toml")


def turns(role: str, samples: list[list[dict[str, str]]]) -> list[str]:
    return [message["content"] for sample in samples for message in sample if message["role"] == role]


def trigrams(text: str) -> frozenset[str]:
    text = "".join(text.split())
    return frozenset(text[i : i + 3] for i in range(max(1, len(text) - 2)))


def closest(texts: list[str], count: int) -> list[tuple[float, str, str]]:
    """The most similar pairs, found through shared trigrams."""
    grams = [trigrams(text) for text in texts]
    holders: dict[str, list[int]] = {}
    for number, own in enumerate(grams):
        for gram in own:
            holders.setdefault(gram, []).append(number)
    pairs = {pair for numbers in holders.values() for pair in itertools.combinations(numbers, 2)}
    scored = [(len(grams[a] & grams[b]) / len(grams[a] | grams[b]), texts[a], texts[b]) for a, b in pairs]
    return sorted(scored, reverse=True)[:count]


def test_sizes_and_turns() -> None:
    assert len(TRAIN) >= 450 and len(VAL) >= 50
    lengths = Counter(len(turns("user", [sample])) for sample in TRAIN + VAL)
    assert set(lengths) == {1, 2, 3, 4} and lengths[1] > lengths[2] > lengths[3] > lengths[4] > 20


def test_every_sample_carries_the_one_system_prompt() -> None:
    system = (FOLDER / "system.txt").read_text(encoding="utf-8").strip()
    assert set(turns("system", TRAIN + VAL)) == {system}
    assert all(sample[0]["role"] == "system" for sample in TRAIN + VAL)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_no_near_duplicates(role: str) -> None:
    for similarity, one, other in closest(turns(role, TRAIN + VAL), 10):
        assert similarity < SIMILAR, (one, other)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_held_out_shares_nothing_with_training(role: str) -> None:
    assert not set(turns(role, TRAIN)) & set(turns(role, VAL))


def test_she_never_says() -> None:
    for answer in turns("assistant", TRAIN + VAL):
        assert not [phrase for phrase in BANNED if phrase in answer], answer
        assert len(answer) <= 160


def test_the_check_would_notice_a_swapped_noun() -> None:
    pairs = closest(["你养的猫叫什么名字呀？", "你养的狗叫什么名字呀？", "今天下雨了，带伞没有？"], 1)
    assert pairs[0][0] > 0.4


# --- her fact sheet ---------------------------------------------------------------------------------------------------


def test_half_of_her_facts_stand_in_the_system_prompt_and_half_in_the_data_alone() -> None:
    sources = Counter(fact.source for fact in sheet().facts)
    assert sources["system"] >= 20 and sources["data"] >= 20 and len(sheet().facts) >= 40
    assert sources["system"] == sources["data"]
    assert len(sheet().rules) == 15


def test_what_is_accepted_for_a_fact_of_the_prompt_stands_in_the_prompt() -> None:
    system = normalised((FOLDER / "system.txt").read_text(encoding="utf-8"))
    accepted = [(fact.id, one) for fact in sheet().facts if fact.source == "system" for one in fact.accept]
    assert [(id, one) for id, one in accepted if not holds(system, normalised(one))] == []


def test_what_is_accepted_for_a_fact_of_the_data_stands_in_her_training_answers_and_not_in_the_prompt() -> None:
    system = normalised((FOLDER / "system.txt").read_text(encoding="utf-8"))
    answers = [normalised(answer) for answer in turns("assistant", TRAIN)]
    accepted = [(fact.id, normalised(one)) for fact in sheet().facts if fact.source == "data" for one in fact.accept]
    assert [(id, one) for id, one in accepted if not any(holds(answer, one) for answer in answers)] == []
    assert [(id, one) for id, one in accepted if holds(system, one)] == []


def test_no_answer_of_the_data_breaks_a_rule() -> None:
    answers = [normalised(answer) for answer in turns("assistant", TRAIN + VAL)]
    for rule in sheet().rules:
        for phrase in map(normalised, rule.forbid):
            assert not [answer for answer in answers if holds(answer, phrase)], (rule.id, phrase)


def test_no_training_answer_to_a_question_of_the_sheet_is_forbidden() -> None:
    """A fact that the data itself contradicts would be lost by learning it."""
    for fact in sheet().facts:
        asked = {normalised(question) for question in fact.questions}
        for sample in TRAIN:
            for user, answer in itertools.pairwise(message["content"] for message in sample):
                if normalised(user) in asked:
                    assert not [one for one in fact.forbid if holds(normalised(answer), normalised(one))], fact.id
