"""What is tried on the device: done for real on this machine's processor, with damage where it has to be noticed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fasttune.doctor import trials
from fasttune.training import device


def test_a_product_is_right_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trials.TIMED, "cpu", 256)
    found = trials.matrix_product()
    assert found.state == "ok" and "GFLOP/s in float32" in found.measured
    assert 'model.dtype = "auto" trains in float32: it has neither AMX nor AVX512-BF16' in found.measured


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is asked instead")
def test_a_product_in_the_type_that_a_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trials.TIMED, "cpu", 64)
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "avx512_bf16")
    found = trials.matrix_product()
    assert found.state == "ok" and "GFLOP/s in bfloat16" in found.measured
    assert found.measured.endswith('; model.dtype = "auto" trains in bfloat16: it has AVX512-BF16')


def test_a_product_that_is_wrong_in_one_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = torch.Tensor.__matmul__

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = multiply(a, b)
        if product.dtype == torch.float32:
            product[3, 5] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    found = trials.matrix_product()
    assert found.state == "error" and "1 of 65536 numbers differ" in found.measured


def test_nf4_there_and_back_on_the_processor() -> None:
    found = trials.nf4_round_trip("cpu")
    assert found.state == "ok" and found.measured.startswith(("9.", "10.", "8.")), found


def test_nf4_that_loses_more_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes import functional

    dequantize = functional.dequantize_4bit

    def damaged(packed: Any, state: Any) -> Any:
        back = dequantize(packed, state)
        back[:100] = 0
        return back

    monkeypatch.setattr(functional, "dequantize_4bit", damaged)
    assert trials.nf4_round_trip("cpu").state == "error"

    def missing(*_arguments: Any, **_more: Any) -> Any:
        raise RuntimeError("\nCUDA Setup failed despite CUDA being available\nmore")

    monkeypatch.setattr(functional, "quantize_4bit", missing)
    found = trials.nf4_round_trip("cpu")
    assert found.state == "error" and "RuntimeError: CUDA Setup failed despite" in found.measured


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton for this processor")
def test_the_kernel_by_tritons_interpreter() -> None:
    """The kernel itself, without a GPU; a kernel of another formula would be off."""
    code = "from fasttune.doctor.triton_kernel import error_of_kernel; print(error_of_kernel('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.strip() == "0.0", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_kernel_that_cant_run_says_why() -> None:
    found = trials.triton_kernel()
    assert found.state == "error" and "Triton can't compile or run a kernel: " in found.measured and found.fix


@pytest.mark.parametrize(("pinned", "state"), [([1, 4, 8], "ok"), ([1], "ok"), ([], "warning")])
def test_pinned_memory(pinned: list[int], state: str) -> None:
    found = trials.judge_pinned([1, 4, 8], pinned)
    assert found.state == state and f"{max(pinned, default=0)} GiB at once" in found.measured


def test_memory_that_spills() -> None:
    assert trials.judge_spill(6.5, spills=False).state == "ok"
    found = trials.judge_spill(6.5, spills=True)
    assert found.state == "warning" and "Sysmem Fallback" in found.fix


def test_llama_cpp_loads_and_a_library_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from fasttune.export import llama

    assert trials.llama_cpp().state == "ok"
    monkeypatch.setattr(llama, "import_failure", lambda: "libllama.so: cannot open\nmore")
    found = trials.llama_cpp()
    assert found.state == "error" and "libllama.so: cannot open" in found.measured


def test_the_process_prints_results_only() -> None:
    """Whatever a library prints goes to stderr: stdout is one JSON line a check."""
    done = subprocess.run([sys.executable, "-m", "fasttune.doctor.trials", "llama-cpp"], capture_output=True, text=True,
                          check=True)  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["name"] == "llama-cpp" and json.loads(line)["state"] == "ok"


def test_a_gpu_that_torch_cant_use_is_a_result(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "visible_gpu", lambda: "GPU 0: NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("UNSLOTH_FORCE_CPU", raising=False)
    saved = os.dup(1)
    try:
        trials.main(["matrix-product"])
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert found["state"] == "error" and "NVIDIA Test" in found["measured"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["matrix-product", "triton-kernel", "nf4-round-trip", "pinned-memory", "memory-spill"])
def test_on_a_gpu(name: str) -> None:
    found = trials.WORK[name]()
    assert found.state == "ok", found
