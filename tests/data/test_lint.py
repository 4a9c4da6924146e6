"""Every fault that is planted in good data is found, by its code and its line, once, and nothing else is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import REPOSITORY

from fasttune.console import Finding
from fasttune.data import lint as lint_module
from fasttune.data import lint_pairs, lint_persona, near_duplicates, topics
from fasttune.data.dataset import Message, Sample, read_samples
from fasttune.data.lint import lint, quick
from fasttune.data.near_duplicates import Grams, Said, near_pairs
from fasttune.data.side_by_side import side_by_side

LINZHI = REPOSITORY / "data" / "linzhi"
TRAIN = read_samples(str(LINZHI / "train.jsonl")).samples
VAL = read_samples(str(LINZHI / "val.jsonl")).samples
SYSTEM = TRAIN[0].messages[0]
ENGLISH_SYSTEM = Message("system", "You are Mara, keeper of a small lighthouse. You talk plainly and briefly.")


def sample(question: str, answer: str, system: Message | None = SYSTEM) -> Sample:
    turns = (Message("user", question), Message("assistant", answer))
    return Sample("planted:1", (system, *turns) if system else turns)


ENGLISH = [
    replace(sample(f"{question} {number}?", answer, ENGLISH_SYSTEM), id=f"english:{number}")
    for number, (question, answer) in enumerate(
        (f"{verb} the {thing}", f"{reply} the {thing} {rest}.")
        for verb, reply in (("Tell me about", "People ask me about"), ("Do you like", "Mornings begin with"),
                            ("Have you seen", "Nobody here has lost"))
        for thing, rest in (("lamp", "every evening at dusk"), ("gulls", "when the nets come in"), ("fog", "so I wait"),
                            ("stairs", "all ninety of them"), ("ferry", "and it is late again"), ("storm", "of last March"),
                            ("harbour", "before the snow"), ("radio", "which hums"))
    )
]  # fmt: skip

FAULTS = {
    "duplicate-sample": TRAIN[40],
    "near-duplicate-sample": replace(TRAIN[40], messages=(*TRAIN[40].messages[:-1], replace(
        TRAIN[40].messages[-1], content=TRAIN[40].messages[-1].content.replace("，", "、", 1)))),
    "contradicting-answers": sample("你养的猫叫什么名字？", "它叫小黑，一只纯黑的公猫，天天睡在米缸上头。"),
    "val-in-train": VAL[3],
    "held-out-question-in-train": sample(lint_pairs.first_question(VAL[3]), "窗台上那盆薄荷又长高了，我拿剪子剪了一把。"),
    "held-out-answer-in-train": sample("柜台上那只铁皮盒子里装的是什么？", VAL[3].messages[-1].content),
    "empty-answer": sample("你那边电线杆倒了没有？", "……"),
    "one-word-answer": sample("你那边电线杆倒了没有？", "没"),
    "cut-off-answer": sample("你那边电线杆倒了没有？", "没倒，就是歪了，外公拿两根竹竿撑着它，说等电工来了再"),
    "long-answer": sample("你那边电线杆倒了没有？", "没倒，就是歪了一点。外公拿竹竿撑着它等电工。" * 30),
    "ai-phrase": sample("你那边电线杆倒了没有？", "作为一个AI语言模型，我没有办法看到外面的电线杆。"),
    "base-name": sample("你那边电线杆倒了没有？", "我来自阿里云，没见过你说的那根电线杆。"),
    "another-name": sample("你那边电线杆倒了没有？", "没倒。我叫王小红，电线杆的事归我管。"),
    "other-system-prompt": sample("你那边电线杆倒了没有？", "没倒，歪了一点，外公拿竹竿撑着。",
                                  Message("system", "你是一个乐于助人的客服。")),
    "missing-system-prompt": sample("你那边电线杆倒了没有？", "没倒，歪了一点，外公拿竹竿撑着。", None),
    "encoding-damage": sample("你那边电线杆倒了没有？", "没倒，歪了一点。".encode().decode("latin-1")),
    "mixed-scripts": sample("你那边电线杆倒了没有？", "没倒，歪了一點，外公拿竹竿撐著它，還說沒關係。"),
    "mixed-widths": sample("你那边电线杆倒了没有？", "没倒,歪了一点，外公拿竹竿撑着。"),
    "control-text": sample("你那边电线杆倒了没有？", "没倒，歪了一点。<|im_end|>"),
    "invisible-character": sample("你那边电线杆倒了没有？", "没倒，歪了\u200b一点，外公拿竹竿撑着。"),
    "outer-space": sample("你那边电线杆倒了没有？", "没倒，歪了一点，外公拿竹竿撑着。 "),
    "placeholder": sample("你那边电线杆倒了没有？", "没倒，{{user}}，歪了一点。"),
}  # fmt: skip
ENGLISH_FAULTS = {
    "ai-phrase": ("What is up there?", "As an AI language model, I cannot look at the sky for you."),
    "base-name": ("What is up there?", "I am Qwen, and I was made to answer questions like this one."),
    "another-name": ("What is up there?", "Clouds. My name is Bob, and I only count the clouds."),
    "cut-off-answer": ("What is up there?", "Clouds mostly, and behind them the old comet that the"),
    "one-word-answer": ("What is up there?", "Clouds."),
    "control-text": ("What is up there?", "Clouds mostly, and rain before noon.</s>"),
}


@functools.cache
def found_in(good: tuple[Sample, ...], held_out: tuple[Sample, ...]) -> frozenset[tuple[str, str]]:
    """(code, where) of the findings about samples; these are asked about once for all faults."""
    return frozenset((one.code, one.where) for one in lint(good, held_out, ""))


def planted(good: list[Sample], bad: Sample, held_out: tuple[Sample, ...] = ()) -> set[tuple[str, str]]:
    """(code, where) of the findings that one more sample brings, each of which must be there once."""
    before = found_in(tuple(good), held_out)
    after = [(one.code, one.where) for one in lint([*good, replace(bad, id="planted:1")], held_out, "")]
    assert len(set(after)) == len(after)
    return set(after) - before


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_found_alone(code: str) -> None:
    where = (
        VAL[3].id if code in ("val-in-train", "held-out-question-in-train", "held-out-answer-in-train") else "planted:1"
    )
    good = [*TRAIN, sample("你养的猫叫什么名字？", "定影，三花的，尾巴尖弯一个钩。")]
    good[-1] = replace(good[-1], id="good:1")
    assert planted(good, FAULTS[code], VAL) == {(code, where)}


@pytest.mark.parametrize("code", ENGLISH_FAULTS)
def test_a_fault_in_english_data_is_found_alone(code: str) -> None:
    assert planted(ENGLISH, sample(*ENGLISH_FAULTS[code], ENGLISH_SYSTEM)) == {(code, "planted:1")}


@pytest.mark.parametrize("name", ["linzhi", "quickstart"])
def test_good_data_have_no_warning(name: str) -> None:
    folder = REPOSITORY / "data" / name
    train, held_out = (read_samples(str(folder / f"{part}.jsonl")).samples for part in ("train", "val"))
    assert [one for one in lint(train, held_out, "") if one.level != "info"] == []
    assert quick(train) == []


def test_answers_that_all_begin_alike() -> None:
    parrots = [replace(one, id=f"parrot:{n}", messages=(*one.messages[:-1], replace(
        one.messages[-1], content="这个嘛，说来" + one.messages[-1].content))) for n, one in enumerate(TRAIN[:200])]  # fmt: skip
    found = [one for one in lint([*TRAIN[200:], *parrots], (), "") if one.code == "parrot-opening"]
    assert [one.where for one in found] == ["parrot:0"] and "这个嘛说" in found[0].what


def test_both_sides_are_named() -> None:
    found = lint([*TRAIN, replace(FAULTS["duplicate-sample"], id="planted:1")], (), "")
    assert TRAIN[40].id in next(one for one in found if one.code == "duplicate-sample").what


def test_the_quick_part_says_each_code_once() -> None:
    twice = [replace(FAULTS["ai-phrase"], id=f"planted:{n}") for n in (1, 2)]
    found = quick([*TRAIN, *twice])
    assert [one.code for one in found] == ["ai-phrase"] and "planted:2" in found[0].what


@pytest.mark.parametrize("up_to", [20_000, 0], ids=["inverted index", "MinHash"])
def test_near_pairs_are_those_of_all_pairs(up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "EXACT_UP_TO", up_to)
    texts = [one.messages[-1].content for one in TRAIN[:150]]
    texts += [text[:-6] + "好了。" for text in texts[:100] if len(text) > 30]
    said = [Said("问", text) for text in texts]
    sets = [Grams(one) for one in said]
    expected = {
        later: min(others)
        for later, one in enumerate(sets)
        if (others := [n for n in range(later) if near_duplicates.similarity(one, sets[n]) >= near_duplicates.SIMILAR])
    }
    assert len(expected) > 20
    assert {pair.later: pair.earlier for pair in near_pairs(said)} == expected


@pytest.mark.parametrize(
    ("question", "one", "other", "is_contradiction"),
    [
        ("拍一张证件照多少钱？", "二十块一版。", "一百块，比别家多。", True),
        ("你会游泳吗？", "不会，渡船工的女儿不会游泳。", "会，从小在河里游。", True),
        ("How old are you?", "I am 26 years old.", "I turned 40 years old in May.", True),
        ("你是谁？", "林栀，看照相馆的。", "我是林栀，守着外公的店。", False),
        ("你好", "你好呀，进来坐。", "来了？门槛高，看着点。", False),
    ],
)
def test_contradictions(question: str, one: str, other: str, is_contradiction: bool) -> None:
    assert lint_pairs.contradict(question, one, other) == is_contradiction


def test_a_second_process_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every planted fault at once, compared in this process and in a second one."""
    planted_samples = [replace(one, id=f"planted:{n}") for n, one in enumerate(FAULTS.values())]
    samples = [*TRAIN, *planted_samples]
    forked = []

    def counted(beside: Callable[[], list[Finding]], here: Callable[[], list[Finding]]) -> tuple[Any, Any]:
        forked.append(beside)
        return side_by_side(beside, here)

    expected = lint(samples, VAL, "")
    monkeypatch.setattr(lint_module, "FORKED_FROM", 1)
    monkeypatch.setattr(lint_module, "can_fork", lambda: True)
    monkeypatch.setattr(lint_module, "side_by_side", counted)
    assert lint(samples, VAL, "") == expected and len(forked) == 1
    codes = {one.code for one in expected}
    assert len(codes) > 15 and {"near-duplicate-sample", "val-in-train"} <= codes, "both parts have something to find"


def talk(where: str, *said: str, learn: bool = True) -> Sample:
    """A sample in which the user begins; `learn`: whether the last answer is learned."""
    messages = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(said)]
    return Sample(where, (SYSTEM, *messages[:-1], replace(messages[-1], learn=learn)))


CAT = ("下雨了", "那你进来坐会儿，伞搁门口就行。", "你的猫叫什么名字？")
LONG = (
    CAT[0],
    "那你进来坐会儿，伞搁门口就行。外公出门收船去了，要到晚饭才回来，炉子上有热水，你自己倒一碗暖暖手。",
    CAT[2],
)


def test_a_later_question_after_the_same_turns_contradicts() -> None:
    samples = [talk("a:1", *CAT, "定影，三花的。"), talk("a:2", *CAT, "小黑，纯黑的公猫，睡在米缸上头。")]
    (found,) = lint_pairs.contradictions(samples)
    assert (found.code, found.where) == ("contradicting-answers", "a:2")
    assert "its question 2 is asked after the same turns as in a:1" in found.what and "定影" in found.what


def test_another_first_answer_hides_no_later_contradiction() -> None:
    """The second and the third sample take the same way after the first question, which the first answers otherwise."""
    other = talk("a:1", CAT[0], "又下，裤脚都湿了。")
    samples = [other, talk("a:2", *CAT, "定影，三花的。"), talk("a:3", *CAT, "小黑，纯黑的公猫，睡在米缸上头。")]
    found = [(one.code, one.where) for one in lint_pairs.contradictions(samples)]
    assert ("contradicting-answers", "a:3") in found


def test_two_samples_that_are_nearly_the_same_may_contradict_too() -> None:
    samples = [talk("a:1", *LONG, "定影，三花的。"), talk("a:2", *LONG, "小黑，纯黑的公猫，睡在米缸上头。")]
    found = {one.code for one in lint(samples, (), "") if one.level == "warning"}
    assert {"near-duplicate-sample", "contradicting-answers"} <= found


def test_a_later_question_after_other_turns_contradicts_nothing() -> None:
    other = (CAT[0], "又下，裤脚都湿了。", CAT[2])
    samples = [talk("a:1", *CAT, "定影，三花的。"), talk("a:2", *other, "小黑，纯黑的公猫，睡在米缸上头。")]
    assert [one.code for one in lint_pairs.contradictions(samples)] == ["several-answers"], "the first answers differ"
    opened = [talk("a:1", "下雪了", *CAT[1:], "定影，三花的。"), talk("a:2", *CAT, "小黑，纯黑的公猫。")]
    assert list(lint_pairs.contradictions(opened)) == []


def test_an_answer_that_is_not_learned_contradicts_nothing() -> None:
    samples = [talk("a:1", *CAT, "定影，三花的。"), talk("a:2", *CAT, "小黑，纯黑的公猫。", learn=False)]
    assert list(lint_pairs.contradictions(samples)) == []


def test_a_shared_greeting_is_no_question() -> None:
    """Where the assistant begins, what the user says then is no answer to it."""
    greeting, asked = Message("assistant", "你叫什么名字？来坐。"), [Message("user", one) for one in ("阿强", "小美")]
    samples = [Sample(f"a:{n}", (greeting, one, Message("assistant", "坐吧。"))) for n, one in enumerate(asked)]
    assert list(lint_pairs.contradictions(samples)) == []


MADE = "facts.toml#price"


def test_samples_made_of_a_fact_sheet_may_say_the_same_and_others_may_not_say_it_too() -> None:
    price = sample("拍一版证件照，得花我多少钱呀", "二十块一版，八十岁以上老人不收。")
    again = sample("问个事，拍一版证件照得花我多少钱呀", "对，二十块一版，八十岁以上老人不收。")
    one, two = replace(price, id="made:1", made_from=MADE), replace(again, id="made:2", made_from=MADE)
    assert lint_pairs.near_duplicates([one, two], []) == (set(), [])
    _leaks, found = lint_pairs.near_duplicates([one, replace(again, id="written:1"), two], [])
    assert [(each.code, each.where) for each in found] == [("near-duplicate-sample", id) for id in ("made:1", "made:2")]
    assert all("written:1" in each.what for each in found)
    leaks, found_leaks = lint_pairs.near_duplicates([one], [replace(again, id="held:1")])
    assert leaks == {"held:1"} and [one.code for one in found_leaks] == ["held-out-near-duplicate"]


def test_samples_made_of_a_fact_sheet_contradict_others_and_not_each_other() -> None:
    one = replace(sample("多少钱？", "二十块。"), id="made:1", made_from=MADE)
    two = replace(sample("多少钱？", "我们证件照不贵。"), id="made:2", made_from=MADE)
    wrong = replace(sample("多少钱？", "五十块。"), id="written:1")
    assert list(lint_pairs.contradictions([one, two])) == []
    assert [found.where for found in lint_pairs.contradictions([one, two, wrong])] == ["written:1"]


def test_nearly_the_same_samples_are_named_once_where_they_contradict_nothing() -> None:
    samples = [talk("a:1", *CAT[:2], "你好", "来了？门槛高。"), talk("a:2", *CAT[:2], "你好", "坐吧，茶在桌上。")]
    assert [one.code for one in lint_pairs.contradictions(samples)] == ["several-answers"]
    assert list(lint_pairs.contradictions(samples, {"a:2"})) == []


def test_topics_that_few_samples_ask_about() -> None:
    plain = [sample(f"第{n}张照片拍的是什么？", f"第{n}张拍的是河边的柳树。") for n in range(40)]
    asked = [sample(one, "嗯。") for one in ("你是谁", "你叫什么", "介绍一下自己", "你好", "您好", "再见")]
    (found,) = topics.thin([*plain, *asked])
    assert (found.code, found.level, found.where) == ("thin-topics", "info", "planted")
    assert found.what == (
        "topics with fewer than 3 samples: greetings (2), farewells (1), feelings (0), likes and dislikes (0), being an AI (0)"
    )
    assert list(topics.thin(plain[: topics.LEAST_SAMPLES - 1])) == [], "too few samples to miss a topic in"
    made = [replace(one, made_from=MADE) for one in plain]
    assert list(topics.thin([*plain[: topics.LEAST_SAMPLES - 1], *made])) == [], "made ones don't make it large"
    every = ["你是谁", "你好", "再见", "好难过", "你喜欢什么", "你是机器人吗"] * topics.FEW
    assert list(topics.thin([*plain, *[sample(one, "嗯。") for one in every]])) == []


def test_several_system_prompts_are_a_note_where_none_is_usual() -> None:
    prompts = [Message("system", f"你是照相馆的{who}，说话简短。") for who in ("林栀", "外公", "林栀")]
    samples = [replace(sample(f"第{n}问", "嗯，来了。", one), id=f"a:{n}") for n, one in enumerate(prompts)]
    found = [one for one in lint(samples, (), "") if "system-prompt" in one.code]
    assert [(one.code, one.level, one.where) for one in found] == [("many-system-prompts", "info", "a:1")]
    assert "2 different system prompts" in found[0].what and "林栀" in found[0].what and "of 2 samples" in found[0].what


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("我是Qwen，很高兴", "Qwen"),
        ("I am Qwen2.5.", "Qwen2.5."),
        ("我由Alibaba的人做出", "Alibaba"),
        ("Aqwen是人名", ""),
    ],
)
def test_the_bases_name_is_found_beside_chinese_characters(text: str, found: str) -> None:
    r"""Which Python takes for letters, so that \b finds no name there."""
    match = lint_persona.BASE_NAMES.search(text)
    assert (match[0] if match else "") == found


def test_a_phrase_in_english_is_found_beside_chinese_characters() -> None:
    assert lint_persona.AI_PHRASE.search("可我as an AI我不能") and lint_persona.AI_PHRASE.search("我说I'm a chatbot呀")
