"""The training loop: memory that runs out never changes a step (E3), a resume lays its rows out as before (E2), and rows
are sized by what the first step took."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Shared
from out_of_memory import NO_CHECKPOINTING, little_memory, steps_watched
from scaled import use_loss_scale
from series import Series, adapter, assert_same_run, checkpoints, document, history, largest_difference, losses, untimed

from fasttune.training import device, gradient_checkpointing, row_budget, train
from fasttune.training import model as models

SETTINGS = ("train.max_steps=6", "train.save_steps=2", "data.val=val.jsonl", "train.eval_steps=2")


@pytest.fixture(scope="module")
def undisturbed(shared: Shared) -> Path:
    return Series(shared("undisturbed", lambda folder: Series.new(folder).train(*SETTINGS))).run(1)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dropout", [0, 0.1])
def test_the_step_is_planned_again_in_smaller_rows(
    shared: Shared, tmp_path: Path, undisturbed: Path, backward: bool, dropout: float
) -> None:
    """Bit for bit the run that began with the smaller budget, dropout's random numbers included; to rounding the run that
    never ran out."""
    settings = (*SETTINGS, *NO_CHECKPOINTING, f"lora.dropout={dropout}")
    series = Series.new(tmp_path / "little")
    with little_memory(lambda tokens, _call: tokens > 60, backward=backward) as rows:
        done = series.train(*settings)
    run = series.run(1)
    found = document(run / "provenance.json")
    budget = found["tokens_per_row"]
    assert max(rows) > 60 >= budget
    assert f"step 1: out of memory in a row of {rows[0]} tokens; packing budget now " in done.stderr
    assert f"packing budget now {budget:,} tokens a row, and the step is computed again" in done.stderr

    smaller = (*settings, f"train.tokens_per_row={budget}")
    small = Series(shared(" ".join(smaller), lambda folder: Series.new(folder).train(*smaller)))
    assert found["rows_cut"][-1]["step"] == 1
    assert adapter(run) == adapter(small.run(1))
    assert untimed(history(run)) == untimed(history(small.run(1)))
    if not dropout:
        assert 0 < largest_difference(run, undisturbed) < 2e-4
        assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_nothing_of_a_failed_attempt_stays(tmp_path: Path) -> None:
    """A later row of the step fails: the gradients of those before it are cleared, or they would count twice."""
    settings = (*SETTINGS, *NO_CHECKPOINTING, "train.batch_size=10", "train.tokens_per_row=130")
    series = Series.new(tmp_path / "little")
    with little_memory(lambda _tokens, call: call == 2) as rows:
        series.train(*settings)
    assert rows[0] != rows[1]
    budget = document(series.run(1) / "provenance.json")["tokens_per_row"]
    assert budget == rows[1] // 2
    small = Series.new(tmp_path / "small")
    small.train(*settings, f"train.tokens_per_row={budget}")
    assert adapter(series.run(1)) == adapter(small.run(1))


def test_evaluation_survives(tmp_path: Path, undisturbed: Path) -> None:
    """Rows without gradient that run out of memory: the held-out loss is the same to rounding, and training continues."""
    import torch

    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60 and not torch.is_grad_enabled()):
        done = series.train(*SETTINGS)
    assert "step 2: out of memory" in done.stderr
    lines, expected = history(series.run(1)), history(undisturbed)
    for key in ("eval_loss", "eval_mean_token_accuracy"):
        values = [line[key] for line in lines if key in line]
        assert values == pytest.approx([line[key] for line in expected if key in line], rel=1e-5) and len(values) == 4
    assert document(series.run(1) / "provenance.json")["rows_cut"][0]["step"] == 2.5


def test_gradient_checkpointing_comes_before_giving_up(tmp_path: Path, undisturbed: Path) -> None:
    """A single sample fits with gradient checkpointing only: "auto" turns it on, and the gradients are the same."""
    import torch

    series = Series.new(tmp_path)
    real: Callable[[Any], None] = gradient_checkpointing.enable
    checkpointed: list[Any] = []

    def enable(model: Any) -> None:
        checkpointed.append(model)
        real(model)

    def keeps_all(_tokens: int, _call: int) -> bool:
        return torch.is_grad_enabled() and not checkpointed

    with little_memory(keeps_all) as rows, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_checkpointing, "enable", enable)
        done = series.train(*SETTINGS)
    (model,) = checkpointed
    assert all(layer.gradient_checkpointing for layer in model.get_base_model().model.layers)
    assert done.stderr.count("gradient checkpointing is now on") == 1 and rows[0] == rows[1]
    assert adapter(series.run(1)) == adapter(undisturbed)
    assert document(series.run(1) / "provenance.json")["gradient_checkpointing"] is True


@pytest.mark.parametrize("limit", [0.05, 0])
def test_gradients_are_clipped_to_a_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """The history has the norm from before; 0 clips nothing."""
    import torch

    from fasttune.training.callbacks import RunCallback

    norms: list[float] = []

    def measure(_self: Any, *_args: Any, model: Any, **_more: Any) -> None:
        gradients = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))

    monkeypatch.setattr(RunCallback, "on_pre_optimizer_step", measure)
    series = Series.new(tmp_path)
    series.train("train.max_steps=2", f"train.max_grad_norm={limit}")
    before = [line["grad_norm"] for line in history(series.run(1)) if "loss" in line]
    assert min(before) > 0.05 and norms == pytest.approx([limit or norm for norm in before], rel=1e-4)


def test_a_step_that_overflows_is_trained_again_and_nothing_else_changes(tmp_path: Path) -> None:
    """With a loss scale as in float16: bit for bit the training without one, the first overflow and the schedule of the
    learning rate included."""
    import torch

    from fasttune.training.trainer import StepTrainer

    settings = ("train.max_steps=4", "train.max_grad_norm=0", "train.warmup_steps=2")
    plain, scaled = Series.new(tmp_path / "plain"), Series.new(tmp_path / "scaled")
    plain.train(*settings)
    real, calls = StepTrainer.train_rows, []

    def overflow_once(trainer: StepTrainer, step: Any) -> Any:
        found = real(trainer, step)
        calls.append(float(trainer.accelerator.scaler.get_scale()))
        if len(calls) == 1:
            trainer.trained_parameters[0].grad = torch.full_like(trainer.trained_parameters[0], torch.inf)
        return found

    started = use_loss_scale()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StepTrainer, "train_rows", overflow_once)
            done = scaled.train(*settings)
    finally:
        started.stop()
    assert calls == [4096, *[2048] * 4] and done.stderr.count("with a loss scale of 2048") == 1
    assert adapter(scaled.run(1)) == adapter(plain.run(1))
    rates = [[line["learning_rate"] for line in history(one.run(1)) if "loss" in line] for one in (scaled, plain)]
    assert rates[0] == rates[1] and losses(scaled.run(1)) == losses(plain.run(1))


# Resuming and continuing --------------------------------------------------------------------------------------------


def train_with_little_memory(series: Series, settings: Sequence[str], training: bool, dies_in: int) -> None:
    """Rows of step 4 run out of memory, or those of the evaluation after it; the process "dies" in a later step."""
    import torch

    def is_too_large(tokens: int, _call: int) -> bool:
        return tokens > 60 and step[-1] == 4 and torch.is_grad_enabled() is training

    with steps_watched(dies_in) as step, little_memory(is_too_large):
        series.train(*settings, code=130 if dies_in else 0)


RESUMED = ("train.max_steps=9", "train.save_steps=3", *SETTINGS[2:], *NO_CHECKPOINTING)


@pytest.fixture(scope="module")
def cut_in_step_4(shared: Shared) -> dict[bool, Path]:
    """The runs of RESUMED that are not killed, by whether memory ran out in training."""

    def make(root: Path) -> None:
        for training in (True, False):
            train_with_little_memory(Series.new(root / str(training)), RESUMED, training, 0)

    return {training: Series(shared("cut in step 4", make) / str(training)).run(1) for training in (True, False)}


@pytest.mark.parametrize("dies_in", [5, 7])
@pytest.mark.parametrize("training", [True, False], ids=["in step 4", "in the evaluation after it"])
def test_a_resume_cuts_its_steps_alike(
    tmp_path: Path, cut_in_step_4: dict[bool, Path], dies_in: int, training: bool
) -> None:
    """E2: out of memory, killed, and run again with memory enough: bit for bit the run that was not killed. Steps and
    evaluations before the cut are replayed with the rows they had, those after it with the smaller ones."""
    straight, killed = cut_in_step_4[training], Series.new(tmp_path)
    train_with_little_memory(killed, RESUMED, training, dies_in)
    cuts = document(straight / "provenance.json")["rows_cut"]
    assert {cut["step"] for cut in cuts} == {4 if training else 4.5}
    # A best evaluation saves a checkpoint as well; only those from before the cut are left to resume from.
    for name in checkpoints(killed.run(1)):
        if int(name.split("-")[1]) >= 4 and dies_in == 5:
            shutil.rmtree(killed.run(1) / "checkpoints" / name)
    assert checkpoints(killed.run(1))
    with steps_watched() as step:
        killed.train(*RESUMED)
    assert step[1] == (4 if dies_in == 5 else 7)
    assert_same_run(killed.run(1), straight)
    assert document(killed.run(1) / "provenance.json")["rows_cut"] == cuts


def test_a_continued_run_begins_with_the_smaller_rows(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    with little_memory(lambda tokens, _call: tokens > 60):
        series.train("train.epochs=1", *NO_CHECKPOINTING)
    budget = document(series.run(1) / "provenance.json")["tokens_per_row"]
    with little_memory(lambda _tokens, _call: False) as rows:
        series.train("train.epochs=1", "continue.add_epochs=1", *NO_CHECKPOINTING, flags="--continue incremental")
    assert document(series.run(2) / "provenance.json")["tokens_per_row"] == budget
    assert max(rows) <= budget


def test_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    """Memory is taken away after step 4: the run ends with a message, and resumes once it is back."""
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


# The measured budget ------------------------------------------------------------------------------------------------


def test_the_first_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on rows are as long as the first step's longest one says; a resume cuts them alike."""
    settings = ("train.max_steps=6", "train.save_steps=2")
    estimated = Series.new(tmp_path / "estimated")
    estimated.train(*settings)
    assert document(estimated.run(1) / "provenance.json")["rows_measured"] is None  # its rows are too short to tell

    monkeypatch.setattr(row_budget, "MEASURED_ROW", 1)
    monkeypatch.setattr(row_budget, "SMALLEST_ROW", 1)
    monkeypatch.setattr(row_budget, "BLOCK", 1)
    monkeypatch.setattr(device, "free_memory", lambda: 3 * row_budget.GIB)
    monkeypatch.setattr(device, "reset_peak", lambda: 0)
    monkeypatch.setattr(
        device, "peak_memory", lambda: 5 * row_budget.GIB
    )  # the longest row took more than twice what is there
    straight, killed = Series.new(tmp_path / "straight"), Series.new(tmp_path / "killed")
    with little_memory(lambda _tokens, _call: False) as rows:
        done = straight.train(*settings)
    found = document(straight.run(1) / "provenance.json")
    budget = rows[0] * int(2.4 * row_budget.GIB) // (5 * row_budget.GIB)
    assert found["rows_measured"] == {"step": 2, "tokens_per_row": budget}
    assert f"packing budget now {budget:,} tokens a row ({rows[0]:,} tokens took 5.00 of 3.0 GiB free)" in done.stderr
    assert rows[0] > budget and len(rows) > 6
    with steps_watched(dies_in=4):
        killed.train(*settings, code=130)
    killed.train(*settings)
    assert_same_run(killed.run(1), straight.run(1))
    assert largest_difference(straight.run(1), estimated.run(1)) < 2e-4


def test_gradient_checkpointing_is_turned_off_where_the_first_step_does_not_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned on by an estimate, off after step 1, and not on again by a resume; the run is the same in every bit."""
    settings = ("train.max_steps=6", "train.save_steps=2")
    without = Series.new(tmp_path / "without")
    without.train(*settings, *NO_CHECKPOINTING)
    for name in ("MEASURED_ROW", "SMALLEST_ROW", "BLOCK"):
        monkeypatch.setattr(row_budget, name, 1)
    monkeypatch.setattr(device, "free_memory", lambda: 3 * row_budget.GIB)
    monkeypatch.setattr(device, "reset_peak", lambda: 0)
    monkeypatch.setattr(device, "peak_memory", lambda: 2**20)
    monkeypatch.setattr(train, "needs_gradient_checkpointing", lambda *_anything: True)
    states: list[bool] = []
    real = models.hidden_states

    def watch(model: Any, batch: Any) -> Any:
        states.append(all(layer.gradient_checkpointing for layer in model.get_base_model().model.layers))
        return real(model, batch)

    monkeypatch.setattr(models, "hidden_states", watch)
    series = Series.new(tmp_path / "with")
    with steps_watched(dies_in=4):
        done = series.train(*settings, code=130)
    assert "gradient checkpointing is off again" in done.stderr
    assert states[0] and not any(states[1:]) and len(states) > 2
    assert document(series.run(1) / "provenance.json")["gradient_checkpointing"] is False
    series.train(*settings)
    assert not any(states[1:])
    assert adapter(series.run(1)) == adapter(without.run(1))
