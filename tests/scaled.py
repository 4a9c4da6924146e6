"""float16's loss scale in a training that needs none, for tests: a real GradScaler, on a CPU, where the Trainer makes none.
A scale that is a power of two changes no bit of a float32 training."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch


def use_loss_scale() -> Any:
    """Patch the Trainer; returns the patch, which is started already."""
    from transformers import Trainer

    make = Trainer.create_accelerator_and_postprocess

    def with_scaler(trainer: Any) -> None:
        from torch.amp.grad_scaler import GradScaler

        make(trainer)
        trainer.accelerator.scaler = GradScaler("cpu")

    started = patch.object(Trainer, "create_accelerator_and_postprocess", with_scaler)
    started.start()
    return started
