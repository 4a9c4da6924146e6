"""Out of memory is recognized, named by its sample, and told from other errors."""

from __future__ import annotations

import errno
import re
import resource
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from out_of_memory import NO_CHECKPOINTING, little_memory
from safetensors.torch import load_file
from series import Series

from fasttune.console import FasttuneError
from fasttune.data.tokenize import Example
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import device, hub, memory, oom
from fasttune.training.packing import Group, Row

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)
EXAMPLES = [Example(f"train.jsonl:{n}", (1, 2, 3), ((2, 3),)) for n in range(4)]
ROW = Row((Group(0, (2,)), Group(0, (1,))), 6)


@pytest.mark.parametrize(
    "problem",
    [RuntimeError(CPU_MESSAGE), MemoryError(), RuntimeError("std::bad_alloc")],
    ids=["allocator", "python", "c++"],
)
def test_a_row_that_runs_out_of_memory_is_named_by_its_first_sample(problem: Exception) -> None:
    with pytest.raises(oom.RowOutOfMemory) as caught, oom.raise_on_oom(ROW, EXAMPLES):
        raise problem
    assert caught.value.failed == oom.FailedRow(ROW, "train.jsonl:2")


def test_other_errors_pass_through() -> None:
    broken = RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")
    with pytest.raises(RuntimeError, match="shapes") as caught, oom.raise_on_oom(ROW, EXAMPLES):
        raise broken
    assert caught.value is broken


def test_memory_runs_out_on_a_cpu_too(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60, problem=RuntimeError(CPU_MESSAGE)):
        done = series.train("train.max_steps=1", *NO_CHECKPOINTING)
    assert "out of memory" in done.stderr


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    broken = RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")
    with little_memory(lambda tokens, _call: tokens > 60, problem=broken), pytest.raises(RuntimeError, match="shapes"):
        series.train("train.max_steps=1")


def test_the_line_is_chinese_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", "zh")
    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60):
        done = series.train("train.max_steps=1", *NO_CHECKPOINTING)
    assert re.search(r"第 1 步：一行 \d+ 个 token 时内存不足；每行 token 上限改为 \d+，重新计算这一步", done.stderr)


def test_a_sample_that_does_not_fit_is_named(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 30):
        done = series.train("train.max_steps=6", code=1)
    sample = re.search(
        r"error: train\.jsonl:\d+: a single sample of (\d+) tokens does not fit into memory", done.stderr
    )
    assert sample and int(sample[1]) > 30
    assert "a shorter sample" in done.stderr and "a smaller lora.r" in done.stderr
    assert "Traceback" not in done.stderr and not series.runs()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_the_error_proposes_what_is_not_in_use(gradient_checkpointing: bool, has_checkpoint: bool) -> None:
    failed, recipe = oom.FailedRow(ROW, "train.jsonl:2"), load_recipe(REPOSITORY / "recipes" / "quickstart.toml")
    (finding,) = oom.sample_too_large(failed, recipe, gradient_checkpointing, has_checkpoint).findings
    assert (finding.code, finding.where) == ("sample-too-large", "train.jsonl:2")
    assert "a single sample of 6 tokens" in finding.what
    assert ("train.gradient_checkpointing = true" in finding.fix) is not gradient_checkpointing
    assert ("the newest checkpoint is kept" in finding.why) is has_checkpoint


def test_a_base_that_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda: 1000)
    with pytest.raises(FasttuneError) as caught, oom.base_too_large(hub.TINY, ModelRecipe(base="builtin:tiny")):
        raise AssertionError("the base was loaded")
    (finding,) = caught.value.findings
    assert (finding.code, finding.where) == ("base-too-large", "model.base")
    assert "0.0 GiB were free" in finding.what and 'dtype = "bfloat16"' in finding.fix


def test_a_base_that_is_in_memory_needs_no_more_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next trial of a sweep: what the base takes is not asked for twice, and counts as free where memory runs out."""
    recipe = ModelRecipe(base="builtin:tiny")
    monkeypatch.setattr(device, "free_memory", lambda: 2**30)
    monkeypatch.setattr(memory, "weight_bytes", lambda *_shape: 3 * 2**30)
    with oom.base_too_large(hub.TINY, recipe, in_memory=True):
        pass
    with pytest.raises(FasttuneError) as caught, oom.base_too_large(hub.TINY, recipe, in_memory=True):
        raise MemoryError
    assert "needs about 3.0 GiB, and 4.0 GiB were free" in caught.value.findings[0].what


@pytest.mark.parametrize(
    "problem",
    [RuntimeError(CPU_MESSAGE), MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")],
    ids=["allocator", "python", "mmap"],
)
def test_memory_that_runs_out_while_a_base_is_loaded_is_one_message(problem: Exception) -> None:
    recipe = ModelRecipe(base="builtin:tiny", dtype="bfloat16")
    with pytest.raises(FasttuneError) as caught, oom.base_too_large(hub.TINY, recipe):
        raise problem
    assert caught.value.findings[0].code == "base-too-large" and "bfloat16" not in caught.value.findings[0].fix
    with pytest.raises(OSError, match="no such file"), oom.base_too_large(hub.TINY, recipe):
        raise OSError(errno.ENOENT, "no such file")


def test_a_base_takes_its_parameters_in_the_number_type_that_is_computed_in() -> None:
    parameters = sum(tensor.numel() for tensor in load_file(hub.TINY / "model.safetensors").values())
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        recipe = ModelRecipe(base="builtin:tiny", dtype=dtype)  # type: ignore[arg-type]
        needed = memory.weight_bytes(memory.read_size(hub.TINY), recipe, "cpu")
        assert needed == pytest.approx(width * parameters, rel=0.01)


def test_the_limit_of_a_process_is_the_end_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -v`, which the machine's free memory knows nothing of."""
    mapped = device.resident_bytes("VmSize")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (mapped + 2**28, resource.RLIM_INFINITY))
    assert device.free_memory() == pytest.approx(2**28, abs=2**26)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert device.address_space_left() == sys.maxsize
