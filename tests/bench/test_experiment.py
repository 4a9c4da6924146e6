"""The benchmark: real arms in real processes, equal losses, a wrong one caught, the matrix kept and turned into tables."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY, call_fasttune

from fasttune.bench import engines, experiment
from fasttune.console import UsageError
from fasttune.recipe.load import load_recipe

ENTRY = "persona-builtin-tiny-float32-b4"
STARTED = ("plain", "stock", "fasttune", "limit")


def script(name: str) -> ModuleType:
    """A file of benchmarks/, imported as its own scripts import it."""
    folder = str(REPOSITORY / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def run_matrix(out: Path) -> Any:
    """Four arms on builtin:tiny, a warm-up of three samples and a step of four, which trl takes in two parts."""
    return subprocess.run(
        [sys.executable, "benchmarks/run.py", "--name", "test", "--out", str(out), "--base", "builtin:tiny",
         "--cases", "persona", "--arms", "plain,stock,stock-padding-free,fasttune", "--batch-size", "4",
         "--warmup-samples", "3", "--micro-batch", "2", "--steps", "1", "--repeats", "1", "--growth", "50,100"],
        cwd=REPOSITORY, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Matrix:
    folder: Path
    entry: dict[str, Any]
    arms: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """A matrix of one entry."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    done = run_matrix(folder)
    assert done.returncode == 0, done.stderr
    entry = json.loads((folder / ENTRY / "result.json").read_text(encoding="utf-8"))
    return Matrix(folder, entry, {arm["name"]: arm for arm in entry["arms"]})


# Arms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stock", "fasttune"])
def test_every_arm_computes_the_same_training(matrix: Matrix, name: str) -> None:
    plain, arm = matrix.arms["plain"], matrix.arms[name]
    assert matrix.entry["reference"] == "plain"
    assert arm["status"] == "ok"
    assert arm["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert arm["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert plain["grad_norm"] > 0 and plain["losses"][1] != plain["losses"][0]
    assert arm["work"] == plain["work"]
    assert arm["work"]["samples"] == 4


def test_the_plain_arm_knows_no_unsloth(matrix: Matrix) -> None:
    assert {name: arm.get("unsloth") for name, arm in matrix.arms.items()} == {
        "plain": False, "stock": True, "fasttune": True, "stock-padding-free": None,
    }  # fmt: skip


def test_computed_tokens_are_padded_or_shared(matrix: Matrix) -> None:
    stock, ours = matrix.arms["stock"], matrix.arms["fasttune"]
    assert stock["computed_tokens"] == matrix.arms["plain"]["computed_tokens"] >= stock["work"]["tokens"]
    assert ours["computed_tokens"] < ours["work"]["tokens"] / 2  # four samples share three quarters of their tokens
    assert ours["arithmetic_ratio"] == stock["computed_tokens"] / ours["computed_tokens"]


def test_what_needs_a_card_says_so(matrix: Matrix) -> None:
    skipped = matrix.arms["stock-padding-free"]
    assert skipped["status"] == "skipped" and "CUDA" in skipped["why"]


def test_rounds_alternate() -> None:
    every = experiment.parse_arms("plain,stock,fasttune")
    turns = [[arm.name for arm in experiment.alternating(every, number)] for number in range(3)]
    assert turns == [["plain", "stock", "fasttune"], ["fasttune", "stock", "plain"], ["plain", "stock", "fasttune"]]


def test_the_processes_ran_in_the_order_that_is_written(matrix: Matrix) -> None:
    files = sorted((path.stat().st_mtime_ns, path.stem) for path in (matrix.folder / ENTRY).glob("round*.json"))
    assert matrix.entry["order"] == [list(STARTED[:-1])]
    assert [name for _time, name in files] == [f"round1-{name}" for name in STARTED]


def test_the_warm_up_is_short_and_not_counted(matrix: Matrix) -> None:
    for name in STARTED[:-1]:
        assert measured(matrix, name).samples == [3, 4]
        assert matrix.arms[name]["work"]["samples"] == 4
        assert matrix.arms[name]["seconds"] == measured(matrix, name).step_seconds[1]


def test_every_figure_is_there(matrix: Matrix) -> None:
    for name in ("plain", "stock", "fasttune"):
        arm = matrix.arms[name]
        for figure in ("step_seconds", "samples_per_second", "tokens_per_second", "supervised_tokens_per_second",
                       "steps_per_second", "start_up_seconds"):  # fmt: skip
            assert 0 < arm[figure]["min"] <= arm[figure]["median"] <= arm[figure]["max"], figure
        assert arm["memory"]["rss_gib"] > 0.1
        assert 0 < arm["limit_share"] < 1.5
        assert len(arm["rounds_seconds"]) == 1 and len(arm["losses"]) == 2
        assert arm["precision"] == "float32" and arm["commits"]
        assert arm["seconds"] * arm["tokens_per_second"]["median"] == pytest.approx(arm["work"]["tokens"], rel=0.2)
    shapes = ("256 to 256", "256 to 768", "768 to 256")
    assert set(matrix.entry["limit_gflops"]) == {f"{way} {shape}" for way in ("F.linear", "oneDNN") for shape in shapes}
    assert matrix.entry["packages"]["trl"] and matrix.entry["processor"]


# Judging ------------------------------------------------------------------------------------------------------------


def test_another_learning_rate_is_not_fast_but_invalid(tmp_path: Path) -> None:
    """Its first loss is right; the one after a step gives it away."""
    wrong = "fasttune+train.learning_rate=1e-2"
    done = call_fasttune(
        tmp_path, "bench", "recipes/quickstart.toml", "--arms", f"fasttune,{wrong}",
        "--steps", "1", "--repeats", "1", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    right, off = document["arms"]
    assert (right["status"], off["status"]) == ("ok", "invalid")
    assert off["why"].startswith("later_losses off by")
    assert off["first_loss"] == right["first_loss"] and off["grad_norm"] == right["grad_norm"]
    assert not (tmp_path / "out" / "runs").exists() and "Traceback" not in done.stderr
    assert "speedup" not in off


def measured(matrix: Matrix, name: str) -> engines.Measured:
    """What an arm's process wrote in round 1."""
    path = matrix.folder / ENTRY / f"round1-{name}.json"
    return engines.Measured(**json.loads(path.read_text(encoding="utf-8"))["measured"])


Spoil = Callable[[engines.Measured], dict[str, Any]]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: {"losses": [m.losses[0] * 1.0002, *m.losses[1:]]}, "first_loss off by 2.0e-04"),
        (lambda m: {"losses": [*m.losses[:-1], m.losses[-1] * 1.003]}, "later_losses off by 3.0e-03"),
        (lambda m: {"losses": [math.nan, *m.losses[1:]]}, "not finite"),
        (lambda m: {"grad_norms": [0.0, *m.grad_norms[1:]]}, "gradient is zero"),
        (lambda m: {"grad_norms": [m.grad_norms[0] * 0.99, *m.grad_norms[1:]]}, "grad_norm off by 1.0e-02"),
        (lambda m: {"supervised_tokens": [count + 1 for count in m.supervised_tokens]}, "other supervised_tokens"),
        (lambda m: {"precision": "bfloat16"}, "computes in bfloat16"),
        (lambda m: {"samples": [count - 1 for count in m.samples]}, "other samples"),
    ],
)
def test_what_is_not_the_reference_is_named(matrix: Matrix, spoil: Spoil, why: str) -> None:
    reference, arm = measured(matrix, "plain"), measured(matrix, "fasttune")
    allowed = experiment.TOLERANCES["float32"]
    assert experiment.flaws(arm, reference, allowed) == []
    assert any(why in flaw for flaw in experiment.flaws(dataclasses.replace(arm, **spoil(arm)), reference, allowed))


def test_an_arm_that_is_wrong_in_a_later_round_is_invalid(matrix: Matrix) -> None:
    reference, good = measured(matrix, "plain"), measured(matrix, "fasttune")
    bad = dataclasses.replace(good, losses=[loss * 2 for loss in good.losses])
    wish = experiment.Experiment(Path("x.toml"), (), (), steps=1)
    plain = experiment.Outcome(experiment.ARMS["plain"], (reference,))
    entry = experiment.summary(
        wish, experiment.Outcome(experiment.ARMS["fasttune"], (good, bad)), plain, experiment.TOLERANCES["float32"]
    )
    assert entry["status"] == "invalid"


def test_arms_with_changes() -> None:
    (arm,) = experiment.parse_arms("fasttune-no-sharing+train.optim=sgd+FASTTUNE_X=1")
    assert arm.engine == "fasttune"
    assert arm.overrides == ("train.shared_prefix=false", "train.optim=sgd")
    assert arm.environment == (("FASTTUNE_X", "1"),)
    with pytest.raises(UsageError, match="there is no arm fast"):
        experiment.parse_arms("stock,fast")


def test_an_arm_that_breaks_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """A process that fails costs its own arm; here the recipe value is refused inside it."""
    wish = experiment.Experiment(
        REPOSITORY / "recipes/quickstart.toml", (f"data.train={REPOSITORY / 'data/quickstart/train.jsonl'}", "data.val=0.1"),
        experiment.parse_arms("fasttune+train.optim=nonsense"), steps=1, repeats=1,
    )  # fmt: skip
    said: list[str] = []
    (arm,) = experiment.measure(wish, tmp_path, said.append)["arms"]
    assert arm["status"] == "failed" and "nonsense" in arm["why"]
    assert any("nonsense" in line for line in said)


def test_an_arm_goes_without_what_this_version_has_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    (arm,) = experiment.parse_arms("fasttune-stock-layers")
    monkeypatch.setattr(experiment.models, "use_cpu_layers", print, raising=False)
    assert experiment.obstacle(arm) == ""
    monkeypatch.delattr(experiment.models, "use_cpu_layers")
    assert "use_cpu_layers" in experiment.obstacle(arm)


def test_useful_flops_are_those_of_the_matrices() -> None:
    """builtin:tiny by hand: 4 layers; q and o 256 x 256, k and v 256 x 128, three of 256 x 768; 5120 tokens."""
    wanted = load_recipe(REPOSITORY / "recipes/quickstart.toml")
    frozen = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768)
    lora = 4 * 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 768))
    found = experiment.useful_flops(REPOSITORY / "fasttune/tiny", wanted, tokens=100, supervised=10, pairs=1000)
    assert found == 100 * (4 * frozen + 6 * lora) + 10 * 4 * 256 * 5120 + 1000 * 4 * 12 * 256


def test_padding_is_no_use_and_a_shared_prefix_counts_once() -> None:
    work = {"tokens": 100, "supervised_tokens": 7}
    assert experiment.useful_work({"work": work, "computed_tokens": 130, "attention_pairs": 5})["tokens"] == 100
    assert experiment.useful_work({"work": work, "computed_tokens": 40, "attention_pairs": 5})["tokens"] == 40


def test_attention_pairs_are_those_of_the_mask() -> None:
    """Counted in the dense mask that the engine's tests hold attention to."""
    import torch

    from fasttune.data.tokenize import Example
    from fasttune.training import engine, packing

    examples = [Example(f"x:{n}", (1, 2, 3, *range(10, 10 + n)), ((4, 3 + n),)) for n in (2, 4, 5)]
    for shared in (True, False):
        (row,) = packing.plan_step(examples, range(3), 100, shared_prefix=shared).rows
        batch = engine.collate(row, examples)
        mask = engine.dense_mask(batch.spans, row.tokens)
        assert engines.attention_pairs(examples, range(3), shared=shared) == int(torch.sum(mask))
        assert (row.tokens < 20) == shared


def test_a_step_in_parts_loses_no_sample() -> None:
    assert engines.even(64, 4) == [16] * 4 and engines.even(7, 3) == [3, 2, 2]
    with pytest.raises(ValueError, match="can't be trained in 3"):
        engines.even(2, 3)


# The matrix ---------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_measured_again(matrix: Matrix) -> None:
    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (matrix.folder / ENTRY).glob("round*")}

    before = written()
    done = run_matrix(matrix.folder)
    assert done.returncode == 0, done.stderr
    assert written() == before and len(before) == 2 * len(STARTED)
    whole = json.loads((matrix.folder / "result.json").read_text(encoding="utf-8"))
    assert [entry | {"created": ""} for entry in whole["entries"]] == [matrix.entry | {"created": ""}]
    assert [line["samples"] for line in whole["growth"]] == [50, 100]


def test_another_job_is_not_taken_from_what_is_there(tmp_path: Path) -> None:
    text, arm = tmp_path / "x.toml", experiment.ARMS["stock"]
    text.write_text("a", encoding="utf-8")
    wish = experiment.Experiment(text, (), (arm,), steps=1)
    same = experiment.digest(experiment.job(wish, arm, "base"), arm)
    assert experiment.digest(experiment.job(wish, arm, "base"), arm) == same
    for other in ({"steps": 2}, {"micro_batch": 8}, {"warmup_samples": 1}, {"overrides": ("train.seed=1",)}):
        assert experiment.digest(experiment.job(dataclasses.replace(wish, **other), arm, "base"), arm) != same, other
    text.write_text("b", encoding="utf-8")
    assert experiment.digest(experiment.job(wish, arm, "base"), arm) != same


def test_entries_have_one_order_whatever_was_measured_last(tmp_path: Path) -> None:
    run = script("run")
    wanted = [
        ("float32", "persona", 16),
        ("float32", "persona", 64),
        ("float32", "chat", 16),
        ("bfloat16", "persona", 16),
    ]
    for dtype, case, size in wanted:
        folder = tmp_path / f"{case}-{dtype}-{size}"
        folder.mkdir()
        entry = {"base": "b", "load_in_4bit": False, "dtype": dtype, "case": case, "batch_size": size}
        (folder / "result.json").write_text(json.dumps(entry), encoding="utf-8")
    run.collect(tmp_path)
    entries = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["entries"]
    assert [(entry["dtype"], entry["case"], entry["batch_size"]) for entry in entries] == wanted


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


def test_tables_and_plots(matrix: Matrix, tmp_path: Path) -> None:
    report = script("report")
    larger = matrix.entry | {"batch_size": 8}
    document = {"name": "x", "entries": [matrix.entry, larger], "growth": [
        {"samples": 1000, "plan_seconds": 0.1}, {"samples": 10000, "plan_seconds": 1.1}]}  # fmt: skip
    other = matrix.entry | {"dtype": "bfloat16"}  # of another table: no point of the chart's lines
    charts = report.draw(document | {"entries": [other, matrix.entry, larger]}, tmp_path)
    assert charts == ["sharing.svg", "growth.svg"]
    for name in charts:
        lines = xml.parse(tmp_path / name).getroot().findall("{http://www.w3.org/2000/svg}polyline")
        assert all(len(line.get("points", "").split()) == 2 for line in lines)
        assert len(lines) == (3 if name == "sharing.svg" else 1)
    page = report.whole_page(document, charts)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| persona, 4 (stock 2 at a time) |")]
    ours = matrix.arms["fasttune"]
    assert "1 warm-up steps (the first of 3 samples) and 1 timed" in page and ours["commits"][0] in page
    assert (
        f"{ours['samples_per_second']['median'] / matrix.arms['stock']['samples_per_second']['median']:.1f}"
        in rows[0][3]
    )
    assert rows[0][2] == f"**{ours['samples_per_second']['median']:.3g}**"
    assert rows[0][5] == f"{ours['arithmetic_ratio']:.1f}×"
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {4, 10, 15} - {4} | {3}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_readme_takes_the_table(matrix: Matrix, tmp_path: Path, language: str) -> None:
    report = script("report")
    page = tmp_path / "README.md"
    page.write_text(report.PAGES[language].read_text(encoding="utf-8"), encoding="utf-8")
    for _turn in range(2):
        report.put(page, report.summary([matrix.entry], language, "LINK"))
    text = page.read_text(encoding="utf-8")
    assert (
        text.count("| persona, 4 (stock 2 at a time) |") == 1
        and text.count(report.BEGIN) == text.count(report.END) == 1
    )
    assert "(LINK)" in text


def test_an_invalid_arm_has_no_speed_in_the_table(matrix: Matrix) -> None:
    report = script("report")
    ours = matrix.arms["fasttune"] | {"status": "invalid"}
    (row,) = [report.summary_row(matrix.entry | {"arms": [matrix.arms["stock"], ours]})]
    assert row[2] == "invalid" and row[3:] == [""] * 6
    assert report.arm_row(ours)[1:10] == ["invalid", *[""] * 8]


# Data sets and shapes -----------------------------------------------------------------------------------------------


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
    shapes = script("shapes")
    folder = shapes.make("tiny", tmp_path / "tiny")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(folder)
    assert (net.config.hidden_size, net.config.num_hidden_layers) == (64, 2)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert shapes.make("tiny", folder) == folder and (folder / "model.safetensors").stat().st_mtime_ns == written
