"""`fasttune bench`: rounds of processes, a wrong arm caught, a broken one named, results kept."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_matrix import ENTRY, STARTED, Matrix, fork_worker, script
from conftest import REPOSITORY, Cli

from fasttune.bench import experiment
from fasttune.bench.arms import parse_arms

pytest_plugins = ["bench_matrix"]
MATRIX_OPTIONS = (  # of `fasttune bench`: those that make the jobs of the matrix
    "--set", "model.base=builtin:tiny", "--set", "model.dtype=float32", "--set", "model.load_in_4bit=false",
    "--set", "train.batch_size=4", "--steps", "1", "--warmup", "1", "--warmup-samples", "3", "--micro-batch", "2",
)  # fmt: skip


def test_rounds_alternate() -> None:
    every = parse_arms("plain,stock,fasttune")
    turns = [[arm.name for arm in experiment.alternating(every, number)] for number in range(3)]
    assert turns == [["plain", "stock", "fasttune"], ["fasttune", "stock", "plain"], ["plain", "stock", "fasttune"]]


def test_the_processes_ran_in_the_order_that_is_written(matrix: Matrix) -> None:
    files = sorted((path.stat().st_mtime_ns, path.stem) for path in (matrix.folder / ENTRY).glob("round*.json"))
    assert matrix.entry["order"] == [list(STARTED[:-1])]
    assert [name for _time, name in files] == [f"round1-{name}" for name in STARTED]


def test_every_figure_is_there(matrix: Matrix) -> None:
    for name in ("plain", "stock", "fasttune"):
        arm = matrix.arms[name]
        for figure in ("step_seconds", "samples_per_second", "tokens_per_second", "supervised_tokens_per_second",
                       "steps_per_second", "start_up_seconds"):  # fmt: skip
            assert 0 < arm[figure]["min"] <= arm[figure]["median"] <= arm[figure]["max"], figure
        assert arm["memory"]["rss_gib"] > 0.1
        assert arm["limit_share"] == pytest.approx(arm["gflops"] / max(matrix.entry["limit_gflops"].values()))
        assert len(arm["rounds_seconds"]) == 1 and len(arm["losses"]) == 2
        assert arm["precision"] == "float32" and arm["commits"]
        assert arm["seconds"] * arm["tokens_per_second"]["median"] == pytest.approx(arm["work"]["tokens"])
    assert matrix.entry["packages"]["trl"] and matrix.entry["processor"]


def test_what_needs_a_gpu_says_so(matrix: Matrix) -> None:
    skipped = matrix.arms["stock-padding-free"]
    assert skipped["status"] == "skipped" and "CUDA" in skipped["why"]


def test_an_arm_leaves_out_what_this_version_has_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    (arm,) = parse_arms("fasttune-stock-layers")
    assert experiment.why_skipped(arm) == ""
    monkeypatch.delattr("fasttune.training.model.use_cpu_layers")
    assert "use_cpu_layers" in experiment.why_skipped(arm)


def test_another_learning_rate_is_not_fast_but_invalid(
    matrix: Matrix, fasttune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first loss is right; the one after a step gives it away. The right arm is taken from the matrix."""
    logs = tmp_path / "out" / "logs"
    logs.mkdir(parents=True)
    for name in ("fasttune", "limit"):
        shutil.copy(matrix.folder / ENTRY / f"round1-{name}.json", logs)
    taken_from_matrix = functools.partial(experiment.Experiment, resume=True)
    monkeypatch.setattr(experiment, "Experiment", taken_from_matrix)
    started: list[str] = []
    monkeypatch.setattr(experiment, "start_worker", counted(fork_worker, started))
    done = fasttune(
        "bench", script("run").WORK / "persona.toml", *MATRIX_OPTIONS, "--repeats", "1",
        "--arms", "fasttune,fasttune+train.learning_rate=1e-2", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert started == ["round1-fasttune+train.learning_rate=1e-2.job.json"]
    right, off = document["arms"]
    assert (right["status"], off["status"]) == ("ok", "invalid")
    assert off["why"].startswith("later_losses off by")
    assert off["first_loss"] == right["first_loss"] and off["grad_norm"] == right["grad_norm"]
    assert not (tmp_path / "runs").exists()
    assert "speedup" not in off


def counted(start: Callable[..., int], started: list[str]) -> Callable[..., int]:
    """`start_worker`, which also notes the job that it starts."""

    def call(job_file: Path, *arguments: Any) -> int:
        started.append(job_file.name)
        return start(job_file, *arguments)

    return call


def test_an_arm_that_breaks_is_named_and_the_others_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that fails costs its own arm; here the recipe value is refused inside it."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(experiment, "start_worker", fork_worker)
    requested = experiment.Experiment(
        Path("recipes/quickstart.toml"), (), parse_arms("fasttune+train.optim=nonsense"), steps=1, repeats=1
    )
    messages: list[str] = []
    (arm,) = experiment.measure(requested, tmp_path, messages.append)["arms"]
    assert arm["status"] == "failed" and "nonsense" in arm["why"]
    assert any("nonsense" in message for message in messages)
