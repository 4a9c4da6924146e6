"""Steps in float16 whose gradient overflowed: trained again, with a smaller loss scale. Pure torch.

Float16 ends at 65504, and below 6e-8 it is 0, so the loss is multiplied by a scale and the gradients are divided by it
again (mixed precision training, arXiv 1710.03740, section 3.2). Where a scaled gradient overflows, torch's GradScaler
skips the optimizer's step: those samples would never count (E7), and accelerate does not notice it with a fused
optimizer, so that the schedule would proceed. Here the gradients are looked at before the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.amp.grad_scaler import GradScaler

from fasttune.console import Finding, _

FIRST_SCALE = 2.0**12  # torch's own 2**16 overflows in the first steps of most trainings
SMALLEST_SCALE = 1.0  # what overflows without a scale is a training that diverges
Computed = TypeVar("Computed")


def set_first_scale(scaler: GradScaler | None, device: torch.device) -> None:
    """Let a fresh scaler begin with FIRST_SCALE; a checkpoint's is loaded afterwards.

    A scaler makes its scale when it first scales something, and without it refuses to step: a rank that has no row in
    its first step (distributed.py) would never have scaled anything.
    """
    if scaler is not None:
        scaler.load_state_dict({**scaler.state_dict(), "scale": FIRST_SCALE})
        scaler.scale(torch.zeros((), device=device))


def overflows(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether a gradient has a value that is not finite; waits for the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return bool(gradients) and not all(torch.isfinite(torch.stack(torch._foreach_norm(gradients, torch.inf))).tolist())


def compute_without_overflow(
    scaler: GradScaler | None,
    parameters: Sequence[torch.nn.Parameter],
    compute: Callable[[], Computed],
    report: Callable[[float], None],
) -> Computed:
    """What `compute` returns, which adds a step's gradients to the parameters; computed again with half the scale until
    they are finite. `report` gets each new scale, and has to raise below SMALLEST_SCALE.

    Without a scaler (bfloat16, float32) the gradients are not looked at: divergence.py reads what is logged. After the
    sum over all ranks they are the same on each, so all of them decide alike (E4).
    """
    while True:
        computed = compute()
        if scaler is None or not overflows(parameters):
            return computed
        for parameter in parameters:
            parameter.grad = None
        scale = scaler.get_scale() / 2
        scaler.update(scale)
        report(scale)


def overflow(step: int, scale: float) -> Finding:
    """What is said where a step is trained again."""
    what = _("a gradient was too large for float16; the step is trained again with a loss scale of {scale:g}, and "
             "nothing is lost", scale=scale)  # fmt: skip
    return Finding("gradient-overflow", "info", _("step {step}", step=step), what)
