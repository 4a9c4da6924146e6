"""The child process in which Unsloth's GPU model runs on a CPU (gpu_rows.py), a pytest plugin: one for all test files, since
importing Unsloth takes as long as what is done with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Shared

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def gpu_model_found(shared: Shared) -> Path:
    """The folder with found.json and memory.json, as the child process wrote them."""

    def run(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, str(TESTS / "gpu_rows.py"), str(folder)], cwd=TESTS, capture_output=True, text=True,
            env=os.environ | {
                "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1",
                "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"),
                "CUDA_VISIBLE_DEVICES": "",  # where torch sees a GPU, a process that has computed gradients can't be forked
            },
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]

    return shared("gpu-model", run)
