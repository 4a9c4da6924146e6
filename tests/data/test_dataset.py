"""Data sets: broken files with their exact findings, system prompts, held-out samples, duplicates, fingerprints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import cpu_limit
from data_files import pair, refusal, write

from fasttune.data import dataset
from fasttune.data.dataset import Message, Sample, conversation_key, load_dataset, read_samples, split
from fasttune.recipe.schema import DataRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BROKEN = Path(__file__).parent / "broken_data"
EXPECTED = tomllib.loads((BROKEN / "expected.toml").read_text(encoding="utf-8"))
BROKEN_FILES = sorted(path.name for path in BROKEN.iterdir() if path.name not in ("expected.toml", ".gitattributes"))


# --- broken files ----------------------------------------------------------------------------------------


def test_every_broken_file_has_its_entry_and_every_entry_its_file() -> None:
    assert set(BROKEN_FILES) == set(EXPECTED)
    assert len(BROKEN_FILES) >= 45


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_file_is_answered_with_exactly_its_findings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    found = [{"code": f.code, "where": f.where, "what": f.what} for f in refusal(name)]
    assert found == EXPECTED[name]


def test_all_problems_of_all_files_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    names = ["nul.jsonl", "table.csv", "gone.jsonl"]
    codes = [finding.code for finding in refusal(*names, val="utf-16.jsonl", system="a\x00")]
    assert codes == ["control-character", "control-character", "not-json", "file-not-found", "utf-16"]


def test_good_samples_of_a_broken_file_can_still_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    assert [sample.id for sample in read_samples("many-problems.jsonl").samples] == ["many-problems.jsonl:1"]


# --- system prompt ---------------------------------------------------------------------------------------


def test_system_prompt_fills_gaps_only(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("a"), pair("b") | {"system": "own"}, pair("c"))
    for system, expected in ((None, None), ("given", "given"), ("", "")):
        dataset = load_dataset(DataRecipe(train=(path,), system=system), seed=0)
        first = None if expected is None else Message("system", expected)
        assert [s.messages[0] if s.messages[0].role == "system" else None for s in dataset.train] == [
            first, Message("system", "own"), first]  # fmt: skip


# --- held-out samples ------------------------------------------------------------------------------------


def test_fraction_is_seeded_keeps_order_and_never_parts_duplicates(tmp_path: Path) -> None:
    records = [pair(f"问{number % 40}", f"答{number % 40}") for number in range(100)]
    path = write(tmp_path / "t.jsonl", *records)
    recipe = DataRecipe(train=(path,), val=0.2)
    one, again, other = (load_dataset(recipe, seed) for seed in (1, 1, 2))
    assert one == again and one.held_out != other.held_out
    assert len(one.held_out) in range(15, 21) and len(one.train) + len(one.held_out) == 100
    assert not {conversation_key(s) for s in one.train} & {conversation_key(s) for s in one.held_out}
    lines = [int(sample.id.rsplit(":", 1)[1]) for sample in one.held_out]
    assert lines == sorted(lines)


def test_fraction_hardly_moves_when_samples_are_added(tmp_path: Path) -> None:
    few = [Sample(str(n), (Message("user", str(n)), Message("assistant", "a"))) for n in range(200)]
    more = [Sample(str(n), (Message("user", str(n)), Message("assistant", "a"))) for n in range(220)]
    old, new = ({sample.id for sample in split(samples, 0.1, seed=3)[1]} for samples in (few, more))
    assert len(old) == 20 and len(new) == 22 and len(old & new) >= 17


def test_fraction_leaves_one_sample_on_each_side(tmp_path: Path) -> None:
    two = write(tmp_path / "two.jsonl", pair("a"), pair("b"))
    for fraction in (0.01, 0.99):
        dataset = load_dataset(DataRecipe(train=(two,), val=fraction), seed=0)
        assert (len(dataset.train), len(dataset.held_out)) == (1, 1)
    same = write(tmp_path / "same.jsonl", pair("a"), pair("a  ") | {"system": "s"})
    assert refusal(same, val=0.5)[0].code == "cannot-split"


def test_file_listed_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("a"))
    assert [f.code for f in refusal(path, path)] == ["file-twice"]


def test_leaks_and_duplicates_are_named(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pair("a"), pair("b"), pair("a"))
    val = write(tmp_path / "val.jsonl", pair("c"), pair("b"))
    duplicate, leak = load_dataset(DataRecipe(train=(train,), val=val), seed=0).findings
    assert (duplicate.code, duplicate.level, duplicate.where) == ("duplicate-sample", "warning", f"{train}:3")
    assert f"{train}:1 = {train}:3" in duplicate.what
    assert (leak.code, leak.level, leak.where) == ("val-in-train", "warning", f"{val}:2")
    assert f"{val}:2 = {train}:2" in leak.what


def test_fingerprint_follows_contents_and_order_not_form(tmp_path: Path) -> None:
    def of(*records: object, **settings: Any) -> str:
        return load_dataset(DataRecipe(train=(write(tmp_path / "t.jsonl", *records),), **settings), seed=0).fingerprint

    messages = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "答"}]}
    assert of(pair("a")) == of(messages) == of(pair("a") | {"id": 5})
    assert len({of(pair("a")), of(pair("a"), pair("b")), of(pair("b"), pair("a")), of(pair("a"), system="s")}) == 4


def test_several_characters_in_a_file_are_named(tmp_path: Path) -> None:
    samples = [pair(f"q{n}") | {"system": f"You are hero {n % 3}."} for n in range(9)]
    (finding,) = load_dataset(DataRecipe(train=(write(tmp_path / "d.jsonl", *samples),)), seed=0).findings
    assert finding.code == "many-system-prompts" and finding.level == "info" and "hero 0" in finding.what
    alike = [pair(f"q{n}") | {"system": "You are hero 0." if n else "Be brief."} for n in range(9)]
    assert not load_dataset(DataRecipe(train=(write(tmp_path / "e.jsonl", *alike),)), seed=0).findings


def test_fields_that_were_never_filled_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", pair("q", "I am {{name}}."), pair("r", "*nods to {{user}}*"), pair("s", "{x}"))
    (finding,) = load_dataset(DataRecipe(train=(path,)), seed=0).findings
    assert (finding.code, finding.level, finding.where) == ("placeholder", "warning", f"{path}:1")
    assert "{{name}}" in finding.what


def test_beginnings_of_a_conversation_stay_on_its_side(tmp_path: Path) -> None:
    """A chat log cut into growing windows, as many converters write it."""
    logs = [[{"role": ("user", "assistant")[n % 2], "content": f"{log} {n}"} for n in range(8)] for log in range(6)]
    records = [{"messages": log[:end]} for log in logs for end in (2, 4, 6, 8)]
    path = write(tmp_path / "d.jsonl", *records)
    for seed in range(5):
        dataset = load_dataset(DataRecipe(train=(path,), val=0.3), seed)
        train, held_out = ({s.messages[0].content for s in side} for side in (dataset.train, dataset.held_out))
        assert train and held_out and not train & held_out


def test_a_long_word_behind_braces_is_searched_once() -> None:
    answer = "{{" + "name" * 50_000
    with cpu_limit(30):
        assert dataset._placeholders([Sample("a:1", (Message("user", "x"), Message("assistant", answer)))]) == []
    assert dataset._placeholders([Sample("a:1", (Message("user", "x"), Message("assistant", "{{ my_name }}")))])
