"""Reading data: every accepted format, every broken file with its exact findings, splits and fingerprints."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from fasttune.console import FasttuneError, Finding
from fasttune.data.dataset import Message, Sample, conversation_key, load_dataset, read_samples, split
from fasttune.recipe.schema import DataRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FORMATS = ROOT / "data" / "formats"
BROKEN = Path(__file__).parent / "broken_data"
EXPECTED = tomllib.loads((BROKEN / "expected.toml").read_text(encoding="utf-8"))
BROKEN_FILES = sorted(path.name for path in BROKEN.iterdir() if path.name not in ("expected.toml", ".gitattributes"))


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", "en")


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def pair(prompt: str, completion: str = "答") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def turns(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.messages]


def refusal(*train: str, **settings: object) -> list[Finding]:
    with pytest.raises(FasttuneError) as caught:
        load_dataset(DataRecipe(train=train, **settings), seed=0)
    return list(caught.value.findings)


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


def test_missing_file_names_the_near_one_and_a_directory_its_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pair("问"))
    (missing,) = refusal(str(tmp_path / "trian.jsonl"))
    assert missing.code == "file-not-found" and missing.fix.endswith("train.jsonl?")
    (directory,) = refusal(str(tmp_path))
    assert directory.code == "is-a-directory" and "train.jsonl" in directory.fix


def test_json_of_any_depth_and_any_number_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    numbers = '{"prompt": "问", "completion": "答", "n": ' + "9" * 10_000 + "}"
    path.write_text('{"x": ' + "[" * 200_000 + "\n" + numbers + "\n", encoding="utf-8")
    assert [(f.code, f.where) for f in refusal(str(path)) if f.level == "error"] == [("bad-json", f"{path}:1")]


def test_random_damage_never_crashes_and_never_passes_in_silence(tmp_path: Path) -> None:
    original = (FORMATS / "messages.jsonl").read_bytes() + (FORMATS / "sharegpt.jsonl").read_bytes()
    chance = random.Random(7)
    path = tmp_path / "damaged.jsonl"
    for _attempt in range(300):
        raw = bytearray(original)
        for _hit in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        path.write_bytes(bytes(raw))
        reading = read_samples(str(path))
        assert len(reading.samples) == 6 or any(finding.level == "error" for finding in reading.findings)


# --- formats ---------------------------------------------------------------------------------------------

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


def test_ids_name_the_line_a_record_starts_on(tmp_path: Path) -> None:
    spaced = tmp_path / "spaced.jsonl"
    spaced.write_bytes(b"\r\n" + json.dumps(pair("a")).encode() + b"\r\n\r\n" + json.dumps(pair("b")).encode())
    assert [sample.id for sample in read_samples(str(spaced)).samples] == [f"{spaced}:2", f"{spaced}:4"]
    array = tmp_path / "array.jsonl"  # an array under a JSONL name
    array.write_text(json.dumps([pair("a"), pair("b")], indent=1), encoding="utf-8")
    assert [sample.id for sample in read_samples(str(array)).samples] == [f"{array}:2", f"{array}:6"]
    array.write_text(json.dumps([pair("a"), pair("b")]), encoding="utf-8")
    assert [sample.id for sample in read_samples(str(array)).samples] == [f"{array}:1#1", f"{array}:1#2"]


def test_unicode_line_separators_in_text_are_no_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("a\u2028b\u2029c"), pair("d"))
    assert turns(read_samples(path).samples[0])[0] == ("user", "a\u2028b\u2029c")


def test_contents_become_nfc_and_ignored_keys_are_named_once(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("cafe\u0301") | {"id": 1}, pair("b") | {"id": 2, "source": "x"})
    reading = read_samples(path)
    assert turns(reading.samples[0])[0] == ("user", "caf\u00e9")
    assert [(f.code, f.level) for f in reading.findings] == [("ignored-keys", "info"), ("normalised", "info")]
    assert "id (2), source (1)" in reading.findings[0].what


def test_contents_are_not_trimmed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("  a\n", "\n\tb \r\n"))
    assert turns(read_samples(path).samples[0]) == [("user", "  a\n"), ("assistant", "\n\tb \r\n")]


def test_replacement_character_warns(tmp_path: Path) -> None:
    (finding,) = read_samples(write(tmp_path / "t.jsonl", pair("好\ufffd"))).findings
    assert (finding.code, finding.level) == ("replacement-character", "warning")


# --- system prompt ---------------------------------------------------------------------------------------


def test_system_prompt_fills_gaps_only(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", pair("a"), pair("b") | {"system": "own"}, pair("c"))
    for system, expected in ((None, None), ("given", "given"), ("", "")):
        dataset = load_dataset(DataRecipe(train=(path,), system=system), seed=0)
        first = None if expected is None else Message("system", expected)
        assert [s.messages[0] if s.messages[0].role == "system" else None for s in dataset.train] == [
            first, Message("system", "own"), first]  # fmt: skip


# --- validation ------------------------------------------------------------------------------------------


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
    def of(*records: object, **settings: object) -> str:
        return load_dataset(DataRecipe(train=(write(tmp_path / "t.jsonl", *records),), **settings), seed=0).fingerprint

    messages = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "答"}]}
    assert of(pair("a")) == of(messages) == of(pair("a") | {"id": 5})
    assert len({of(pair("a")), of(pair("a"), pair("b")), of(pair("b"), pair("a")), of(pair("a"), system="s")}) == 4
