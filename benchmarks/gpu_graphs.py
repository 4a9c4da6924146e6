"""Rows as CUDA graphs, for gpu_first.py: are they recorded, are they exact, what do they save, and what is left after a
recording that fails."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from fasttune.data.tokenize import Example
from fasttune.training import cuda_graphs, device, engine, packing, prefix_check
from fasttune.training import model as models
from fasttune.training.step_watch import StepWatch

ROW = 10**6  # tokens: all samples in one row
Found = tuple[torch.Tensor, list[torch.Tensor]]
Times = Callable[[Callable[[], Any]], tuple[float, float]]


class Steps:
    """Steps of one row each, as trainer.py computes them; what graphs say of themselves is kept in `said`."""

    def __init__(self, model: Any, samples: Sequence[Sequence[Example]]) -> None:
        self.model, self.samples, self.said = model, samples, list[str]()
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.trainer = self.stand_in()
        self.graphs = cuda_graphs.RowGraphs(self.trainer)

    def stand_in(self) -> Any:
        """What graphs need of a trainer."""
        return SimpleNamespace(
            model=self.model, trained_parameters=self.weights, batch_loss=self.batch_loss, examples=self.samples[0],
            gradient_checkpointing=False, step_watch=StepWatch(),
            is_rank_zero=False,
            args=SimpleNamespace(device=torch.device(device.device_type())),
            plan=SimpleNamespace(recipe=SimpleNamespace(
                train=SimpleNamespace(cuda_graphs=True), lora=SimpleNamespace(dropout=0.0))),
            accelerator=SimpleNamespace(autocast=self.autocast, backward=lambda loss: loss.backward()),
        )  # fmt: skip

    def autocast(self, handler: Any = None) -> Any:
        """bfloat16 on a GPU."""
        name = device.device_type()
        return torch.autocast(name, torch.bfloat16, enabled=name == "cuda", cache_enabled=handler is None)

    def batch_loss(self, batch: engine.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and hits of a row."""
        batch = batch.to(self.trainer.args.device)
        with self.autocast():
            return engine.loss(models.hidden_states(self.model, batch), models.lm_head_weight(self.model), batch)

    def step(self, number: int, *, eagerly: bool = False) -> Found:
        """Loss and gradients of a step's row, by its graph where there is one."""
        self.trainer.examples = examples = self.samples[number % len(self.samples)]
        planned = packing.plan_step(examples, range(len(examples)), ROW)
        (row,) = planned.rows
        models.drop_gradients(self.model)
        if eagerly:
            batch = engine.collate(row, examples)
            loss, _hits = cuda_graphs.compute_eagerly(self.trainer, batch, planned.supervised)
        else:
            with patch.object(cuda_graphs, "show_findings", lambda findings: self.said.extend(map(str, findings))):
                loss, _hits = self.graphs.train_row(row, planned.supervised)
                self.graphs.end_step()
        return loss, [weight.grad for weight in self.weights if weight.grad is not None]

    def difference(self, number: int) -> dict[str, float]:
        """How far a replayed row is from the row itself. Raises ArithmeticError beyond the check's tolerance."""
        loss, gradients = self.step(number)
        found = loss, [one.clone() for one in gradients]
        difference = prefix_check.relative_difference(found, self.step(number, eagerly=True))
        if self.graphs.state != "on" or not difference.within(prefix_check.TOLERANCE[torch.bfloat16]):
            raise ArithmeticError(f"graphs: {self.graphs.state}, {difference}, {self.said}")
        return {key: float(f"{value:.2e}") for key, value in dataclasses.asdict(difference).items()}


def graph_row(model: Any, samples: Sequence[Sequence[Example]], times: Times) -> dict[str, Any]:
    """Differences of a replayed row before and after the weights change, seconds to record, milliseconds with and
    without the graph, and the memory that it holds."""
    steps = Steps(model, samples)
    before = reserved()
    for number in range(2):
        steps.step(number)
    begun = time.monotonic()
    steps.step(2)  # recorded here, and its first row compared
    recorded = time.monotonic() - begun
    steps.step(3)
    fresh = steps.difference(4)
    steps.step(5)
    torch.optim.AdamW(steps.weights, lr=1e-2).step()
    later = steps.difference(6)
    for number in (7, 8, 9):  # the graph's eighth row is compared, those up to the fifteenth are not
        steps.step(number)
    replayed = times(lambda: steps.step(2))
    eager = times(lambda: steps.step(2, eagerly=True))
    return {
        "differences": [fresh, later], "record_seconds": round(recorded, 2),
        "gib": round((reserved() - before) / 2**30, 2), "graph_host_whole_ms": replayed,
        "eager_host_whole_ms": eager,
    }  # fmt: skip


def reserved() -> int:
    """Bytes that torch has reserved on the GPU, 0 without one."""
    return torch.cuda.memory_reserved() if device.device_type() == "cuda" else 0


def failed_recording(model: Any, samples: Sequence[Sequence[Example]]) -> dict[str, Any]:
    """A recording that waits for the GPU, which is refused; afterwards rows and the random state have to work."""
    steps, real = Steps(model, samples), models.hidden_states

    def waits(model: Any, batch: engine.Batch) -> torch.Tensor:
        batch.input_ids.max().item()
        return real(model, batch)

    with patch.object(models, "hidden_states", waits):
        for number in range(3):
            steps.step(number)
    if steps.graphs.state != "off" or not steps.said:
        raise ArithmeticError(f"a recording that waits was not refused: {steps.graphs.state}")
    device.set_random_state(device.random_state())
    loss, gradients = steps.step(3)
    if not all(bool(one.isfinite().all()) for one in [loss, *gradients]):
        raise ArithmeticError("rows are not finite after a recording that failed")
    return {"said": steps.said[-1][:300]}
