"""One benchmark matrix on builtin:tiny for all tests that look at its result, and the scripts of benchmarks/.

The plain engine, which must not have Unsloth in its process, is measured by a process of its own, as `fasttune bench`
starts it; the others by forks of this one, where Unsloth is imported already.

A test module takes the fixture by `pytest_plugins = ["bench_matrix"]`. PYTEST_DONT_REWRITE: the test modules import this
one before pytest takes it as a plugin, which is too late to rewrite its assertions.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY, Shared

from fasttune.bench import experiment, jobs, worker
from fasttune.training import device
from fasttune.training import model as models

ENTRY = "persona-builtin-tiny-float32-b4"
STARTED = ("plain", "stock", "fasttune", "limit")  # the processes of a round, in order; stock-padding-free needs a GPU


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The folder of results, its one entry, and the entry's arms by name."""

    folder: Path
    entry: dict[str, Any]
    arms: dict[str, dict[str, Any]]

    def measured(self, name: str) -> jobs.Measured:
        """What an arm's process measured in round 1."""
        kept = jobs.read_kept(self.folder / ENTRY / f"round1-{name}.json", "fasttune")
        assert kept and isinstance(kept.measured, jobs.Measured)
        return kept.measured


def script(name: str) -> ModuleType:
    """A file of benchmarks/, imported as its own scripts import it."""
    folder = str(REPOSITORY / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def work_as_child(job_file: Path, answer_file: Path, log: Path, variables: dict[str, str]) -> None:
    """What a forked child does: the worker's `main`, with all that it prints in `log`."""
    with open(log, "w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", encoding="utf-8") for descriptor in (1, 2))  # noqa: SIM115
    os.environ.update(variables)
    worker.main([str(job_file), str(answer_file)])


def fork_worker(job_file: Path, answer_file: Path, log: Path, variables: dict[str, str]) -> int:
    """`experiment.start_worker` for an engine that may have Unsloth in its process: a fork that has it imported."""
    if jobs.read_job(job_file).engine == "plain" or device.device_type() != "cpu":  # a forked child has no GPU
        return START_WORKER(job_file, answer_file, log, variables)
    models.import_unsloth()
    child = multiprocessing.get_context("fork").Process(
        target=work_as_child, args=(job_file, answer_file, log, variables)
    )
    child.start()
    child.join(300)
    return child.exitcode or 0


START_WORKER = experiment.start_worker


def run_matrix(out: Path) -> int:
    """Four arms on builtin:tiny, a warmup step of three samples and a step of four, which TRL takes in two parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(experiment, "start_worker", fork_worker)
        patch.setattr(sys, "argv", [
            "benchmarks/run.py", "--name", "test", "--out", str(out), "--base", "builtin:tiny",
            "--cases", "persona", "--arms", "plain,stock,stock-padding-free,fasttune", "--batch-size", "4",
            "--warmup-samples", "3", "--micro-batch", "2", "--steps", "1", "--repeats", "1", "--growth", "50,100",
        ])  # fmt: skip
        return int(script("run").main())


@pytest.fixture(scope="session")
def matrix(shared: Shared) -> Matrix:
    """A matrix of one entry, measured once for all workers; no test changes it."""

    def measure(folder: Path) -> None:
        assert run_matrix(folder) == 0

    folder = shared("bench", measure)
    entry = json.loads((folder / ENTRY / "result.json").read_text(encoding="utf-8"))
    return Matrix(folder, entry, {arm["name"]: arm for arm in entry["arms"]})
