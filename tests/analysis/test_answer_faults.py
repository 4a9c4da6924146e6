"""Answers counted: recited, repeated, fallen out of character."""

from __future__ import annotations

import pytest

from fasttune.analysis import answer_faults


def test_similarity_is_the_normalized_edit_distance() -> None:
    assert answer_faults.similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert answer_faults.similarity("你好", "你好") == 1 and answer_faults.similarity("", "你") == 0
    assert answer_faults.similarity("abcdefghij", "abcdefghiX", 0.9) == pytest.approx(0.9)
    assert answer_faults.similarity("abcdefghij", "abcdefghXY", 0.9) == 0, "below the least that counts"
    assert answer_faults.similarity("abcdefghij", "jihgfedcba", 0.9) == 0, "the same letters in another sequence"


def test_an_answer_that_is_a_training_answer_is_named() -> None:
    known = [
        ("a.jsonl:1", answer_faults.plain("今天的暗房里，红灯亮了一整夜。")),
        ("a.jsonl:2", answer_faults.plain("好的。")),
    ]
    assert answer_faults.parroted("今天的暗房里红灯亮了一整夜", known) == ("a.jsonl:1", 1.0)
    name, share = answer_faults.parroted("今天的暗房里，红灯亮了一整天！", known) or ("", 0.0)
    assert name == "a.jsonl:1" and share == pytest.approx(12 / 13)
    assert answer_faults.parroted("昨天的厨房里，蓝灯灭了一整天！", known) is None
    assert answer_faults.parroted("好的。", known) is None, "short answers are alike by nature"


def test_babble_is_told_from_prose() -> None:
    prose = "我在暗房里冲洗照片，红灯亮着，窗外在下雨。定影趴在椅子上睡着了，偶尔动一动耳朵。我想等它们干了再挂起来。"
    assert (
        answer_faults.repeated_share(prose) < 0.1 < answer_faults.REPEATED < answer_faults.repeated_share("你好呀" * 12)
    )
    assert answer_faults.repeated_share("哈哈哈哈哈") == 0, "too short to tell"
    english = "The lamp turns and the sea answer_faults. I sit by the window and count the ships that pass in the dark."
    assert answer_faults.repeated_share(english) < answer_faults.REPEATED


@pytest.mark.parametrize(
    "text",
    [
        "哈哈哈哈哈哈哈哈",
        "no, no, no, no",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21",
        "-" * 40,
    ],
)
def test_what_people_write_is_no_loop(text: str) -> None:
    assert answer_faults.find_loop(text) == 0


def test_loops_of_every_length_are_found() -> None:
    assert answer_faults.find_loop("a" * 80) == 59  # 60 characters are a loop; the first of them is kept
    assert answer_faults.find_loop("abcdefghij" * 6) == 50
    assert answer_faults.find_loop("x" + "".join(map(chr, range(100, 200))) * 4) == 300
    assert answer_faults.find_loop("".join(map(chr, range(100, 201))) * 4) == 0  # one longer than is looked for


@pytest.mark.parametrize(
    "text",
    ["我是通义千问", "As an AI, I can't", "作为一个人工智能助手", "I'm an AI", "我是Qwen。", "我只是一个语言模型"],
)
def test_the_base_speaks(text: str) -> None:
    assert answer_faults.out_of_character(text, ["我是林栀。"])
    assert answer_faults.out_of_character(text, ["作为一个AI，我叫小智。"]) == "", "the persona is one"


@pytest.mark.parametrize("text", ["我是林栀，在暗房里。", "她说要去开模型展", "I said maybe", "爱是什么"])
def test_the_persona_speaks(text: str) -> None:
    assert answer_faults.out_of_character(text, ["我是林栀。"]) == ""
