"""The device: which one trains, its number type, its memory, and its random state."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import pytest
import torch

from fasttune.console import FasttuneError, UsageError
from fasttune.machine import GIB
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import device, distributed

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU works")


@on_cpu
def test_a_gpu_that_torch_cannot_use_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA GeForce RTX 4060 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(FasttuneError, match="RTX 4060") as caught:
        device.device_type()
    assert caught.value.findings[0].code == "gpu-not-usable"
    monkeypatch.setenv("UNSLOTH_FORCE_CPU", "1")
    assert device.device_type() == "cpu"


@on_cpu
@pytest.mark.parametrize(
    ("dtype", "expected", "flags"),
    [("auto", torch.float32, {}), ("float32", torch.float32, {}), ("bfloat16", torch.bfloat16, {"bf16": True})],
)
def test_the_number_type_on_a_cpu(dtype: str, expected: torch.dtype, flags: dict[str, bool]) -> None:
    recipe = ModelRecipe(base="builtin:tiny", dtype=dtype)  # type: ignore[arg-type]
    assert device.compute_dtype(recipe) == expected and device.precision(recipe) == flags


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [((7, 5), "auto", torch.float16), ((8, 0), "auto", torch.bfloat16), ((8, 9), "bfloat16", torch.bfloat16),
     ((7, 5), "float32", torch.float32)],
)  # fmt: skip
def test_the_number_type_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(device, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.compute_dtype(ModelRecipe(base="builtin:tiny", dtype=dtype)) == expected  # type: ignore[arg-type]


def test_bfloat16_on_a_gpu_without_it_is_a_mistake_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth would turn to float16, and TrainingArguments raise ValueError."""
    monkeypatch.setattr(device, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UsageError) as caught:
        device.precision(ModelRecipe(base="builtin:tiny", dtype="bfloat16"))
    (finding,) = caught.value.findings
    assert finding.code == "bfloat16-not-available" and finding.where == "model.dtype" and "7.5" in finding.what
    assert "UNSLOTH_FORCE_CPU=1" in finding.fix  # float32 would not continue it: model.dtype is bound to the checkpoint


@pytest.mark.parametrize(("free", "share"), [(6.3, 0.75), (0.1, 0.1), (8.2, 0.9875)])
def test_under_wsl2_torch_takes_no_more_than_is_free(
    monkeypatch: pytest.MonkeyPatch, free: float, share: float
) -> None:
    """Of a GPU of 8 GiB; elsewhere the driver itself refuses."""
    taken: list[float] = []
    monkeypatch.setattr(device, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int((free - 0.05) * GIB), 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int(0.05 * GIB))  # counts as free: torch has it already
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    for windows in (False, True):
        monkeypatch.setattr(device, "is_wsl", lambda windows=windows: windows)
        device.refuse_spilling()
    assert taken == [pytest.approx(share, abs=1e-3)]
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: taken[0])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: int(0.02 * GIB))
    assert device.free_memory() == pytest.approx(min(free, 8 * share) * GIB - 0.02 * GIB, rel=1e-3)


@pytest.mark.parametrize(
    ("problem", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognized(problem: Exception, is_memory: bool) -> None:
    assert device.is_out_of_memory(problem) is is_memory


@on_cpu
def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = device.free_memory()
    monkeypatch.setattr(distributed, "local_world_size", lambda: 4)
    assert device.free_memory() == pytest.approx(alone / 4, rel=0.2)


def test_the_random_state_is_restored() -> None:
    """Dropout of an attempt that is made again draws the same numbers; the digest tells states apart."""
    torch.manual_seed(1)
    state, digest = device.random_state(), device.random_state_digest()
    first = torch.rand(5)
    assert device.random_state_digest() != digest
    device.set_random_state(state)
    assert device.random_state_digest() == digest
    assert torch.equal(torch.rand(5), first)
    device.set_random_state(state)
    random.random()  # Python's own generator counts as well
    assert device.random_state_digest() != digest


@on_cpu
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux shows a process its peak")
def test_the_peak_of_a_piece_of_work_is_measured() -> None:
    before = device.reset_peak()
    with mmap.mmap(-1, 256 * 2**20) as block:  # returned at once, which malloc's memory is not
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert 200 * 2**20 < device.peak_memory() - before < 400 * 2**20
    assert device.peak_memory() - device.reset_peak() > 200 * 2**20
    assert device.peak_memory() - device.reset_peak() < 20 * 2**20  # the peak was reset
