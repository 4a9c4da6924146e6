"""Gradient checkpointing of a loaded model: turned on where memory ran out, off where it was not needed, and whether it
pays to keep the layers' inputs in the computer's memory."""

from __future__ import annotations

from typing import Any

from fasttune.training import device
from fasttune.training.model import import_unsloth
from fasttune.training.row_budget import MemoryShape

OFFLOADED_SHARE = 0.1  # of the GPU's memory that the layers' inputs have to take


def enable(model: Any) -> None:
    """Turn gradient checkpointing on in a model that was set up without it (see `model.add_lora`)."""
    if device.device_type() == "cpu":
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    model.enable_input_require_grads()
    import_unsloth().for_training(model, use_gradient_checkpointing=True)


def disable(model: Any) -> None:
    """Turn it off again."""
    if device.device_type() == "cpu":
        model.get_base_model().gradient_checkpointing_disable()
        return
    import_unsloth().for_training(model, use_gradient_checkpointing=False)


def pays_to_offload(shape: MemoryShape, tokens: int, gpu_bytes: int) -> bool:
    """Whether Unsloth's kind of it, which copies each layer's input to pinned memory of the computer and back, is worth
    its copies for rows of so many tokens on a GPU with `gpu_bytes` of memory (0: there is none).

    Qwen2.5 0.5B keeps 176 MB for 4,096 tokens: nothing beside the weights of most GPUs, while under WSL2 pinned memory
    is scarce, and copies to other memory hold the computer up in every layer.
    """
    return 0 < OFFLOADED_SHARE * gpu_bytes < tokens * shape.input_bytes()
