"""`fasttune augment` on the command line: what it prints, and what it says of a wrong call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import call_here

SHEET = """\
[[fact]]
id = "cat"
text = "Her cat is called Fixer"
questions = ["What is your cat called?", "Has the cat a name?", "Who is that cat?"]
accept = ["Fixer"]
ask = ["How do you call it to dinner?", "And the animal on the till?"]
say = ["Fixer. He stays where he sits.", "My cat, Fixer."]
"""


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    (tmp_path / "facts.toml").write_text(SHEET, encoding="utf-8")
    return tmp_path / "facts.toml"


def test_the_file_on_stdout_and_what_to_do_next_on_stderr(sheet: Path) -> None:
    done = call_here(sheet.parent / "runs", "augment", sheet)
    file = sheet.parent / "facts-train.jsonl"
    assert (done.returncode, done.stdout) == (0, f"{file}\n"), done.stderr
    assert f'add "{file}" to `train` below [data]' in done.stderr and "8 samples" in done.stderr
    assert "--system FILE" in done.stderr and f'write `system_facts = "{sheet}"`' in done.stderr


def test_a_recipe_that_tells_the_facts_is_not_told_to(sheet: Path) -> None:
    folder = sheet.parent
    (folder / "train.jsonl").write_text('{"prompt": "hi", "completion": "hello"}\n', encoding="utf-8")
    recipe = f'name = "r"\nmodel.base = "builtin:tiny"\nfacts.file = "{sheet}"\ndata.train = "{folder}/train.jsonl"\n'
    for added, is_told in (("", False), (f'data.system_facts = "{sheet}"\n', True)):
        (folder / "r.toml").write_text(recipe + added, encoding="utf-8")
        done = call_here(folder / "runs", "augment", folder / "r.toml")
        assert done.returncode == 0 and ("write `system_facts" not in done.stderr) == is_told
        assert "2 of each, as suits 1 conversation;" in done.stderr


def test_json(sheet: Path) -> None:
    done = call_here(
        sheet.parent / "runs", "augment", sheet, "--per-fact", "4", "--out", sheet.parent / "more.jsonl", "--json"
    )
    document = json.loads(done.stdout)
    assert (document["samples"], document["by_fact"], document["findings"]) == (4, {"cat": 4}, [])
    assert document["file"] == str(sheet.parent / "more.jsonl") and document["recipe_line"].startswith("train = [")


def test_a_sheet_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    done = call_here(tmp_path / "runs", "augment", tmp_path / "facts.toml")
    assert done.returncode == 2 and "there is no such file" in done.stderr and "Traceback" not in done.stderr
