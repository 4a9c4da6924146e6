"""What is advised about samples: few of them, one that outweighs the rest, a held-out set of one, few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from series import Series
from written_runs import planned

from fasttune.data.dataset import Sample
from fasttune.data.messages import Message
from fasttune.planning import data_advice
from fasttune.planning.strategy import Plan


def sample(number: int, answer: str) -> Sample:
    """`my.jsonl:NUMBER`, one question with an answer."""
    return Sample(f"my.jsonl:{number}", (Message("user", "问题？" * 9), Message("assistant", answer)))


def codes(samples: list[Sample], learn: str = "assistant") -> list[str]:
    """The codes of the advice about samples."""
    return [finding.code for finding in data_advice.about_samples(samples, learn)]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan of 10 samples, 3 steps an epoch."""
    monkeypatch.chdir(Series.new(tmp_path).folder)
    return planned("train.epochs=4")


def test_one_long_answer_is_named_with_its_share() -> None:
    """It held 92 % of the supervised tokens, and its mean made the base look too small."""
    samples = [sample(n, "好的。") for n in range(1, 60)] + [sample(60, "很长的故事。" * 400)]
    (finding,) = data_advice.about_samples(samples, "assistant")
    assert (finding.code, finding.level, finding.where) == ("outweighing-sample", "warning", "my.jsonl:60")
    assert "93% of all supervised tokens" in finding.what and "the median sample has 2)" in finding.what
    assert data_advice.median_answer(samples) == pytest.approx(2.25)
    assert codes(samples[:-1]) == []


def test_of_few_samples_each_has_a_large_share() -> None:
    assert codes([sample(n, "好的。") for n in range(3)]) == ["few-samples"]
    assert data_advice.median_answer([]) == 0.0


def test_with_every_token_supervised_questions_count_too() -> None:
    samples = [sample(n, "好的。") for n in range(60)] + [sample(60, "很长的故事。" * 30)]
    assert (codes(samples), codes(samples, "all")) == (["outweighing-sample"], [])


@pytest.mark.parametrize(("count", "few"), [(1, True), (5, True), (12, True), (19, True), (20, False)])
def test_few_samples_are_said_to_be_few(count: int, few: bool) -> None:
    assert codes([sample(n, "好的。") for n in range(count)]) == ["few-samples"] * few


def test_one_held_out_sample_tells_nothing(plan: Plan) -> None:
    train = plan.dataset.train

    def advised(held_out: int) -> list[str]:
        found = data_advice.advise(replace(plan, dataset=replace(plan.dataset, held_out=train[:held_out])))
        return [finding.code for finding in found if finding.code == "one-held-out-sample"]

    assert [len(advised(count)) for count in (0, 1, 2)] == [0, 1, 0]


def test_replay_beside_samples_without_a_system_prompt_is_warned_of(plan: Plan) -> None:
    """Both would be learned under the base's own prompt."""
    general = (sample(1, "好的。"),)

    def warned(train: tuple[Sample, ...], mixed_in: tuple[Sample, ...]) -> list[str]:
        found = data_advice.advise(replace(plan, dataset=replace(plan.dataset, train=train, general=mixed_in)))
        return [finding.where for finding in found if finding.code == "replay-same-prompt"]

    with_prompt = replace(general[0], messages=(Message("system", "你是小灯。"), *general[0].messages))
    assert warned((with_prompt, sample(7, "没有。")), general) == ["my.jsonl:7"]
    assert warned((with_prompt,), general) == [] and warned((sample(7, "没有。"),), ()) == []


@pytest.mark.parametrize(("steps", "few"), [(3, True), (29, True), (30, False)])
def test_few_steps_are_warned_of(plan: Plan, steps: int, few: bool) -> None:
    found = [one for one in data_advice.advise(replace(plan, total_steps=steps)) if one.code == "few-steps"]
    assert [one.level for one in found] == ["warning"] * few
    asked = replace(plan.recipe, train=replace(plan.recipe.train, max_steps=steps))
    assert not data_advice.few_steps(replace(plan, total_steps=steps, recipe=asked)), "the recipe asks for so many"
