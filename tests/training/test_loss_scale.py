"""Float16's loss scale: a step whose gradient overflows is trained again. GradScaler runs on a CPU as well."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from fasttune.console import Finding
from fasttune.training import device, divergence, loss_scale
from fasttune.training.loss_scale import compute_without_overflow

LARGEST = 65504.0  # of float16


class Step:
    """A step of one weight whose gradient is `slope`; scaled, it is infinite beyond what float16 holds."""

    def __init__(self, slope: float) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.scaler = GradScaler("cpu", init_scale=2.0**16)
        loss_scale.set_first_scale(self.scaler, torch.device("cpu"))
        self.slope, self.computed = slope, 0
        self.scales: list[float] = []

    def compute(self) -> int:
        self.computed += 1
        self.scaler.scale((self.weight * self.slope).sum()).backward()
        assert self.weight.grad is not None
        self.weight.grad[self.weight.grad.abs() > LARGEST] = torch.inf
        return self.computed

    def train(self) -> int:
        return compute_without_overflow(self.scaler, [self.weight], self.compute, self.scales.append)


def test_a_step_that_overflows_is_computed_again_with_half_the_scale() -> None:
    step = Step(slope=50.0)  # 4096 x 50 and 2048 x 50 are too large, 1024 x 50 is not
    assert step.train() == 3 and step.scales == [2048.0, 1024.0]
    optimizer = torch.optim.SGD([step.weight], lr=1.0)
    step.scaler.step(optimizer)
    step.scaler.update()
    assert step.weight.tolist() == [-50.0] * 3  # the optimizer's step was taken, by the gradient of one attempt
    assert step.scaler.get_scale() == 1024.0


def test_a_step_that_fits_is_computed_once() -> None:
    step = Step(slope=10.0)
    assert step.train() == 1 and step.scales == [] and step.scaler.get_scale() == loss_scale.FIRST_SCALE


def test_a_rank_without_a_row_steps_with_the_others() -> None:
    """It has the gradients of the sum over all ranks, and has scaled no loss itself."""
    step = Step(slope=0.0)
    step.weight.grad = torch.full((3,), 2 * loss_scale.FIRST_SCALE)
    assert compute_without_overflow(step.scaler, [step.weight], lambda: 1, step.scales.append) == 1
    step.scaler.step(torch.optim.SGD([step.weight], lr=1.0))
    step.scaler.update()
    assert step.weight.tolist() == [-2.0] * 3


@pytest.mark.parametrize("slope", [math.nan, 1e6])
def test_a_gradient_that_is_too_large_without_a_scale_ends_the_training(slope: float) -> None:
    """No step is skipped, and nothing is computed for ever: the trainer raises below the smallest scale."""

    def report(scale: float) -> None:
        step.scales.append(scale)
        if scale < loss_scale.SMALLEST_SCALE:
            raise FloatingPointError

    step = Step(slope)
    with pytest.raises(FloatingPointError):
        compute_without_overflow(step.scaler, [step.weight], step.compute, report)
    assert step.scales == [2.0**n for n in range(11, -2, -1)]


def test_the_trainer_raises_below_the_smallest_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says of every other one that the step is trained again, from the same random state."""
    from fasttune.training import trainer

    restored: list[object] = []
    shown: list[Finding] = []
    monkeypatch.setattr(device, "set_random_state", restored.append)
    monkeypatch.setattr(trainer, "show_findings", shown.extend)
    monkeypatch.setattr(divergence, "diverged", lambda name, value, *_more: OverflowError(name, value))
    fake: Any = SimpleNamespace(state=SimpleNamespace(global_step=6), plan=None, run=None)
    trainer.StepTrainer.train_again(fake, [], 512.0)
    assert restored == [[]] and [one.code for one in shown] == ["gradient-overflow"]
    assert shown[0].where == "step 7" and "512" in shown[0].what
    with pytest.raises(OverflowError, match="grad_norm"):
        trainer.StepTrainer.train_again(fake, [], 0.5)


def test_without_a_scaler_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at gradients waits for the device: bfloat16 and float32 need not."""
    monkeypatch.setattr(loss_scale, "overflows", lambda _parameters: pytest.fail("looked at"))
    assert compute_without_overflow(None, [], lambda: 7, lambda _scale: None) == 7


def test_a_checkpoints_scale_is_loaded_after_the_first_one() -> None:
    step, saved = Step(1.0), GradScaler("cpu", init_scale=512.0).state_dict()
    step.scaler.load_state_dict(saved)
    step.compute()
    assert step.scaler.get_scale() == 512.0
