"""Fact sheets: what a good one holds, and every problem of a bad one at once, each at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune.console import Finding, UsageError
from fasttune.data.fact_sheet import Fact, Rule, read_fact_sheet

GOOD = """\
[[fact]]
id = "cat-name"
text = "她的猫叫定影"
source = "system"
questions = ["你的猫叫什么？", "猫咪什么名字？", "怎么叫你家的猫？"]
accept = ["定影"]
forbid = ["定型"]

[[fact]]
id = "price"
text = "二十块一版"
questions = ["多少钱？", "怎么收费？", "贵不贵？"]
accept = ["二十", "20元"]

[[never]]
id = "never-assistant"
text = "不说语言模型"
questions = ["你是什么模型？", "你是什么模型？"]
forbid = ["语言模型"]
"""
# What is changed in the good sheet, and the findings that follow: code and line.
BROKEN = {
    "another key": ('source = "system"', 'sorce = "system"', [("facts-unknown-key", 4)]),
    "a missing key": ('accept = ["定影"]\n', "", [("facts-missing-key", 1)]),
    "a text for a list": ('accept = ["定影"]', 'accept = "定影"', [("facts-wrong-type", 6)]),
    "a number in a list": ('accept = ["二十", "20元"]', 'accept = ["二十", 20]', [("facts-wrong-type", 13)]),
    "another source": ('"system"', '"prompt"', [("facts-wrong-type", 4)]),
    "an empty list": ('accept = ["定影"]', "accept = []", [("facts-empty-value", 6)]),
    "an empty text": ('text = "二十块一版"', 'text = " "', [("facts-empty-value", 11)]),
    "quotation marks alone": ('accept = ["定影"]', 'accept = ["“”"]', [("facts-empty-value", 6)]),
    "no phrase to forbid": ('forbid = ["语言模型"]', "forbid = []", [("facts-empty-value", 19)]),
    "two wordings": (', "贵不贵？"', "", [("facts-few-wordings", 12)]),
    "the same wording three times": ('"多少钱？", "怎么收费？", "贵不贵？"', '"a?", "a?", "a?"', [("facts-few-wordings", 12)]),
    "accepted in the question": ('"怎么收费？"', '"是20块吗？"', [("facts-in-question", 13)]),
    "accepted and forbidden": ('forbid = ["定型"]', 'forbid = ["影"]', [("facts-contradiction", 6)]),
    "an id twice": ('id = "price"', 'id = "cat-name"', [("facts-repeated-id", 10)]),
    "another table": ("[[never]]", "[[rule]]", [("facts-unknown-table", 15)]),
    "one bracket": ("[[never]]", "[never]", [("facts-unknown-table", 15)]),
    "no TOML": ('id = "price"', "id = price", [("facts-syntax", 10)]),
}  # fmt: skip


# The same with what is trained on, below the cat's `forbid` in line 7.
SAID = """\
ask = ["那只猫的大名是？", "喂猫时你喊它啥？"]
say = ["我家猫叫定影。", "定影，冲照片的药水。"]
"""
TRAINED = GOOD.replace('forbid = ["定型"]\n', 'forbid = ["定型"]\n' + SAID)
BROKEN_SAID = {
    "a measured question": ("喂猫时你喊它啥？", "哎，怎么叫你家的猫", "facts-measured-wording", 8),
    "one of another entry": ("喂猫时你喊它啥？", "你是什么模型", "facts-measured-wording", 8),
    "the answer in the question": ("喂猫时你喊它啥？", "定影是谁？", "facts-in-question", 8),
    "an answer without the fact": ("我家猫叫定影。", "我家猫不叫。", "facts-not-said", 9),
    "the opposite": ("我家猫叫定影。", "定影，不叫定型。", "facts-forbidden-said", 9),
    "a rule broken": ("我家猫叫定影。", "我是语言模型，猫叫定影。", "facts-forbidden-said", 9),
    "a text for a list": ('say = ["我家猫叫定影。", "定影，冲照片的药水。"]', 'say = "定影"', "facts-wrong-type", 9),
    "nothing in the list": ('say = ["我家猫叫定影。", "定影，冲照片的药水。"]', "say = []", "facts-empty-value", 9),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "facts.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> list[Finding]:
    with pytest.raises(UsageError) as refused:
        read_fact_sheet(path)
    return list(refused.value.findings)


def test_a_good_sheet(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    sheet = read_fact_sheet(path)
    cat, price = sheet.facts
    assert cat == Fact(
        "cat-name", "她的猫叫定影", "system", ("你的猫叫什么？", "猫咪什么名字？", "怎么叫你家的猫？"), ("定影",), ("定型",), f"{path}:1"
    )  # fmt: skip
    assert (price.source, price.forbid, price.where) == ("data", (), f"{path}:9")
    assert sheet.rules == (Rule("never-assistant", "不说语言模型", ("你是什么模型？",), ("语言模型",), f"{path}:15"),)
    assert len(sheet.questions) == 7


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_named_at_its_line(tmp_path: Path, name: str) -> None:
    before, after, expected = BROKEN[name]
    assert before in GOOD
    path = written(tmp_path, GOOD.replace(before, after, 1))
    found = refusal(path)
    assert [(one.code, one.where) for one in found] == [(code, f"{path}:{line}") for code, line in expected]
    assert all(one.what and "\n" not in one.what for one in found)


def test_what_is_trained_on_is_read_and_may_be_left_out(tmp_path: Path) -> None:
    cat, price = read_fact_sheet(written(tmp_path, TRAINED)).facts
    assert cat.ask == ("那只猫的大名是？", "喂猫时你喊它啥？") and cat.say[1] == "定影，冲照片的药水。"
    assert (price.ask, price.say) == ((), ())
    assert "那只猫的大名是？" not in read_fact_sheet(written(tmp_path, TRAINED)).questions  # never asked by `facts`


@pytest.mark.parametrize("name", BROKEN_SAID)
def test_a_mistake_in_what_is_trained_on_is_named_at_its_line(tmp_path: Path, name: str) -> None:
    before, after, code, line = BROKEN_SAID[name]
    assert before in TRAINED
    path = written(tmp_path, TRAINED.replace(before, after, 1))
    assert [(one.code, one.where) for one in refusal(path)] == [(code, f"{path}:{line}")]


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = GOOD
    for name in ("another key", "two wordings", "no phrase to forbid"):
        before, after, _expected = BROKEN[name]
        text = text.replace(before, after, 1)
    codes = [one.code for one in refusal(written(tmp_path, text))]
    assert codes == ["facts-unknown-key", "facts-few-wordings", "facts-empty-value"]


def test_a_sheet_with_nothing_in_it(tmp_path: Path) -> None:
    assert [one.code for one in refusal(written(tmp_path, "# nothing\n"))] == ["facts-empty"]


def test_a_sheet_that_is_not_there(tmp_path: Path) -> None:
    (finding,) = refusal(tmp_path / "facts.toml")
    assert finding.code == "facts-not-found" and "--file" in finding.fix


def test_a_sheet_in_gb18030(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    path.write_bytes(GOOD.replace("\n", "\r\n").encode("gb18030"))
    assert read_fact_sheet(path).facts[0].text == "她的猫叫定影"
