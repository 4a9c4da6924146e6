"""What a process measures: the time of its steps, its peak memory, and how fast the machine multiplies matrices.

Times are taken by hooks that every engine passes (the first forward pass of a model, each step of an optimizer), so
that no engine's own clock is trusted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from fasttune.bench.flops import layer_shapes
from fasttune.bench.jobs import MatmulRates
from fasttune.training import device

GIB = 1024**3
MATMUL_ROWS = {"cpu": 4096, "cuda": 16384}  # tokens of the products that the machine's limit is measured with
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Clock:
    """When the first forward pass began and in which type, when each optimizer step ended, and the peak memory then.

    `first_forward` and `step_ends` are time.monotonic() in seconds; `memory` is in GiB.
    """

    first_forward: float = math.nan
    precision: str = ""
    step_ends: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Register hooks for the first forward pass of a transformers model and for every optimizer step."""
        from transformers import PreTrainedModel

        def before_forward(module: Any, _inputs: Any) -> None:
            if isinstance(module, PreTrainedModel):
                self.first_forward = time.monotonic()
                self.precision = str(module.get_input_embeddings().weight.dtype).removeprefix("torch.")
                handle.remove()

        def after_step(*_arguments: Any) -> None:
            if device.device_type() == "cuda":
                torch.cuda.synchronize()
            self.step_ends.append(time.monotonic())
            self.memory = peak_memory()

        handle = torch.nn.modules.module.register_module_forward_pre_hook(before_forward)
        register_optimizer_step_post_hook(after_step)

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step since the end of the step before it; the first begins with the first forward pass."""
        begins = [self.first_forward, *self.step_ends]
        return [end - begin for begin, end in zip(begins, self.step_ends, strict=False)]


def peak_memory() -> dict[str, float]:
    """GiB at the peak: reserved and allocated on a GPU, else resident."""
    if device.device_type() == "cuda":
        allocated = torch.cuda.max_memory_allocated()
        return {"reserved_gib": device.used_memory() / GIB, "allocated_gib": allocated / GIB}
    return {"rss_gib": device.used_memory() / GIB}


def matmul_rates(base: Path, dtype: torch.dtype) -> MatmulRates:
    """GFLOP/s of products of the shapes of the base's layers, by each way torch has for them; the best of three calls.

    On processors that are not Intel's, the float32 product of F.linear (MKL) can be half as fast as oneDNN's.
    """
    kind, rates, shapes = device.device_type(), {}, layer_shapes(base)
    for inputs, outputs in (shapes[name] for name in ("o_proj", "up_proj", "down_proj")):
        rows = torch.randn(MATMUL_ROWS[kind], inputs, device=kind).to(dtype)
        weight = torch.randn(outputs, inputs, device=kind).to(dtype)
        for name, product in products(kind).items():
            best = min(call_seconds(product, rows, weight) for _turn in range(3))
            rates[f"{name} {inputs} to {outputs}"] = 2 * MATMUL_ROWS[kind] * inputs * outputs / best / 1e9
    return rates


def products(device_type: str) -> dict[str, Product]:
    """How torch multiplies rows of shape (tokens, inputs) by a weight of shape (outputs, inputs), by name."""
    known: dict[str, Product] = {"F.linear": torch.nn.functional.linear}
    if device_type == "cpu" and torch.backends.mkldnn.is_available():
        known["oneDNN"] = lambda rows, weight: torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return known


def call_seconds(product: Product, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Seconds that one call takes, the device's work included."""
    begin = time.monotonic()
    product(rows, weight)
    if device.device_type() == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - begin
