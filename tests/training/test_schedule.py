"""The learning rates of a warmup."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from fasttune.training.schedule import warm_up_from_step_one


@pytest.mark.parametrize(
    ("warmup", "total", "expected"),
    [
        (0, 4, [1.0, 0.75, 0.5, 0.25]),
        (1, 1, [0.5]),  # a run of one step trains
        (1, 3, [0.5, 1.0, 0.5]),
        (3, 7, [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]),
        (9, 3, [0.1, 0.2, 0.3]),
    ],
)
def test_no_step_is_taken_at_a_rate_of_0(warmup: int, total: int, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=warmup, num_training_steps=total)
    warm_up_from_step_one(schedule, warmup)
    rates = []
    for _step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == [rates[-1]]
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2.0 * share for share in expected])
