"""One benchmark matrix on builtin:tiny for all tests that look at its result, and the scripts of benchmarks/.

A test module takes the fixture by `pytest_plugins = ["bench_matrix"]`. PYTEST_DONT_REWRITE: the test modules import this
one before pytest takes it as a plugin, which is too late to rewrite its assertions.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY

from fasttune.bench import jobs

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


def run_matrix(out: Path) -> int:
    """Four arms on builtin:tiny, a warmup step of three samples and a step of four, which TRL takes in two parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [
            "benchmarks/run.py", "--name", "test", "--out", str(out), "--base", "builtin:tiny",
            "--cases", "persona", "--arms", "plain,stock,stock-padding-free,fasttune", "--batch-size", "4",
            "--warmup-samples", "3", "--micro-batch", "2", "--steps", "1", "--repeats", "1", "--growth", "50,100",
        ])  # fmt: skip
        return int(script("run").main())


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """A matrix of one entry, measured once."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    assert run_matrix(folder) == 0
    entry = json.loads((folder / ENTRY / "result.json").read_text(encoding="utf-8"))
    return Matrix(folder, entry, {arm["name"]: arm for arm in entry["arms"]})
