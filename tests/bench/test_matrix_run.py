"""benchmarks/run.py: the matrix is kept, added to and not measured twice; its data sets and shapes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_matrix import ENTRY, STARTED, Matrix, run_matrix, script
from conftest import REPOSITORY

pytest_plugins = ["bench_matrix"]


def test_what_is_there_is_not_measured_again(matrix: Matrix, tmp_path: Path) -> None:
    folder = shutil.copytree(matrix.folder, tmp_path / "results")

    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (folder / ENTRY).glob("round*")}

    before = written()
    assert run_matrix(folder) == 0
    assert written() == before and len(before) == 2 * len(STARTED)
    whole = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [entry | {"created": ""} for entry in whole["entries"]] == [matrix.entry | {"created": ""}]
    assert [line["samples"] for line in whole["growth"]] == [50, 100]


def test_entries_have_one_order_whatever_was_measured_last(tmp_path: Path) -> None:
    run = script("run")
    expected = [
        ("float32", "persona", 16),
        ("float32", "persona", 64),
        ("float32", "chat", 16),
        ("bfloat16", "persona", 16),
    ]
    for dtype, case, size in expected:
        folder = tmp_path / f"{case}-{dtype}-{size}"
        folder.mkdir()
        entry = {"base": "b", "load_in_4bit": False, "dtype": dtype, "case": case, "batch_size": size}
        (folder / "result.json").write_text(json.dumps(entry), encoding="utf-8")
    run.collect(tmp_path)
    entries = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["entries"]
    assert [(entry["dtype"], entry["case"], entry["batch_size"]) for entry in entries] == expected


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["run.py", "--name", "x", *words])
    return script("run").arguments()


def test_on_a_gpu_every_base_has_its_first_figures_before_the_next_case(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = script("run").matrix(arguments(monkeypatch, "--cuda", "--cases", "persona,chat", "--dtype", "bfloat16"))
    assert [(entry.bits, entry.case, entry.base.name) for entry in entries] == [
        (bits, case, f"shape-{size}")
        for bits in (16, 4)
        for case in ("persona", "chat")
        for size in ("0.5b", "1.5b", "3b")
    ]
    assert {entry.arms for entry in entries} == {"stock,fasttune"}


def test_no_entry_is_begun_that_may_end_too_late(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entries of 100 s each in 5 minutes: the third would end at 300 s at the earliest, and is still begun."""
    run, clock, measured = script("run"), [0.0], []

    def measure(entry: Any, _options: Any, _folder: Path) -> bool:
        clock[0] += 100.0
        measured.append(entry.name)
        return True

    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run, "measure", measure)
    words = ("--base", "builtin:tiny", "--out", str(tmp_path / "results"), "--minutes", "5")
    monkeypatch.setattr(sys, "argv", ["run.py", "--name", "x", *words])
    assert run.main() == 0
    assert len(measured) == 3
    assert "5 minutes are over; the same command goes on with " in capsys.readouterr().err


def test_arms_of_earlier_calls_stay_in_the_entry(matrix: Matrix, tmp_path: Path) -> None:
    run = script("run")
    there = matrix.folder / ENTRY / "result.json"
    assert (
        run.with_earlier("fasttune-neither,stock", there) == "plain,stock,stock-padding-free,fasttune,fasttune-neither"
    )
    (tmp_path / "round1-stock.json").touch()
    (tmp_path / "round1-stock-padding-free.json").touch()
    run.forget(tmp_path, ["stock"])
    assert [path.name for path in tmp_path.iterdir()] == ["round1-stock-padding-free.json"]


def test_kept_files_name_no_path_of_this_machine(matrix: Matrix) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in matrix.folder.rglob("*") if path.is_file()}
    assert len([path for path in texts if path.suffix == ".log"]) == len(STARTED)
    for path, text in texts.items():
        assert str(REPOSITORY) not in text and sys.prefix not in text, path


def test_cases_are_what_they_say() -> None:
    cases = script("cases")
    for name in cases.CASES:
        first, again = cases.samples(name), cases.samples(name)
        assert first == again and len(first) >= 240, name
    systems = {name: {m[0]["content"] for m in cases.samples(name) if m[0]["role"] == "system"} for name in cases.CASES}
    assert len(systems["persona"]) == len(systems["linzhi"]) == 1
    assert not systems["chat"] and not systems["documents"]
    assert len({system[0] for system in systems["unshared"]}) == len(cases.samples("unshared"))
    grown = list(cases.growing(2000))
    assert len({message[1]["content"] for message in grown}) == 2000


def test_a_shape_with_random_weights_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shapes = script("shapes")
    folder = shapes.make("tiny", tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (64, 2)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert shapes.make("tiny", folder) == folder and (folder / "model.safetensors").stat().st_mtime_ns == written
