"""Rows as CUDA graphs: the same training to rounding; a wrong graph, memory that runs out and what can't be recorded are
noticed, and then the training is the one without graphs, bit for bit. The graphs are stood in for (graph_stand_in.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import Shared
from graph_stand_in import cuda_graphs_here
from out_of_memory import NO_CHECKPOINTING, little_memory, steps_watched
from series import Series, adapter, document, largest_difference, losses

from fasttune.training import cuda_graphs, engine
from fasttune.training import model as models

SETTINGS = (
    "train.max_steps=10",
    "train.learning_rate=2e-4",
    "train.tokens_per_row=80",
    *NO_CHECKPOINTING,
)  # 2 or 3 rows a step
GRAPHS = (*SETTINGS, "train.cuda_graphs=true")
OFF = "rows are computed without CUDA graphs; the result is the same"

pytestmark = pytest.mark.usefixtures("one_layer_base")


@pytest.fixture(scope="module")
def plain(shared: Shared) -> Path:
    return Series(shared("without graphs", lambda folder: Series.new(folder).train(*SETTINGS))).run(1)


def kept(series: Series) -> str:
    """What provenance.json says of the rows."""
    found: str = document(series.run(1) / "provenance.json")["cuda_graphs"]
    return found


def test_graphs_train_the_same(tmp_path: Path, plain: Path) -> None:
    series = Series.new(tmp_path)
    with cuda_graphs_here() as graphs:
        done = series.train(*GRAPHS)
    assert OFF not in done.stderr and graphs.replays >= 5 and len(graphs.made) >= 2
    assert kept(series) == "on" and document(plain / "provenance.json")["cuda_graphs"] == ""
    assert losses(series.run(1)) == pytest.approx(losses(plain), rel=1e-5)
    assert 0 < largest_difference(series.run(1), plain) < 2e-5


def test_a_wrong_graph_is_noticed_at_its_first_row(tmp_path: Path, plain: Path) -> None:
    """One operator stays as it was when the graph was recorded, on a row of padding: the rotary embedding's sines."""
    series = Series.new(tmp_path)
    with cuda_graphs_here(leave_out="sin") as graphs:
        done = series.train(*GRAPHS)
    assert done.stderr.count(OFF) == 1 and "a row's graph gave another loss or gradient" in done.stderr
    assert graphs.replays == 1 and kept(series) == "off"
    assert adapter(series.run(1)) == adapter(plain)


def test_a_graph_that_goes_wrong_later_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third row on it no longer gets its token ids; the second and the fourth row are compared."""
    real = cuda_graphs.inputs_of

    def inputs_of(batch: engine.Batch) -> list[torch.Tensor]:
        found = real(batch)
        return found if graphs.replays < 2 else [torch.zeros_like(found[0]), *found[1:]]

    monkeypatch.setattr(cuda_graphs, "inputs_of", inputs_of)
    monkeypatch.setattr(cuda_graphs, "MOST_BUCKETS", 1)
    series = Series.new(tmp_path)
    with cuda_graphs_here() as graphs:
        done = series.train(*GRAPHS)
    assert "a row's graph gave another loss or gradient" in done.stderr and graphs.replays == 4


FAILURES = {
    "memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory ran out while a graph"),
    "else": (RuntimeError("CUDA error: unspecified launch failure\nmore"), "recorded: CUDA error: unspecified launch failure\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_recorded_is_computed_without(tmp_path: Path, plain: Path, name: str) -> None:
    problem, text = FAILURES[name]
    series = Series.new(tmp_path)
    with cuda_graphs_here(problem=problem) as graphs:
        done = series.train(*GRAPHS)
    assert done.stderr.count(OFF) == 1 and text in done.stderr
    assert graphs.made == [] and adapter(series.run(1)) == adapter(plain)


def test_a_row_that_waits_for_the_gpu_is_computed_without(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = models.hidden_states

    def hidden_states(model: Any, batch: engine.Batch) -> torch.Tensor:
        batch.position_ids.max().item()
        return real(model, batch)

    monkeypatch.setattr(models, "hidden_states", hidden_states)
    series = Series.new(tmp_path)
    with cuda_graphs_here() as graphs:
        done = series.train(*GRAPHS)
    assert "operation not permitted when stream is capturing" in done.stderr and graphs.made == []
    assert adapter(series.run(1)) == adapter(plain)


READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tolist": lambda one: one.tolist(), "cpu": lambda one: one.cpu(), "to": lambda one: one.to("cpu"),
    "numpy": lambda one: one.numpy(), "array": numpy.asarray, "bool": bool, "float": float, "loop": list,
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_recording_reads_no_tensor_on_the_host(name: str) -> None:
    """On a CPU most of these call no operator; the stand-in for a graph has to see them all the same."""
    with cuda_graphs_here() as graphs, pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        graphs.capture(lambda: READS[name](torch.ones(1)), None)
    assert READS[name](torch.ones(1)) is not None


def test_memory_that_runs_out_later_takes_the_graphs_first(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a row that is computed without a graph after some were: its step is computed again in the same rows."""
    monkeypatch.setattr(cuda_graphs, "MOST_BUCKETS", 1)
    failed: list[int] = []

    def runs_out(_tokens: int, call: int) -> bool:
        if graphs.replays != 4 or failed:
            return False
        failed.append(call)
        return True

    series = Series.new(tmp_path)
    with cuda_graphs_here() as graphs, little_memory(runs_out) as rows:
        done = series.train(*GRAPHS)
    assert done.stderr.count(OFF) == 1 and "a row ran out of memory, and the graphs held some" in done.stderr
    assert "packing budget now" not in done.stderr and graphs.replays == 4 and len(rows) > failed[0]
    assert losses(series.run(1)) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize(
    ("launched", "done", "text"), [(0.070, 0.072, "the GPU waited"), (0.030, 0.072, "is busy without")]
)
def test_auto_goes_by_the_first_rows_times(tmp_path: Path, launched: float, done: float, text: str) -> None:
    series = Series.new(tmp_path)
    with cuda_graphs_here(seconds=(launched, done)) as graphs:
        shown = series.train(*SETTINGS, "train.cuda_graphs=auto").stderr
    assert f"launching one took {launched * 1e3:.0f} of its 72 ms" in shown and text in shown
    assert bool(graphs.made) == (text == "the GPU waited")
    assert kept(series) == ("on" if graphs.made else "off")
    assert (text in document(series.run(1) / "provenance.json")["cuda_graphs_off"]) == (not graphs.made)


CANNOT = {
    "lora.dropout=0.1": "lora.dropout draws random numbers",
    "train.gradient_checkpointing=true": "with gradient checkpointing",
}


@pytest.mark.parametrize("setting", CANNOT)
def test_what_no_graph_may_do(tmp_path: Path, setting: str) -> None:
    series = Series.new(tmp_path)
    with cuda_graphs_here() as graphs:
        done = series.train("train.max_steps=4", setting, "train.cuda_graphs=true")
    assert OFF in done.stderr and CANNOT[setting] in done.stderr and graphs.made == []
    assert CANNOT[setting] in document(series.run(1) / "provenance.json")["cuda_graphs_off"]


def test_without_a_gpu_the_setting_has_no_effect(tmp_path: Path, plain: Path) -> None:
    for name in ("true", "auto"):
        series = Series.new(tmp_path / name)
        done = series.train(*SETTINGS, f"train.cuda_graphs={name}")
        assert ("there is no GPU" in done.stderr) == (name == "true")
        assert adapter(series.run(1)) == adapter(plain)


def test_a_stopped_run_resumes(tmp_path: Path) -> None:
    """In the same mode; which rows are graphs depends on when the process began, so to rounding."""
    whole, stopped = Series.new(tmp_path / "whole"), Series.new(tmp_path / "stopped")
    settings = (*GRAPHS, "train.save_steps=5")
    with cuda_graphs_here() as graphs:
        whole.train(*settings)
        with steps_watched(dies_in=8):
            stopped.train(*settings, code=130)
        before = graphs.replays
        done = stopped.train(*settings)
    assert "resuming at step" in done.stderr and graphs.replays > before
    assert losses(stopped.run(1)) == pytest.approx(losses(whole.run(1)), rel=1e-5)


def test_weights_that_moved_get_new_graphs() -> None:
    weights = [torch.zeros(3), torch.zeros(2)]
    memory = cuda_graphs.Memory(weights, weights, weights, None)
    assert memory.is_of(weights, weights)
    assert not memory.is_of([weights[0].clone(), weights[1]], weights) and not memory.is_of(weights, weights[:1])


def test_gradients_add_up_and_are_no_buffers() -> None:
    weight, buffer = torch.zeros(3, requires_grad=True), torch.ones(3)
    memory = cuda_graphs.Memory([weight], [weight], [buffer], None)
    memory.add_gradients()
    buffer.fill_(2)
    memory.add_gradients()
    assert weight.grad is not None and weight.grad.tolist() == [3, 3, 3]


def test_no_gradient_is_nothing_to_compare() -> None:
    loss, one = torch.tensor(2.0), [torch.ones(3)]
    assert cuda_graphs.difference_of((loss, one), (loss, [torch.zeros(3)]), 2) is None
    assert cuda_graphs.difference_of((loss, one), (loss, [torch.full((3,), torch.inf)]), 2) is None
    found = cuda_graphs.difference_of((loss, [torch.full((3,), torch.nan)]), (loss, one), 2)
    assert found is not None and not found.within(1)
    small = cuda_graphs.difference_of((loss * 0 + 1e-7, one), (loss * 0 + 2e-7, one), 2)
    assert small is not None and small.within(1e-6)  # both as good as learned
