"""The figures of a history line are sums over its steps, and a checkpoint keeps them exactly."""

from __future__ import annotations

import pytest
import torch

from fasttune.training.metrics import MetricsSinceLog
from fasttune.training.packing import Group, Row, Step

CPU = torch.device("cpu")


def step(samples: int, tokens: int, computed: int, supervised: int) -> Step:
    return Step(tuple(range(samples)), (Row((Group(0, (0,)),), computed),), tokens, computed, supervised)


def two_steps() -> MetricsSinceLog:
    metrics = MetricsSinceLog.zero(CPU)
    metrics.add(step(4, 100, 60, 20), torch.tensor(30.0), torch.tensor(5), 2.0)
    metrics.add(step(2, 50, 50, 10), torch.tensor(6.0), torch.tensor(10), 1.0)
    return metrics


def test_figures_weigh_steps_by_their_tokens() -> None:
    """Loss and accuracy are means over supervised tokens, not over steps."""
    figures = two_steps().figures()
    assert figures.pop("memory_gib") > 0
    assert figures == pytest.approx(
        {
            "loss": 36 / 30,
            "mean_token_accuracy": 15 / 30,
            "tokens_per_second": 50,
            "supervised_tokens_per_second": 10,
            "samples_per_second": 2,
            "step_seconds": 1.5,
            "computed_tokens": 110,
        }
    )


def test_a_checkpoint_keeps_the_sums_exactly() -> None:
    """Steps after a resume add up as if nothing had been between, bit for bit."""
    straight, before = two_steps(), two_steps()
    third = torch.tensor(1 / 3)  # no short decimal
    for metrics in (straight, before):
        metrics.add(step(1, 7, 7, 3), third, torch.tensor(1), 0.1)
    document = before.document(tokens_seen=157)
    resumed = MetricsSinceLog.read(document, CPU)
    assert document.tokens_seen == 157 and resumed == straight
    assert resumed.loss.dtype == straight.loss.dtype and resumed.hits.dtype == straight.hits.dtype
    for metrics in (straight, resumed):
        metrics.add(step(1, 7, 7, 3), third, torch.tensor(1), 0.1)
    assert torch.equal(resumed.loss, straight.loss)
