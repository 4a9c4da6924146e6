"""Records of a file: JSONL and arrays with their lines, files that hold none, and damage of any kind."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from conftest import cpu_limit
from data_files import FORMATS, pair, refusal, turns, write

from fasttune.console import UsageError
from fasttune.data import reader
from fasttune.data.dataset import read_samples
from fasttune.data.reader import read_records
from fasttune.recipe.toml_file import read_text


def test_missing_file_names_the_near_one_and_a_directory_its_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pair("问"))
    (missing,) = refusal(str(tmp_path / "trian.jsonl"))
    assert missing.code == "file-not-found" and missing.fix.endswith("train.jsonl?")
    (directory,) = refusal(str(tmp_path))
    assert directory.code == "is-a-directory" and "train.jsonl" in directory.fix


def test_what_is_no_file_or_has_no_end_is_named_before_it_is_read(tmp_path: Path) -> None:
    """A pipe that nobody writes into would be waited for, and a device read until the memory is full."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with open(tmp_path / "huge.jsonl", "wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    for name, words in (
        ("pipe", "it is a pipe or a device"),
        ("device", "it is a pipe or a device"),
        ("huge", "2.0 GiB are too many"),
    ):
        (finding,) = refusal(str(tmp_path / f"{name}.jsonl"))
        assert finding.code == "unreadable-file" and words in finding.what
        with pytest.raises(UsageError, match=words):
            read_text(tmp_path / f"{name}.jsonl")
    (finding,) = refusal(str(tmp_path / "link.jsonl"))
    assert finding.code == "file-not-found" and "a link to a file that is not there" in finding.fix


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


def test_records_carry_their_line_and_a_place_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[\n{"a": 1}, {"a": 2},\n\n3\n]\n', encoding="utf-8")
    records, findings = read_records(str(path))
    assert [(record.line, record.place, record.value) for record in records] == [
        (2, "2", {"a": 1}),
        (2, "2#2", {"a": 2}),
        (4, "4", 3),
    ]
    assert findings == []


@pytest.mark.parametrize(
    ("text", "values", "codes"),
    [
        ("[]", [], []),
        (" [ ] \n", [], []),
        ("[1,]", [1], ["json-trailing-comma"]),
        ("[1 2]", [1], ["bad-json"]),
        ("[1, 2", [1, 2], ["json-cut-off"]),
        ("[1] [2]", [1], ["json-extra-text"]),
        ("", [], ["no-samples"]),
        ("\n \n", [], ["no-samples"]),
        ('{"a": 1}\n\n{"a": 2}', [{"a": 1}, {"a": 2}], []),
        ('{"a": 1}\n{"a": \n{"a": 3}\n', [{"a": 1}, {"a": 3}], ["json-cut-off"]),
        ('{"a": 1, "a": 2}', [{"a": 2}], ["duplicate-key"]),
        ('{"a": NaN}', [{"a": None}], ["json-nan"]),
    ],
)
def test_values_and_findings(text: str, values: list[object], codes: list[str], tmp_path: Path) -> None:
    """What is valid is read, also beside what is not."""
    path = tmp_path / "t"
    path.write_text(text, encoding="utf-8")
    records, findings = read_records(str(path))
    assert ([record.value for record in records], [finding.code for finding in findings]) == (values, codes)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("C:\\data\\train.jsonl", "under WSL2 this is /mnt/c/data/train.jsonl"),
        ("d:/data/a b.jsonl", "under WSL2 this is /mnt/d/data/a b.jsonl"),
        ("\\\\wsl$\\Ubuntu\\home\\pip\\train.jsonl", "in this Linux it is /home/pip/train.jsonl"),
        ("\\\\wsl.localhost\\Ubuntu\\home\\t.jsonl", "in this Linux it is /home/t.jsonl"),
        ("*.jsonl", "a pattern is not expanded"), ("$HOME/train.jsonl", "variables are not expanded"),
        ("Train.jsonl", "did you mean train.jsonl?"), ("someone/some-dataset", "for a data set of a hub"),
        ("none/at/all.jsonl", "relative paths are taken from the current directory"),
    ],
)  # fmt: skip
def test_a_path_that_is_no_file_is_called_what_it_looks_like(
    path: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTTUNE_LANG", "en")
    for name in ("train.jsonl", "rain.jsonl"):
        (tmp_path / name).write_text("{}")
    _records, (finding,) = read_records(path)
    assert finding.code == "file-not-found" and finding.fix.startswith(remedy)


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.jsonl").write_text('{"a": 1}')
    records, findings = read_records("~/train.jsonl")
    assert [record.value for record in records] == [{"a": 1}] and not findings


def test_duplicate_keys_are_found_in_one_pass() -> None:
    """40,000 keys with one duplicate took 23 seconds, each name being compared with all the others."""
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str(self) == other

    decoder = reader._StrictDecoder()
    decoder._object([(Name(f"key {number % 2999}"), number) for number in range(3000)])
    assert decoder.flaws == [("duplicate-key", "key 0")]
    assert compared < 10 * 3000


def test_a_file_of_blank_lines_is_looked_through_once(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x" + " \n" * 500_000, encoding="utf-8")
    with cpu_limit(30):
        records, findings = read_records(str(tmp_path / "t"))
    assert not records and [finding.code for finding in findings] == ["not-json"]


def test_one_line_of_many_megabytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(json.dumps(pair("a " * 10_000_000)) + "\n", encoding="utf-8")
    with cpu_limit(60):
        (sample,) = read_samples(str(tmp_path / "t")).samples
    assert len(sample.messages[0].content) == 20_000_000


@pytest.mark.parametrize("depth", [50, 300, 480, 700, 900, 990, 5000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_record_of_any_depth_is_read_or_named(tmp_path: Path, depth: int, opening: str) -> None:
    inner = opening * depth + "1" + {"[": "]"}.get(opening, "}") * depth
    records = [
        f'{{"prompt": "a", "completion": "b", "tools": {inner}}}',
        f'{{"messages": [{{"role": {inner}, "content": "b"}}]}}',
        f'{{"messages": [{{"role": "user", "content": [{inner}]}}]}}',
        f'{{"instruction": "a", "output": "b", "history": {inner}}}',
    ]
    (tmp_path / "t").write_text("\n".join(records), encoding="utf-8")
    findings = refusal(str(tmp_path / "t"))
    errors = {finding.where for finding in findings if finding.level == "error"}
    assert errors == {f"{tmp_path / 't'}:{line}" for line in (1, 2, 3, 4)}
