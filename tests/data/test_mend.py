"""The mended copy: what is safe is mended and said, the original stays, nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import pair, write

from fasttune.console import FasttuneError, UsageError
from fasttune.data.dataset import read_samples
from fasttune.data.mend import mend


def test_what_is_safe_is_mended_and_said_line_by_line(tmp_path: Path) -> None:
    damaged = "你好，世界".encode().decode("latin-1")
    path = write(tmp_path / "train.jsonl", pair("一", "好的"), pair("二", " 好的\n"), pair("一", "好的 "),
                 pair("三", damaged), pair("四", "没\u200b有\x01"), pair("五", "held"), pair("六", "保留"))  # fmt: skip
    held_out = read_samples(write(tmp_path / "val.jsonl", pair("五", "held"))).samples
    before = Path(path).read_bytes()
    out = tmp_path / "new" / "mended.jsonl"
    done = mend(path, out, held_out)
    answers = [json.loads(line)["completion"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert answers == ["好的", "好的", "你好，世界", "没有", "保留"]
    lines = [(one.code, one.where.rpartition(":")[2]) for one in done]
    assert lines == [
        ("mended", "2"),
        ("removed", "3"),
        ("mended", "4"),
        ("mended", "5"),
        ("mended", "5"),
        ("removed", "6"),
    ]
    assert f"{path}:1" in done[1].what and held_out[0].id in done[-1].what
    assert Path(path).read_bytes() == before
    assert out.read_text(encoding="utf-8").splitlines()[0] == before.decode().splitlines()[0]
    assert mend(str(out), tmp_path / "again.jsonl", held_out) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", pair("一"))
    with pytest.raises(UsageError) as refused:
        mend(path, Path(path), ())
    assert refused.value.findings[0].code == "file-exists"


def test_a_file_that_cannot_be_read_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "一", "completion": "好"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(FasttuneError):
        mend(str(path), tmp_path / "out.jsonl", ())
    assert not (tmp_path / "out.jsonl").exists()


def test_an_array_becomes_jsonl_and_other_keys_stay(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{**pair("一", "好 "), "source": " 记 "}], ensure_ascii=False), encoding="utf-8")
    mend(str(path), tmp_path / "out.jsonl", ())
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {**pair("一", "好"), "source": " 记 "}
