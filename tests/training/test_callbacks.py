"""When a run evaluates, saves and stops, by its log history alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from series import Series, assert_same_run, checkpoints, history

from fasttune.training import callbacks
from fasttune.training.callbacks import RunCallback

# isort: split
from transformers import TrainerControl, TrainerState  # after Unsloth, which patches it


def callback(
    *,
    patience: int = 0,
    loss: float | None = None,
    accuracy: float | None = None,
    start: int = 0,
    held_out: bool = True,
) -> RunCallback:
    """Of a run with 3 steps an epoch that counts from `start`."""
    until = SimpleNamespace(loss=loss, token_accuracy=accuracy)
    plan = SimpleNamespace(
        recipe=SimpleNamespace(
            train=SimpleNamespace(early_stopping_patience=patience, until=until), lora=SimpleNamespace(dropout=0.0)
        ),
        steps_per_epoch=3,
        start=SimpleNamespace(step=start),
        keeps_epochs=False,
        dataset=SimpleNamespace(held_out=("sample",) if held_out else ()),
    )
    trainer: Any = SimpleNamespace(
        plan=plan, is_rank_zero=False, interrupted=False, progress=SimpleNamespace(show=lambda *_: None)
    )
    return RunCallback(trainer)


def trained(losses: list[float], *, accuracy: float = 0.5, max_steps: int = 99) -> TrainerState:
    """The state after a step for each loss, every step logged."""
    lines = [{"step": n, "loss": loss, "mean_token_accuracy": accuracy} for n, loss in enumerate(losses, start=1)]
    return TrainerState(global_step=len(losses), max_steps=max_steps, log_history=lines)


def evaluated(eval_losses: list[float]) -> TrainerState:
    """The state after an evaluation a step."""
    lines = [{"step": n, "eval_loss": loss} for n, loss in enumerate(eval_losses, start=1)]
    return TrainerState(global_step=len(lines), max_steps=99, log_history=lines)


@pytest.mark.parametrize(
    ("losses", "until", "reached"),
    [
        ([1.0, 1.0], 1.0, False),  # no whole epoch
        ([1.0, 1.0, 1.0], 1.0, True),
        ([5.0, 1.0, 1.0, 1.0], 1.0, True),  # the last epoch counts
        ([1.0, 1.0, 1.0, 1.1], 1.0, False),
        ([0.1, 2.0, 0.1, 2.0], 1.0, False),  # one easy step does not end a run
        ([0.1, 0.1, 0.1], None, False),
    ],
)
def test_until_looks_at_the_mean_over_the_last_epoch(losses: list[float], until: float | None, reached: bool) -> None:
    assert callback(loss=until).reached_target(trained(losses)) is reached


def test_until_needs_loss_and_accuracy_where_both_are_set() -> None:
    good, bad = trained([1.0] * 3, accuracy=0.9), trained([1.0] * 3, accuracy=0.7)
    both = callback(loss=1.0, accuracy=0.8)
    assert both.reached_target(good) and not both.reached_target(bad)
    assert callback(accuracy=0.8).reached_target(good) and not callback(accuracy=0.8).reached_target(bad)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_reached_target_evaluates_saves_and_stops(held_out: bool) -> None:
    control, state = TrainerControl(), trained([1.0] * 3)
    callback(loss=1.0, held_out=held_out).on_log(None, state, control, logs=state.log_history[-1])
    assert control.should_save and control.should_training_stop and control.should_evaluate is held_out


@pytest.mark.parametrize(
    ("losses", "saves", "stops"),
    [
        ([3.0], True, False),
        ([3.0, 2.0], True, False),
        ([2.0, 3.0], False, False),
        ([2.0, 3.0, 2.0], True, True),  # as good as the best is not better
        ([3.0, 2.0, 2.5, 2.4], True, True),
    ],
)
def test_early_stopping_waits_for_a_better_loss(losses: list[float], saves: bool, stops: bool) -> None:
    control, state = TrainerControl(), evaluated(losses)
    callback(patience=2).on_evaluate(None, state, control)
    assert (control.should_save, control.should_training_stop) == (saves, stops)
    is_best = losses[-1] < min(losses[:-1], default=9)
    assert (state.best_global_step == len(losses)) is is_best


def test_a_parents_evaluations_do_not_count() -> None:
    """They stand in the log history of a run that continues from a checkpoint."""
    state = evaluated([1.0, 2.0, 3.0])
    assert callback(patience=2).out_of_patience(callback().held_out_losses(state))
    continued = callback(patience=2, start=2)
    assert continued.held_out_losses(state) == [3.0] and not continued.out_of_patience([3.0])


def test_an_interrupt_saves_and_stops_after_the_step() -> None:
    control, each = TrainerControl(), callback()
    each.on_step_end(None, trained([1.0]), control)
    assert not control.should_training_stop
    each.trainer.interrupted = True
    each.on_step_end(None, trained([1.0]), control)
    assert control.should_save and control.should_training_stop


def test_a_run_is_over_by_its_steps_its_patience_or_its_target() -> None:
    assert callback().is_over(trained([1.0, 1.0], max_steps=2))
    assert not callback().is_over(trained([1.0, 1.0], max_steps=3))
    assert callback(patience=1).is_over(evaluated([1.0, 2.0]))
    assert callback(loss=1.0).is_over(trained([1.0] * 3))


@pytest.mark.parametrize(("step", "logs"), [(6, True), (5, False), (9, True), (8, False)])
def test_the_last_epoch_is_logged_however_rare_lines_are(step: int, logs: bool) -> None:
    """3 steps an epoch, 9 in all: the figures of the end are those of steps 7 to 9, never those of step 1."""
    control = TrainerControl()
    callback().on_step_end(None, TrainerState(global_step=step, max_steps=9), control)
    assert control.should_log is logs


def test_a_checkpoint_at_least_every_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    each = callback()
    for passed, saves in ((599.0, False), (600.0, True)):
        control, now[0] = TrainerControl(), 1000.0 + passed
        each.on_step_end(None, trained([1.0]), control)
        assert control.should_save is saves
    each.on_save(None, trained([1.0]), TrainerControl())
    control, now[0] = TrainerControl(), 1700.0
    each.on_step_end(None, trained([1.0]), control)
    assert not control.should_save


def test_saving_by_the_clock_never_changes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2, with dropout: a checkpoint after every step, or one at the end."""
    settings = ("train.max_steps=5", "train.save_steps=5", "train.save_total_limit=9", "lora.dropout=0.1")
    straight, often = Series.new(tmp_path / "straight"), Series.new(tmp_path / "often")
    straight.train(*settings)
    monkeypatch.setattr(callbacks, "SAVE_EVERY", 0.0)
    often.train(*settings)
    assert checkpoints(often.run(1)) == [f"checkpoint-{step}" for step in range(1, 6)]
    assert checkpoints(straight.run(1)) == ["checkpoint-5"]
    assert_same_run(often.run(1), straight.run(1))


def test_the_result_is_not_step_1s(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    series.train("train.max_steps=7", "train.logging_steps=100")
    lines = history(series.run(1))
    assert [line["step"] for line in lines] == [1, 4, 7]
    document = json.loads(series("run", "persona.toml", "--on-existing", "skip", "--json").stdout)
    assert document["epoch_loss"] == lines[-1]["loss"] != lines[0]["loss"]
