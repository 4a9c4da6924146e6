"""What is measured is told from what may be trained on."""

from __future__ import annotations

import pytest

from fasttune.data.measured import ANSWER_LETTERS, Measured

ASKED = "你弟弟叫什么？"


@pytest.mark.parametrize(
    ("text", "is_like"),
    [
        (ASKED, True),
        ("你弟弟叫什么呀", True),  # a particle and the mark
        ("你弟弟叫什么", True),
        ("问你个事，你弟弟叫什么？", True),  # a lead-in before it
        ("老问你要生活费的那位姓甚名谁？", False),
        ("你弟弟大名？", False),
    ],
)
def test_a_measured_question_is_known_again(text: str, is_like: bool) -> None:
    assert Measured([ASKED, "What is your dog called?"]).like(text) == (ASKED if is_like else None)


def test_english() -> None:
    measured = Measured(["What is your dog called?"])
    assert measured.like("what's your dog called") and not measured.like("What do you call the terrier?")


def test_a_short_held_out_answer_may_stand_in_another_and_a_long_one_not() -> None:
    long = "汪曾祺和萧红，翻来覆去地看，看得慢。"
    answers = Measured(["二十六。", long], ANSWER_LETTERS)
    assert answers.like("二十六，六月里过的生日。") is None and answers.like("二十六") == "二十六。"
    assert answers.like(f"没什么别的爱好，闲下来就翻书，你说的那几位我没读过。{long}别的也不看。") == long
