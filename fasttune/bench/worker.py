"""One process of a benchmark: `python -m fasttune.bench.worker JOB.json ANSWER`, which experiment.py starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fasttune.bench import engines, jobs, workload
from fasttune.bench.jobs import Answer, Job
from fasttune.bench.measure import Clock, matmul_rates
from fasttune.training import device


def answer(job: Job) -> Answer:
    """Train as the job says; the engine `limit` measures the machine's matrix-multiply rates instead."""
    recipe, dataset = workload.read_recipe(job)
    if job.engine == "limit":
        return matmul_rates(Path(job.base), device.compute_dtype(recipe.model))
    if job.warmup_samples:
        workload.shorten_first_step(job.warmup_samples)
    engine = engines.train_by_fasttune if job.engine == "fasttune" else engines.train_by_trl
    return engine(job, recipe, dataset, Clock())


def main(arguments: Sequence[str]) -> None:
    """Read a job, do it, and write what was measured."""
    job_file, answer_file = map(Path, arguments)
    jobs.write_answer(answer_file, answer(jobs.read_job(job_file)))


if __name__ == "__main__":
    main(sys.argv[1:])
