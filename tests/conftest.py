"""What the tests share: English messages, a quiet Unsloth, and the real command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("FASTTUNE_LANG", "en")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network; a test that would fails at once

REPOSITORY = Path(__file__).parent.parent
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def fasttune(tmp_path: Path) -> Cli:
    """Runs `fasttune ARGS…` in the repository with runs under tmp_path; returns the finished process."""

    def call(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fasttune", *map(str, arguments)],
            cwd=REPOSITORY,
            env={**os.environ, "FASTTUNE_RUNS": str(tmp_path / "runs"), "COLUMNS": "160", **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    return call
