"""Every accepted format: the files in data/formats, and records that are of none or of several."""

from __future__ import annotations

from typing import Any

import pytest
from data_files import FORMATS, turns

from fasttune.data.dataset import load_dataset, read_samples
from fasttune.data.formats import conversation, made_from
from fasttune.data.messages import Notes
from fasttune.recipe.schema import DataRecipe

SYSTEM = ("system", "你是灯塔看守人老周，说话简短，爱讲海。")
FIRST_OF_EACH = {
    "messages.jsonl": [SYSTEM, ("user", "今天风大吗？"), ("assistant", "大。浪把码头的灯都打湿了，船今天不出海。")],
    "messages.json": [
        ("user", "What do you eat out there?"),
        ("assistant", "Fish, mostly. Bread when the boat comes."),
    ],
    "sharegpt.jsonl": [SYSTEM, ("user", "雾天怎么办？"), ("assistant", "敲钟。雾里听得见的，比看得见的可靠。")],
    "alpaca.json": [
        ("user", "用老周的口气回答\n海是什么颜色？"),
        ("assistant", "看天。天什么色，海就什么色，只是更深些。"),
    ],
    "prompt-completion.jsonl": [("user", "船几点到？"), ("assistant", "涨潮就到，大约七点。")],
    "prompt-completion-messages.jsonl": [
        SYSTEM,
        ("user", "灯坏过吗？"),
        ("assistant", "坏过一次。那一夜我举着马灯站到天亮。"),
    ],
    "gb18030.jsonl": [("user", "你叫什么名字？"), ("assistant", "老周。这里的人都这么叫，鸥鸟也不例外。")],
    "bom-crlf.jsonl": [("user", "涨潮了吗？"), ("assistant", "快了，石头已经湿了一半。")],
}


def test_every_file_of_the_formats_folder_is_named_here_and_in_its_readme() -> None:
    files = {path.name for path in FORMATS.iterdir()} - {"README.md", ".gitattributes"}
    assert files == set(FIRST_OF_EACH)
    readme = (FORMATS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in files)


@pytest.mark.parametrize("name", FIRST_OF_EACH)
def test_every_format_reads(name: str) -> None:
    dataset = load_dataset(DataRecipe(train=(str(FORMATS / name),)), seed=0)
    assert turns(dataset.train[0]) == FIRST_OF_EACH[name]
    assert [finding.code for finding in dataset.findings] == (["gb18030"] if name == "gb18030.jsonl" else [])


def test_history_system_and_content_parts() -> None:
    _first, night, _last = read_samples(str(FORMATS / "alpaca.json")).samples
    asked = [("user", "海是什么颜色？"), ("assistant", "看天。")]
    assert turns(night) == [SYSTEM, *asked, ("user", "那夜里呢？"), ("assistant", "夜里是黑的，黑得能听见。")]
    assert turns(read_samples(str(FORMATS / "sharegpt.jsonl")).samples[1])[0] == SYSTEM
    assert turns(read_samples(str(FORMATS / "messages.json")).samples[1])[0] == ("user", "And when it does not come?")


@pytest.mark.parametrize(
    ("record", "name", "code"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages", ""),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "messages", ""),
        ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "ShareGPT", ""),
        ({"instruction": "q", "output": "a", "history": None}, "Alpaca", ""),
        ({"prompt": "q", "completion": "a"}, "prompt/completion", ""),
        ({"prompt": "q", "completion": "a", "instruction": "q", "output": "a"}, None, "ambiguous-format"),
        ({"prompt": "q"}, None, "missing-key"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, None, "preference-data"),
        ({"role": "user", "content": "q"}, None, "message-alone"),
        ({"data": [{"messages": []}]}, None, "object-around-list"),
        ({"text": "a"}, None, "raw-text"),
        ({"a": 1}, None, "unknown-format"),
        ({}, None, "unknown-format"),
        (["q", "a"], None, "not-an-object"),
        (None, None, "not-an-object"),
    ],
)
def test_the_format_follows_from_the_keys(record: Any, name: str | None, code: str) -> None:
    notes = Notes()
    found, messages = conversation(record, notes)
    assert found == name and [finding.code for finding in notes.findings] == ([code] if code else [])
    assert (messages is not None) is (name is not None)
    if messages is not None:
        assert [(message.role, message.content) for message in messages] == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("instruction", "given", "question"),
    [("q", "more", "q\nmore"), ("", "more", "more"), ("q", "", "q"), ("q", None, "q")],
)
def test_alpaca_joins_instruction_and_input(instruction: str, given: str | None, question: str) -> None:
    _name, messages = conversation({"instruction": instruction, "input": given, "output": "a"}, Notes())
    assert messages is not None and messages[0].content == question


@pytest.mark.parametrize(
    ("mark", "is_one"),
    [
        ({"sheet": "facts.toml", "facts": ["cat", "price"]}, True),
        ("facts.toml", False),  # somebody's own key
        ({"sheet": "facts.toml"}, False),
    ],
)
def test_the_mark_of_a_sample_made_of_a_fact_sheet_is_known_and_not_trained_on(mark: Any, is_one: bool) -> None:
    record = {"made_from": mark, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    notes = Notes(where="mine.jsonl:1")
    _name, messages = conversation(record, notes)
    assert messages is not None and [one.content for one in messages] == ["q", "a"]
    assert made_from(record) == ("facts.toml#cat+price" if is_one else "")
    assert ("made_from" in notes.ignored) != is_one
