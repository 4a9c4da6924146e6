"""The general conversations of data.replay: what they are, which languages a data set has, and what is mixed in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_files import pair, turns, write

from fasttune.data import general
from fasttune.data.dataset import Dataset, conversation_key, general_samples, load_dataset
from fasttune.data.lint import lint
from fasttune.recipe.schema import DataRecipe


def loaded(
    folder: Path, count: int, share: float, *, seed: int = 1, answer: str = "答案是第{n}个。", **more: object
) -> Dataset:
    """The data set of so many samples with this answer and this share of general conversations."""
    path = write(folder / "t.jsonl", *[pair(f"第{n}个问题是什么", answer.format(n=n)) for n in range(count)])
    return load_dataset(DataRecipe(train=(path,), replay=share, **more), seed)  # type: ignore[arg-type]


# --- the conversations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", general.LANGUAGES)
def test_they_are_clean_and_those_to_measure_on_are_others(language: str) -> None:
    """By the rules of `fasttune check`: no near-duplicate, no leak, no broken text; and nobody is told who he is."""
    train, held_out = general_samples("train", (language,)), general_samples("val", (language,))
    assert (len(train), len(held_out)) == (48, 12)
    assert [one for one in lint(train, held_out, "") if one.level != "info"] == []
    said = " ".join(message.content for one in (*train, *held_out) for message in one.messages)
    assert not [
        word for word in ("Qwen", "通义", "assistant", "语言模型", "助手", "who are you", "你是谁") if word in said
    ]
    assert {one.messages[0].role for one in (*train, *held_out)} == {"user"}, "the base's own system prompt is theirs"
    assert general.languages(one.messages[-1].content for one in train) == (language,)


def test_their_names_say_where_they_are_from_wherever_fasttune_lies() -> None:
    names = [one.id for one in general_samples("val")]
    assert names[0] == "fasttune/general/val-zh.jsonl:1" and names[-1] == "fasttune/general/val-en.jsonl:12"
    assert all(map(general.is_general, names)) and not general.is_general("data/general/val-zh.jsonl:1")
    assert all(os.access(path, os.R_OK) for path in general.files("train", general.LANGUAGES))


@pytest.mark.parametrize(
    ("answers", "spoken"),
    [
        (["好的。", "没有。"], ("zh",)),
        (["Yes.", "No."], ("en",)),
        (["好的。", "Yes."], ("zh", "en")),
        (["好的。"] * 9 + ["Yes."], ("zh",)),  # a tenth is not a language of the data
        (["Yes."] * 8 + ["好的。"] * 2, ("zh", "en")),
        ([], ()),
    ],
)
def test_the_languages_of_a_data_set(answers: list[str], spoken: tuple[str, ...]) -> None:
    assert general.languages(answers) == spoken


# --- mixed in --------------------------------------------------------------------------------------------------------


def test_without_replay_nothing_is_mixed_in(tmp_path: Path) -> None:
    plain = loaded(tmp_path, 10, 0.0)
    assert plain.general == () and plain.trained == plain.train
    assert plain.fingerprint == loaded(tmp_path, 10, 0.0, seed=2).fingerprint


def test_a_share_of_the_samples_in_the_language_of_the_data(tmp_path: Path) -> None:
    """At least one; by the seed, and those of a smaller share among those of a larger one."""
    few, many, other = loaded(tmp_path, 100, 0.05), loaded(tmp_path, 100, 0.2), loaded(tmp_path, 100, 0.05, seed=2)
    assert (len(few.general), len(many.general)) == (5, 20) and many.general[:5] == few.general
    assert few.general == loaded(tmp_path, 100, 0.05).general and few.general != other.general
    assert {one.id.partition(":")[0] for one in many.general} == {"fasttune/general/train-zh.jsonl"}
    assert few.trained == (*few.train, *few.general) and len(few.train) == 100
    assert len(loaded(tmp_path, 3, 0.01).general) == 1
    english = loaded(tmp_path, 10, 0.1, answer="It is number {n}.")
    assert [one.id.partition(":")[0] for one in english.general] == ["fasttune/general/train-en.jsonl"]


def test_they_are_part_of_what_identifies_the_data(tmp_path: Path) -> None:
    prints = [loaded(tmp_path, 100, share).fingerprint for share in (0.0, 0.05, 0.1)]
    assert len(set(prints)) == 3
    assert loaded(tmp_path, 100, 0.05, seed=2).fingerprint not in prints


def test_they_are_never_held_out_and_have_no_system_prompt_of_the_data(tmp_path: Path) -> None:
    found = loaded(tmp_path, 40, 0.2, val=0.25, system="你是小灯。")
    assert len(found.held_out) == 10 and len(found.train) == 30 and len(found.general) == 6
    assert not [one.id for one in found.held_out if general.is_general(one.id)]
    assert [turns(one)[0][0] for one in found.general] == ["user"] * 6
    measured = {conversation_key(one) for one in general_samples("val")}
    assert not measured & {conversation_key(one) for one in found.general}


def test_where_there_are_not_so_many_all_are_trained_on_and_it_is_said(tmp_path: Path) -> None:
    found = loaded(tmp_path, 300, 0.2)
    assert len(found.general) == 48
    (note,) = [one for one in found.findings if one.code == "replay-all"]
    assert note.level == "info" and "20% of the samples are 60" in note.what and "there are 48" in note.what
    assert "replay-all" not in [one.code for one in loaded(tmp_path, 240, 0.2).findings]
