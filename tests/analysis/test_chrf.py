"""chrF as sacrebleu computes it: 100 for the reference itself, little for something else, also in Chinese."""

from __future__ import annotations

import pytest

from fasttune.analysis.chrf import corpus_chrf, sentence_chrf


def test_the_reference_itself_is_100() -> None:
    assert corpus_chrf(["春和照相馆", "Who are you?"], ["春和照相馆", "Who are you?"]) == pytest.approx(100)


def test_near_is_better_than_far() -> None:
    near, far = sentence_chrf("猫叫定影", "我的猫叫定影"), sentence_chrf("今天下雨了", "我的猫叫定影")
    assert 30 < near < 100 and far < 5


def test_a_figure_by_hand() -> None:
    """abcd against abce: 3 of 4 characters, 2 of 3 pairs, 1 of 2 triples, 0 of 1 fours; none are longer."""
    assert sentence_chrf("abcd", "abce") == pytest.approx((3 / 4 + 2 / 3 + 1 / 2 + 0) / 4 * 100, abs=0.1)
