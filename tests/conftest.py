"""What the tests share: English messages, a quiet Unsloth, and the real command line in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("FASTTUNE_LANG", "en")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network; a test that would fails at once

REPOSITORY = Path(__file__).parent.parent
Cli = Callable[..., Any]


def call_fasttune(runs: Path, *arguments: str | Path, stdin: str | None = None, **variables: str) -> Any:
    """`fasttune ARGS…` in the repository, as a user types it; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "fasttune", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "FASTTUNE_RUNS": str(runs), "COLUMNS": "160", **variables},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture
def fasttune(tmp_path: Path) -> Cli:
    """The command line with its runs under tmp_path."""
    return functools.partial(call_fasttune, tmp_path / "runs")


@dataclass(frozen=True)
class Quickstart:
    """A finished run of recipes/quickstart.toml: what it printed as JSON, its folder, and the command line beside it."""

    result: dict[str, Any]
    folder: Path
    fasttune: Cli


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """The quick start as the README runs it, once for all tests that look at its result."""
    runs = tmp_path_factory.mktemp("quickstart")
    done = call_fasttune(runs, "run", "recipes/quickstart.toml", "--json")
    assert done.returncode == 0, done.stderr
    return Quickstart(json.loads(done.stdout), runs / "quickstart" / "001-fresh", functools.partial(call_fasttune, runs))
