"""The memory that plans foretell, against trainings of the built-in base in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_the_built_in_base_at_two_shapes() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/memory.py"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("foretold") == 2
