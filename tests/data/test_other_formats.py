"""Records of no accepted format: what each resembles, and a remedy that leads to a file which can be read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_files import refusal, turns, write

from fasttune.data.dataset import read_samples
from fasttune.data.formats import conversation
from fasttune.data.messages import Notes

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def finding(record: Any) -> tuple[str, str]:
    """(code, hint) of the one finding that a record is refused with."""
    notes = Notes(where="t.jsonl:1")
    assert conversation(record, notes) == (None, None)
    (found,) = notes.findings
    return found.code, found.fix


@pytest.mark.parametrize(
    ("record", "fix"),
    [
        ({"query": "q", "response": "a"}, 'rename "query" to "prompt", "response" to "completion"'),
        ({"Prompt": "q", "Completion": "a"}, 'rename "Prompt" to "prompt", "Completion" to "completion"'),
        ({"question": "q", "answer": "a", "id": 1}, 'rename "question" to "prompt", "answer" to "completion"'),
        ({"input": "q", "output": "a"}, 'rename "input" to "prompt", "output" to "completion"'),
        ({"prompt": "q", "response": "a"}, 'rename "response" to "completion"'),
        ({"instruction": "q", "input": "more", "response": "a"}, 'rename "response" to "output"'),
        (
            {"query": "q", "response": "a", "history": [["q", "a"]]},
            'rename "query" to "instruction", "response" to "output"',
        ),
    ],
)
def test_other_names_of_the_keys_are_named_and_the_renamed_record_is_read(record: dict[str, Any], fix: str) -> None:
    assert finding(record)[1] == fix
    renaming = dict(re.findall(r'"(\w+)" to "(\w+)"', fix))
    _name, messages = conversation({renaming.get(key, key): value for key, value in record.items()}, Notes())
    assert messages is not None and messages[-1].content == "a"


def test_a_conversation_under_another_key_is_told_from_records_in_a_list() -> None:
    renamed = ("conversation-key", 'rename "conversation" to "conversations"')
    assert finding({"conversation": [USER, ASSISTANT]}) == renamed
    assert finding({"dialog": [{"from": "human", "value": "q"}]})[1] == 'rename "dialog" to "messages"'
    code, fix = finding({"conversation": [{"human": "q", "assistant": "a"}]})
    assert code == "conversation-key" and fix.startswith("write each pair as two messages: ")
    code, fix = finding({"dialogue": [{"role": "Pip", "text": "a"}]})
    assert code == "conversation-key" and fix.startswith('write "text" as "content", and the roles user and assistant')
    code, fix = finding({"contents": [{"role": "model", "parts": [{"text": "a"}]}], "systemInstruction": {}})
    assert code == "conversation-key" and 'write "parts" as "content"' in fix
    code, fix = finding({"turns": [{"speaker": "Pip", "utterance": "a"}]})
    assert 'write "speaker" as "role" (user or assistant) and "utterance" as "content"' in fix
    for key, inner in (("train", {"prompt": "q", "completion": "a"}), ("data", {"question": "q", "answer": "a"})):
        assert finding({key: [inner]})[0] == "object-around-list"
    assert finding({"tags": [{"x": 1}]})[0] == "unknown-format"


def test_no_remedy_saves_one_conversation_as_the_file() -> None:
    """The advice for an object around all records would destroy a file that has a conversation a line."""
    for inner in (USER, {"human": "q", "assistant": "a"}, {"role": "user", "text": "q"}, {"x": 1}):
        assert "save that list" not in finding({"conversation": [inner]})[1]


@pytest.mark.parametrize(
    ("record", "fix"),
    [
        (
            {"chosen_messages": [USER, ASSISTANT], "rejected_messages": [USER]},
            'rename "chosen_messages" to "messages" and remove "rejected_messages"',
        ),
        ({"chosen": [USER, ASSISTANT], "rejected": []}, 'rename "chosen" to "messages" and remove "rejected"'),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, 'rename "chosen" to "completion" and remove "rejected"'),
        (
            {"conversations": [{"from": "human", "value": "q"}], "chosen": {"value": "a"}, "rejected": {}},
            'keep the good answer alone, as "completion" or as the last message of the conversation',
        ),
    ],
)
def test_a_preference_pair_is_called_one_whatever_its_keys(record: dict[str, Any], fix: str) -> None:
    assert finding(record) == ("preference-data", fix)


@pytest.mark.parametrize(
    "table",
    [
        {"prompt": ["1", "2026-01-01"], "completion": ["a", "b"]},
        {"prompt": {"0": "1", "1": "2026-01-01"}, "completion": {"0": "a", "1": "b"}},
        {"0": {"prompt": "1", "completion": "a"}, "1": {"prompt": "2026-01-01", "completion": "b"}},
        {"messages": [[USER, ASSISTANT], [{**USER, "content": "2026-01-01"}, {**ASSISTANT, "content": "b"}]]},
    ],
    ids=["lists", "columns by number", "records by number", "a column of conversations"],
)
def test_a_table_is_called_one_and_the_command_in_the_hint_converts_it(table: Any, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    (found,) = refusal(str(file))
    assert found.code == "table"
    code = re.search(r'python -c "(.*)"$', found.fix)
    assert code is not None
    subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, check=True)
    reading = read_samples(str(tmp_path / "train.jsonl"))
    assert not reading.findings and turns(reading.samples[1]) == [("user", "2026-01-01"), ("assistant", "b")]


def test_texts_in_a_list_of_messages_are_no_table() -> None:
    notes = Notes()
    conversation({"messages": ["q", "a"]}, notes)
    assert {one.code for one in notes.findings} == {"not-a-message"}


def test_a_list_or_a_number_in_quotes_says_how_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"messages": json.dumps([USER, ASSISTANT])}, {"instruction": "q", "output": 4})
    fixes = {found.code: found.fix for found in refusal(path)}
    assert fixes["not-a-list"] == "write the list itself, without quotation marks around it"
    assert fixes["content-not-text"] == 'write it as text: "4"'
