"""The files between an experiment and its processes: read as they were written, and found again by their job."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench_matrix import Matrix

from fasttune.bench import jobs

pytest_plugins = ["bench_matrix"]
JOB = jobs.Job("stock", "x.toml", ("train.seed=2",), "base", steps=2, started=5.5, micro_batch=4, without=("a", "b"))


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    jobs.write_job(tmp_path / "x.job.json", JOB)
    assert jobs.read_job(tmp_path / "x.job.json") == JOB


def test_answers_are_read_as_they_were_written(matrix: Matrix, tmp_path: Path) -> None:
    rates = {"F.linear 1 to 2": 3.5}
    jobs.write_answer(tmp_path / "x.part", matrix.measured("stock"))
    assert jobs.read_answer(tmp_path / "x.part", "stock") == matrix.measured("stock")
    jobs.write_kept(tmp_path / "x.json", jobs.KeptResult("digest", "now", "commit", rates))
    kept = jobs.read_kept(tmp_path / "x.json", "limit")
    assert kept and (kept.job, kept.measured) == ("digest", rates)


def test_a_result_of_another_version_counts_as_none(tmp_path: Path) -> None:
    assert jobs.read_kept(tmp_path / "x.json", "stock") is None
    document = {"job": "digest", "at": "now", "commit": "c", "measured": {"a field that went": 1}}
    (tmp_path / "x.json").write_text(json.dumps(document), encoding="utf-8")
    assert jobs.read_kept(tmp_path / "x.json", "stock") is None


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"micro_batch": 8}, {"warmup_samples": 1}, {"overrides": ()}, {"without": ()}]
)
def test_another_job_has_another_digest(tmp_path: Path, change: dict[str, int | tuple[str, ...]]) -> None:
    recipe = tmp_path / "x.toml"
    recipe.write_text("a", encoding="utf-8")
    job = dataclasses.replace(JOB, recipe=str(recipe))
    digest = jobs.job_digest(job, ())
    assert jobs.job_digest(dataclasses.replace(job, started=7.0), ()) == digest
    assert jobs.job_digest(dataclasses.replace(job, **change), ()) != digest  # type: ignore[arg-type]
    assert jobs.job_digest(job, (("OMP_NUM_THREADS", "1"),)) != digest
    recipe.write_text("b", encoding="utf-8")
    assert jobs.job_digest(job, ()) != digest
