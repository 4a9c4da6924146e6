"""Memory that runs out never changes a step (E3): the same adapter, a line that says so, and a resume that cuts alike; the
arithmetic of row budgets with made-up cards."""

from __future__ import annotations

import mmap
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from series import Series, adapter, assert_same_run, checkpoints, document, history, largest_difference, losses, untimed

from fasttune.runs.documents import RowRecord
from fasttune.training import device, row_budget
from fasttune.training import model as models
from fasttune.training.packing import Group, Row
from fasttune.training.row_budget import MemoryShape, RowBudget

SETTINGS = ("train.max_steps=6", "train.save_steps=2", "data.val=val.jsonl", "train.eval_steps=2")
PLAIN = ("train.gradient_checkpointing=false",)
CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)


# Injection ----------------------------------------------------------------------------------------------------------


def fail_backward(states: Any, problem: Exception) -> Any:
    """The same states; their gradient is never formed."""
    import torch

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any) -> Any:
            return hidden.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise problem

    return Failing.apply(states)


@contextmanager
def little_memory(
    too_large: Callable[[int, int], bool], *, backward: bool = False, problem: Exception | None = None
) -> Iterator[list[int]]:
    """Rows run out of memory where `too_large(tokens, call)` says so: after their forward pass (which has drawn its random
    numbers) or in the middle of their backward pass. Yields the lengths of all rows that were run."""
    import torch

    real, seen = models.hidden_states, []

    def hidden_states(model: Any, batch: Any) -> Any:
        states, tokens = real(model, batch), batch.input_ids.shape[1]
        seen.append(tokens)
        if not too_large(tokens, len(seen)):
            return states
        failure = problem or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if backward and torch.is_grad_enabled():
            return fail_backward(states, failure)
        raise failure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "hidden_states", hidden_states)
        yield seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    series = Series.new(tmp_path_factory.mktemp("undisturbed"))
    series.train(*SETTINGS)
    return series.run(1)


# The step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dropout", [0, 0.1])
def test_the_step_is_planned_again_in_smaller_rows(
    tmp_path: Path, undisturbed: Path, backward: bool, dropout: float
) -> None:
    """Bit for bit the run that began with the smaller budget, dropout's random numbers included; to rounding the run that
    never ran out."""
    settings = (*SETTINGS, *PLAIN, f"lora.dropout={dropout}")
    series = Series.new(tmp_path / "little")
    with little_memory(lambda tokens, _call: tokens > 60, backward=backward) as rows:
        done = series.train(*settings)
    run = series.run(1)
    found = document(run / "provenance.json")
    budget = found["tokens_per_row"]
    assert max(rows) > 60 >= budget
    assert f"step 1: out of memory in a row of {rows[0]} tokens; the step is planned again" in done.stderr
    assert f"with at most {budget} tokens a row from here on" in done.stderr

    small = Series.new(tmp_path / "small")
    small.train(*settings, f"train.tokens_per_row={budget}")
    assert found["rows_cut"][-1]["step"] == 1
    assert adapter(run) == adapter(small.run(1))
    assert untimed(history(run)) == untimed(history(small.run(1)))
    if not dropout:
        assert 0 < largest_difference(run, undisturbed) < 2e-4
        assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_nothing_of_a_failed_attempt_stays(tmp_path: Path) -> None:
    """A later row of the step fails: the gradients of those before it are cleared, or they would count twice."""
    settings = (*SETTINGS, *PLAIN, "train.batch_size=10", "train.tokens_per_row=130")
    series = Series.new(tmp_path / "little")
    with little_memory(lambda _tokens, call: call == 2) as rows:
        series.train(*settings)
    assert rows[0] != rows[1]
    budget = document(series.run(1) / "provenance.json")["tokens_per_row"]
    assert budget == rows[1] // 2
    small = Series.new(tmp_path / "small")
    small.train(*settings, f"train.tokens_per_row={budget}")
    assert adapter(series.run(1)) == adapter(small.run(1))


@pytest.mark.parametrize(
    "problem",
    [RuntimeError(CPU_MESSAGE), MemoryError(), RuntimeError("std::bad_alloc")],
    ids=["allocator", "python", "c++"],
)
def test_memory_runs_out_on_a_cpu_too(tmp_path: Path, problem: Exception) -> None:
    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60, problem=problem):
        done = series.train("train.max_steps=1", *PLAIN)
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
        done = series.train("train.max_steps=1", *PLAIN)
    assert re.search(r"第 1 步: 一行 \d+ 个 token 时内存不够；这一步按每行至多 \d+ 个 token 重新安排", done.stderr)


def test_evaluation_survives(tmp_path: Path, undisturbed: Path) -> None:
    """Rows without gradient that don't fit: the held-out loss is the same to rounding, and training goes on."""
    import torch

    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60 and not torch.is_grad_enabled()):
        done = series.train(*SETTINGS)
    assert "step 2: out of memory" in done.stderr
    lines, expected = history(series.run(1)), history(undisturbed)
    for key in ("eval_loss", "eval_mean_token_accuracy"):
        values = [line[key] for line in lines if key in line]
        assert values == pytest.approx([line[key] for line in expected if key in line], rel=1e-5) and len(values) == 3
    assert document(series.run(1) / "provenance.json")["rows_cut"][0]["step"] == 2.5


# Stopping and going on ----------------------------------------------------------------------------------------------


@contextmanager
def steps_watched(dies_in: int = 0) -> Iterator[list[int]]:
    """The step that is being trained, as the last element; the process "dies" at the beginning of one of them."""
    from fasttune.training.trainer import StepTrainer

    real, trained = StepTrainer.training_step, [0]

    def training_step(self: Any, *inputs: Any) -> Any:
        trained.append(self.state.global_step + 1)
        if trained[-1] == dies_in:
            raise KeyboardInterrupt
        return real(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "training_step", training_step)
        yield trained


@pytest.mark.parametrize("dies_in", [5, 7])
@pytest.mark.parametrize("training", [True, False], ids=["in step 4", "in the evaluation after it"])
def test_a_resume_cuts_its_steps_alike(tmp_path: Path, dies_in: int, training: bool) -> None:
    """E2: out of memory, killed, and run again with memory enough: bit for bit the run that was not killed. Steps and
    evaluations before the cut are replayed with the rows they had, those after it with the smaller ones."""
    import torch

    settings = ("train.max_steps=9", "train.save_steps=3", "data.val=val.jsonl", "train.eval_steps=2", *PLAIN)
    straight, killed = Series.new(tmp_path / "straight"), Series.new(tmp_path / "killed")
    for series, death in ((straight, 0), (killed, dies_in)):
        with (
            steps_watched(death) as step,
            little_memory(
                lambda tokens, _call, step=step: tokens > 60 and step[-1] == 4 and torch.is_grad_enabled() is training
            ),
        ):
            series.train(*settings, code=130 if death else 0)
    cuts = document(straight.run(1) / "provenance.json")["rows_cut"]
    assert {cut["step"] for cut in cuts} == {4 if training else 4.5}
    # A best evaluation saves a checkpoint as well; only those from before the cut are left to go on from.
    for name in checkpoints(killed.run(1)):
        if int(name.split("-")[1]) >= 4 and dies_in == 5:
            shutil.rmtree(killed.run(1) / "checkpoints" / name)
    assert checkpoints(killed.run(1))
    with steps_watched() as step:
        killed.train(*settings)
    assert step[1] == (4 if dies_in == 5 else 7)
    assert_same_run(killed.run(1), straight.run(1))
    assert document(killed.run(1) / "provenance.json")["rows_cut"] == cuts


def test_a_continued_run_begins_with_the_smaller_rows(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60):
        series.train("train.epochs=1", *PLAIN)
    budget = document(series.run(1) / "provenance.json")["tokens_per_row"]
    with little_memory(lambda _tokens, _call: False) as rows:
        series.train("train.epochs=1", "continue.add_epochs=1", *PLAIN, flags="--continue incremental")
    assert document(series.run(2) / "provenance.json")["tokens_per_row"] == budget
    assert max(rows) <= budget


# Too large ----------------------------------------------------------------------------------------------------------


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


def test_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    """Memory is taken away after step 4: the run ends with a message, and goes on from there once it is back."""
    series, straight = Series.new(tmp_path / "little"), Series.new(tmp_path / "straight")
    settings = ("train.max_steps=6", "train.save_steps=2", "train.tokens_per_row=0")
    with little_memory(lambda _tokens, call: call > 25):
        done = series.train(*settings, code=1)
    run = series.run(1)
    assert "does not fit into memory" in done.stderr and "Traceback" not in done.stderr
    assert "train.gradient_checkpointing = true" not in done.stderr  # it was turned on before that
    assert checkpoints(run) and not list(run.rglob("*.partial"))
    series.train(*settings)
    straight.train(*settings)
    assert_same_run(run, straight.run(1))


def test_activations_are_recomputed_before_giving_up(tmp_path: Path, undisturbed: Path) -> None:
    """A single sample fits with gradient checkpointing only: "auto" turns it on, and the gradients are the same."""
    import torch

    series = Series.new(tmp_path)
    real, graphs = models.enable_gradient_checkpointing, []

    def keeps_all(_tokens: int, _call: int) -> bool:
        return torch.is_grad_enabled() and not graphs

    with little_memory(keeps_all) as rows, pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "enable_gradient_checkpointing", lambda model: (graphs.append(model), real(model)))
        done = series.train(*SETTINGS)
    (model,) = graphs
    assert all(layer.gradient_checkpointing for layer in model.get_base_model().model.layers)
    assert done.stderr.count("gradient checkpointing is on from here on") == 1 and rows[0] == rows[1]
    assert adapter(series.run(1)) == adapter(undisturbed)
    assert document(series.run(1) / "provenance.json")["gradient_checkpointing"] is True


# The arithmetic -----------------------------------------------------------------------------------------------------


QWEN_HALF = MemoryShape(layers=24, hidden=896, intermediate=4864, value_bytes=2, states=12, inner=4)
GIB = row_budget.GIB


def test_a_budget_from_a_measured_row() -> None:
    """A row of 2048 tokens took 1 GiB of 10 free ones: 8 are used, 2048 tokens each."""
    assert row_budget.measured_budget(10 * GIB, 2048, GIB) == 8 * 2048
    assert row_budget.measured_budget(5 * GIB, 2048, GIB) == 4 * 2048
    assert row_budget.measured_budget(2 * GIB, 2048, GIB) == 1.5 * 2048  # half a GiB stays free
    assert row_budget.measured_budget(80 * GIB, 2048, GIB) == row_budget.LONGEST_ROW
    assert row_budget.measured_budget(GIB // 4, 2048, GIB) == row_budget.SMALLEST_ROW
    assert row_budget.measured_budget(10 * GIB, 2000, GIB) % row_budget.BLOCK == 0


def test_a_budget_before_anything_was_measured() -> None:
    layer = (12 * 896 + 4 * 4864) * 4
    recomputed = 3 * GIB // (24 * 896 * 2 + layer) // 128 * 128
    assert recomputed < row_budget.LONGEST_ROW
    assert row_budget.estimated_budget(6 * GIB, QWEN_HALF, True) == recomputed
    assert (
        row_budget.estimated_budget(6 * GIB, QWEN_HALF, False)
        == 3 * GIB // (24 * layer) // 128 * 128
        < row_budget.SMALL_ROW
    )
    assert row_budget.estimated_budget(6 * GIB, QWEN_HALF, "auto") == recomputed  # rows would be short without
    assert row_budget.estimated_budget(20 * GIB, QWEN_HALF, "auto") == 10 * GIB // (24 * layer) // 128 * 128
    assert row_budget.estimated_budget(64 * GIB, QWEN_HALF, True) == row_budget.LONGEST_ROW


def test_recomputation_is_for_rows_that_would_not_fit() -> None:
    """2.9 MB a token: 3000 tokens keep 8.1 GiB."""
    row = Row((), 3000)
    assert row_budget.needs_gradient_checkpointing(13 * GIB, QWEN_HALF, [Row((), 10), row])
    assert not row_budget.needs_gradient_checkpointing(14 * GIB, QWEN_HALF, [row])
    assert not row_budget.needs_gradient_checkpointing(GIB, QWEN_HALF, [])
    budget = row_budget.estimated_budget(20 * GIB, QWEN_HALF, "auto")
    assert not row_budget.needs_gradient_checkpointing(
        19 * GIB, QWEN_HALF, [Row((), budget)]
    )  # rows without come first


def test_a_small_machine_gets_smaller_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" is as much as memory allows; it is said and recorded, and a resume keeps it."""
    series = Series.new(tmp_path)
    monkeypatch.setattr(device, "free_memory", lambda: 2**25)
    settings = ("train.max_steps=6", "train.save_steps=2")
    with steps_watched(dies_in=4):
        done = series.train(*settings, code=130)
    budget = document(series.run(1) / "provenance.json")["tokens_per_row"]
    assert row_budget.SMALLEST_ROW <= budget < 4096
    assert f"packing budget {budget:,} tokens a row" in done.stderr
    monkeypatch.undo()
    assert f"packing budget {budget:,} tokens a row" in series.train(*settings).stderr


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process its peak")
def test_the_peak_of_a_piece_of_work_is_measured() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("measures the card here")
    before = device.reset_peak()
    with mmap.mmap(-1, 256 * 2**20) as block:  # given back at once, which malloc's memory is not
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert 200 * 2**20 < device.peak_memory() - before < 400 * 2**20
    assert device.peak_memory() - device.reset_peak() > 200 * 2**20  # the peak begins anew
    assert device.peak_memory() - device.reset_peak() < 20 * 2**20


def test_the_first_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on rows are as long as the first step's longest one says; a resume cuts them alike."""
    settings = ("train.max_steps=6", "train.save_steps=2")
    estimated = Series.new(tmp_path / "estimated")
    estimated.train(*settings)
    assert document(estimated.run(1) / "provenance.json")["rows_measured"] is None  # its rows are too short to tell

    monkeypatch.setattr(row_budget, "MEASURED_ROW", 1)
    monkeypatch.setattr(row_budget, "SMALLEST_ROW", 1)
    monkeypatch.setattr(row_budget, "BLOCK", 1)
    monkeypatch.setattr(device, "free_memory", lambda: 3 * GIB)
    monkeypatch.setattr(device, "reset_peak", lambda: 0)
    monkeypatch.setattr(device, "peak_memory", lambda: 5 * GIB)  # the longest row took more than twice what is there
    straight, killed = Series.new(tmp_path / "straight"), Series.new(tmp_path / "killed")
    with little_memory(lambda _tokens, _call: False) as rows:
        done = straight.train(*settings)
    found = document(straight.run(1) / "provenance.json")
    budget = rows[0] * int(2.4 * GIB) // (5 * GIB)
    assert found["rows_measured"] == {"step": 2, "tokens_per_row": budget}
    assert f"packing budget now {budget:,} tokens a row ({rows[0]:,} tokens took 5.00 of 3.0 GiB free)" in done.stderr
    assert rows[0] > budget and len(rows) > 6
    with steps_watched(dies_in=4):
        killed.train(*settings, code=130)
    killed.train(*settings)
    assert_same_run(killed.run(1), straight.run(1))
    assert largest_difference(straight.run(1), estimated.run(1)) < 2e-4


def test_what_to_do_about_a_row() -> None:
    several, single = Row((Group(10, (0, 1)),), 3000), Row((Group(0, (7,)),), 3000)
    short = Row((Group(10, (0, 1)),), row_budget.SMALL_ROW)
    assert row_budget.choose_remedy(several, may_checkpoint=True) == "smaller rows"
    assert row_budget.choose_remedy(several, may_checkpoint=False) == "smaller rows"
    assert row_budget.choose_remedy(short, may_checkpoint=True) == "gradient checkpointing"
    assert row_budget.choose_remedy(short, may_checkpoint=False) == "smaller rows"
    assert row_budget.choose_remedy(single, may_checkpoint=True) == "gradient checkpointing"
    assert row_budget.choose_remedy(single, may_checkpoint=False) == "none"


def test_budgets_hold_from_their_moment_on() -> None:
    budgets = RowBudget(4096)
    budgets.cut(7, 1500)
    budgets.cut(9.5, 700)
    assert [budgets.at(moment) for moment in (1, 6.5, 7, 9, 9.5, 10, 99)] == [4096, 4096, 1500, 1500, 700, 700, 700]
    budgets.cut(3, 1000)  # in a replay of earlier steps
    assert [budgets.at(moment) for moment in (2.5, 3, 8, 10)] == [4096, 1000, 1000, 700]
    budgets.measured = 2, 9000
    assert [budgets.at(moment) for moment in (1, 1.5, 2, 7)] == [4096, 4096, 9000, 1000]
    assert (
        RowBudget.read(record := budgets.record("auto", checkpointing=False)) == budgets
        and record.tokens_per_row == 700
    )
    assert RowBudget.read(RowRecord(tokens_per_row=512)) == RowBudget(512)  # a run of an earlier version
