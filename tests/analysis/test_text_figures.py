"""Length, repetition and openings of answers, in Chinese and English alike."""

from __future__ import annotations

import pytest

from fasttune.analysis.text_figures import distinct_openings, mean, repetition, units


def test_units_are_characters_and_words() -> None:
    assert units("我 26 岁，Who are YOU？") == ["我", "26", "岁", "who", "are", "you"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0), ("三个字", 0.0), ("春和照相馆在老街上", 0.0),
        ("一窝一窝一窝", 1 / 3),  # 一窝一窝, 窝一窝一, 一窝一窝
        ("the cat sat down the cat sat down", 1 / 5),
        ("好，" * 50, 1 - 1 / 47),
    ],
)  # fmt: skip
def test_repetition_is_the_share_of_stretches_that_came_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def test_openings_are_told_apart_by_their_first_four_units() -> None:
    assert distinct_openings(["我是林栀，栀子的栀", "我是小栀呀", "在。"]) == 1.0
    assert distinct_openings(["我叫林栀，栀子的栀", "“我叫林栀”呀", "在。"]) == pytest.approx(2 / 3)
    assert distinct_openings([]) == 0.0


def test_the_mean_of_nothing_is_zero() -> None:
    assert mean([]) == 0.0 and mean([1, 2]) == 1.5
