"""A training that diverges is stopped at the first figure that is no finite number, and nothing of that is saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from series import Series, checkpoints, document, history, losses

from fasttune.training.trainer import StepTrainer

SETTINGS = ("train.max_steps=6", "train.save_steps=2", "data.val=val.jsonl", "train.eval_steps=6")


def nan_from(patch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """From this step on the loss, or only its gradient, is NaN."""
    real: Any = StepTrainer.batch_loss

    def batch_loss(trainer: StepTrainer, batch: Any) -> Any:
        loss, hits = real(trainer, batch)
        if trainer.state.global_step + 1 < step or not loss.requires_grad:
            return loss, hits
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss, hits
        return loss * math.nan, hits

    patch.setattr(StepTrainer, "batch_loss", batch_loss)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("logging_steps", [1, 5])
def test_training_stops_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, logging_steps: int
) -> None:
    nan_from(monkeypatch, 3, what)
    series = Series.new(tmp_path)
    done = series.train(*SETTINGS, f"train.logging_steps={logging_steps}", code=1)
    run = series.run(1)
    assert (
        "training diverged: at step 3" in done.stderr
    )  # also at logging_steps 5: the last epoch is logged from its start
    assert "the last good checkpoint is " in done.stderr and "checkpoint-2; nothing after it was saved" in done.stderr
    words = [done.stderr.index(word) for word in ("attention", "dtype", "mask", "learning rate (")]
    assert words == sorted(words)
    assert checkpoints(run) == ["checkpoint-2"] and not (run / "adapter").exists()
    assert not (run.parent / "current").exists() and not list(run.rglob("*.partial"))
    assert all(map(math.isfinite, losses(run)))
    found = json.loads(series("runs", "--json").stdout, parse_constant=pytest.fail)["runs"]
    assert [one["status"] for one in found] == ["stopped"]


def test_nan_in_the_first_step_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan_from(monkeypatch, 1, "loss")
    series = Series.new(tmp_path)
    done = series.train(*SETTINGS, code=1)
    assert "at step 1 loss is nan" in done.stderr and "the base's own weights may be damaged" in done.stderr
    assert series.names() == []


def test_weights_that_are_not_finite_are_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the last step alone is NaN: its checkpoint is not written, nor the adapter."""
    nan_from(monkeypatch, 6, "gradient")
    series = Series.new(tmp_path)
    done = series.train(*SETTINGS, "train.logging_steps=50", code=1)
    assert "training diverged: at step 6" in done.stderr
    assert checkpoints(series.run(1)) == ["checkpoint-4"] or checkpoints(series.run(1))[-1] == "checkpoint-4"
    assert document(series.run(1) / "checkpoints" / "checkpoint-4" / "manifest.json")["step"] == 4
    assert history(series.run(1))[-1]["step"] < 6


def test_a_held_out_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = StepTrainer.score

    def score(trainer: StepTrainer, *arguments: Any, **options: Any) -> tuple[float, float]:
        loss, accuracy = real(trainer, *arguments, **options)
        return (math.inf if options.get("all_ranks") else loss), accuracy

    monkeypatch.setattr(StepTrainer, "score", score)
    series = Series.new(tmp_path)
    done = series.train(*SETTINGS, "train.eval_steps=2", code=1)
    assert "at step 2 eval_loss is inf" in done.stderr
    assert not [line for line in history(series.run(1)) if "eval_loss" in line]
