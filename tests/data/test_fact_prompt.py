"""The system prompt with the facts of a sheet, served and trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from data_files import pair, write

from fasttune.console import UsageError
from fasttune.data.dataset import Sample, load_dataset
from fasttune.data.fact_prompt import CHINESE_HEADING, ENGLISH_HEADING, system_of, with_facts
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.recipe.schema import DataRecipe


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


# --- data.system_facts -----------------------------------------------------------------------------------


SHEET = """
[[fact]]
id = "cat"
text = "猫叫定影"
questions = ["猫叫啥？", "猫咪大名？", "怎么喊猫？"]
accept = ["定影"]
"""
TOLD = f"{CHINESE_HEADING}\n猫叫定影。"


@pytest.fixture
def cat(tmp_path: Path) -> str:
    path = tmp_path / "facts.toml"
    path.write_text(SHEET, encoding="utf-8")
    return str(path)


def systems(samples: Iterable[Sample]) -> list[str | None]:
    return [system_of(sample) for sample in samples]


def test_training_and_held_out_samples_have_the_facts_below_the_prompt_of_the_persona(tmp_path: Path, cat: str) -> None:
    train = write(
        tmp_path / "t.jsonl", *(pair(one) | {"system": "你是猫。"} for one in "abc"), pair("d") | {"system": "翻译"}
    )
    val = write(tmp_path / "v.jsonl", pair("e") | {"system": "你是猫。"}, pair("f"))
    read = load_dataset(DataRecipe(train=(train,), val=val, system_facts=cat), seed=0)
    assert systems(read.train) == [f"你是猫。\n\n{TOLD}"] * 3 + ["翻译"]
    assert systems(read.held_out) == [f"你是猫。\n\n{TOLD}", None]
    bare = load_dataset(DataRecipe(train=(train,), val=val), seed=0)
    assert [sample.messages[1:] for sample in read.train] == [sample.messages[1:] for sample in bare.train]
    assert read.fingerprint != bare.fingerprint


def test_samples_without_a_prompt_have_the_facts_alone_or_below_that_of_the_recipe(tmp_path: Path, cat: str) -> None:
    train = write(tmp_path / "t.jsonl", pair("a"), pair("b"))
    for system, expected in ((None, TOLD), ("你是猫。", f"你是猫。\n\n{TOLD}")):
        read = load_dataset(DataRecipe(train=(train,), system=system, system_facts=cat), seed=0)
        assert systems(read.train) == [expected] * 2


def test_a_sheet_that_is_missing_or_holds_what_no_sample_may_is_refused(tmp_path: Path, cat: str) -> None:
    train = write(tmp_path / "t.jsonl", pair("a"))
    with pytest.raises(UsageError) as caught:
        load_dataset(DataRecipe(train=(train,), system_facts=str(tmp_path / "gone.toml")), seed=0)
    assert [one.code for one in caught.value.findings] == ["facts-not-found"]
    Path(cat).write_text(SHEET.replace("猫叫定影", "猫叫定影\\u0001"), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_dataset(DataRecipe(train=(train,), system_facts=cat), seed=0)
    assert [(one.code, one.where) for one in caught.value.findings] == [("control-character", cat)]
