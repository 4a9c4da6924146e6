"""Float16's loss scale: a step whose gradient overflows is trained again. GradScaler runs on a CPU as well."""

from __future__ import annotations

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from fasttune.training import loss_scale
from fasttune.training.loss_scale import compute_without_overflow

LARGEST = 65504.0  # of float16


class Step:
    """A step of one weight whose gradient is `slope`; scaled, it is infinite beyond what float16 holds."""

    def __init__(self, slope: float) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.scaler = GradScaler("cpu", init_scale=2.0**16)
        loss_scale.set_first_scale(self.scaler)
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


def test_a_gradient_that_is_not_finite_without_a_scale_is_left_as_it_is() -> None:
    """divergence.py ends such a training; this must not compute for ever."""
    step = Step(slope=torch.nan)
    step.train()
    assert step.scales == [2.0**n for n in range(11, -1, -1)]
    assert step.weight.grad is not None and bool(step.weight.grad.isnan().all())


def test_without_a_scaler_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at gradients waits for the device: bfloat16 and float32 need not."""
    monkeypatch.setattr(loss_scale, "overflows", lambda _parameters: pytest.fail("looked at"))
    assert compute_without_overflow(None, [], lambda: 7, lambda _scale: None) == 7


def test_a_checkpoints_scale_is_loaded_after_the_first_one() -> None:
    step, saved = Step(1.0), GradScaler("cpu", init_scale=512.0).state_dict()
    step.scaler.load_state_dict(saved)
    step.compute()
    assert step.scaler.get_scale() == 512.0
