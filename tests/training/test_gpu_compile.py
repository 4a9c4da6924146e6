"""Every Triton kernel of a training compiles for the GPUs that users have, without one (gpu_compile.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytest.importorskip("triton", reason="Unsloth's kernels are triton's")
# Bytes of shared memory that a block may ask for, by architecture (CUDA C++ Programming Guide, compute capabilities).
SHARED_MEMORY = {"sm_75": 65536, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_120": 101376}


def test_every_kernel_compiles_for_every_gpu(tmp_path: Path) -> None:
    """RMSNorm and RoPE forward and backward, SwiGLU both ways, NF4."""
    tests = REPOSITORY / "tests"
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{tests}", "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "c"),
        "TORCHDYNAMO_DISABLE": "1",  # torch's compiler, which no kernel needs: importing it takes as long as four of them
    }  # fmt: skip
    command = [sys.executable, str(tests / "gpu_compile.py"), str(tmp_path / "triton")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])["kernels"]
    failed = {name: one for name, one in found.items() if isinstance(one, str)}
    assert not failed
    assert all(shared <= SHARED_MEMORY[name.split()[-1]] for name, shared in found.items())
    assert {name.split()[-1] for name in found} == SHARED_MEMORY.keys() and len(found) >= 6 * len(SHARED_MEMORY)
