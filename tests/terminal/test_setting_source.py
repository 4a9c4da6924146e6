"""Sources of settings in the user's language; the plan's document keeps them in English."""

from __future__ import annotations

import re

import pytest
from written_runs import planned, request, write_parent, write_run

from fasttune.recipe.load import settings
from fasttune.terminal import setting_source
from fasttune.terminal.setting_source import source_word

SHOWN = {
    "recipe": "配方",
    "override": "命令行",
    "default": "默认值",
    "default (2 × r)": "默认值（2 × r）",
    "default (constant has no warmup)": "默认值（constant 不预热）",
    "default (auto: 1 sample)": "默认值（自动：1 个样本）",
    "default (auto: 33 samples)": "默认值（自动：33 个样本）",
    "default (auto: 6.5 epochs of 10 samples, alpha 16)": "默认值（自动：10 个样本训练 6.5 轮，alpha 16）",
    "default (auto: 1 epoch of 1 sample, alpha 16)": "默认值（自动：1 个样本训练 1 轮，alpha 16）",
    "default (auto: linzhi/001-fresh)": "默认值（自动：同 linzhi/001-fresh）",
    "default (auto: the processor has AVX512-BF16)": "默认值（自动：处理器有 AVX512-BF16）",
    "parent run linzhi/001-fresh": "父训练 linzhi/001-fresh",
    "left out (continue.add_epochs counts)": "不计（以 continue.add_epochs 为准）",
}


@pytest.mark.parametrize("source", SHOWN)
def test_a_source_is_chinese_for_who_reads_chinese(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", "zh")
    assert source_word(source) == SHOWN[source]


@pytest.mark.parametrize("source", SHOWN)
def test_in_english_it_is_what_the_plan_says(source: str) -> None:
    assert source_word(source) == source.replace("auto: linzhi", "auto: as linzhi")


def test_no_source_of_a_plan_is_left_in_english(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the planning writes has its message: first, continued and retuned runs, with a length left out."""
    folder = tmp_path_factory.mktemp("series")
    monkeypatch.chdir(folder)
    write_parent(folder)
    write_run(request("train.max_steps=3", on_existing="new"))
    plans = [
        planned(
            "train.learning_rate=auto", "train.batch_size=auto", "train.lr_scheduler_type=constant", on_existing="new"
        ),
        planned("continue.add_epochs=1", strategy="incremental"),
        planned("train.learning_rate=auto", strategy="retune"),
    ]
    found = {one.source for plan in plans for one in settings(plan.recipe)}
    monkeypatch.setenv("FASTTUNE_LANG", "zh")
    english = {one: source_word(one) for one in found if re.search("[a-z]{4,}", plain(source_word(one)))}
    assert len(found) > 5 and not english


def plain(text: str) -> str:
    """A source without what is a name in every language."""
    return re.sub(r"persona/\S+|alpha|constant|[a-z]+\.[a-z_]+", "", text)


def test_an_unknown_reason_is_shown_as_it_is() -> None:
    assert source_word("default (something new)") == "default (something new)"
    assert setting_source.reason("auto: 7 samples") == "auto: 7 samples"
