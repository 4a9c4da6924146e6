"""The served system prompt with the facts of a sheet."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from fasttune.data.fact_prompt import CHINESE_HEADING, ENGLISH_HEADING, with_facts
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet


def sheet(name: str) -> FactSheet:
    return read_fact_sheet(REPOSITORY / "data" / name / "facts.toml")


def test_the_facts_stand_below_the_trained_prompt_and_those_of_the_prompt_are_not_said_twice() -> None:
    prompt = with_facts("你是林栀。", sheet("linzhi"))
    head, heading, facts = prompt.rpartition(f"\n\n{CHINESE_HEADING}\n")
    assert head == "你是林栀。" and heading
    assert facts.startswith("外公七十八岁。爸爸开公交，3 路。") and facts.endswith("会吹口琴。")
    assert "猫叫定影" not in facts and "\n" not in facts


def test_without_a_prompt_every_fact_is_told() -> None:
    prompt = with_facts(None, sheet("nell"))
    assert prompt.startswith(f"{ENGLISH_HEADING}\nShe is called Nell Garrick. She is fifty-eight. ")
    assert prompt.endswith("A repair takes three weeks.")


@pytest.mark.parametrize("system", ["你是猫。", None, ""])
def test_a_sheet_of_rules_alone_changes_nothing(system: str | None) -> None:
    assert with_facts(system, FactSheet(Path("facts.toml"), (), ())) == (system or "")
