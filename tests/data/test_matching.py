"""Phrases in answers: widths, spaces, capitals and numerals make no difference, the rest of a number or a word does."""

from __future__ import annotations

import pytest

from fasttune.data.matching import digits, holds, normalised

NUMERALS = {
    "二十六": "26", "十": "10", "十二": "12", "八十": "80", "三十一": "31", "二百一十二": "212", "一百二": "120",
    "二百零五": "205", "一百七十五": "175", "四千二": "4200", "九千八": "9800", "一千零五十": "1050", "一千零五": "1005",
    "一千二百三十四": "1234", "一万二": "12000", "一万零三": "10003", "一九八三": "1983", "二〇二六": "2026", "两": "2",
}  # fmt: skip
NONE = ["万一", "千万", "百", "千百", "十十", "二十百", "一万万"]


@pytest.mark.parametrize(("numeral", "number"), NUMERALS.items())
def test_numerals_become_digits(numeral: str, number: str) -> None:
    assert digits(numeral) == number


@pytest.mark.parametrize("word", NONE)
def test_what_is_no_number_stays(word: str) -> None:
    assert digits(word) == word


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("我二十六岁。", "26岁"), ("她今年２６", "二十六"), ("它叫“老 板”", "老板"), ("I am an ＡＩ model", "AI"),
        ("《南屏晚钟》", "南屏晚钟"), ("店在槐荫街17号", "槐荫街 17 号"), ("攒了4200", "四千二"),
    ],
)  # fmt: skip
def test_an_answer_holds_a_phrase(answer: str, phrase: str) -> None:
    assert holds(normalised(answer), normalised(phrase))


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("一百二十六个", "二十六"),
        ("她26岁", "二十"),
        ("I said so, again", "AI"),
        ("来个e-mail", "AI"),
        ("什么都行", ""),
    ],
)
def test_parts_of_numbers_and_words_do_not_count(answer: str, phrase: str) -> None:
    assert not holds(normalised(answer), normalised(phrase))
