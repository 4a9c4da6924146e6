"""A linear layer with LoRA as PEFT keeps it: whether it is a plain one, its weights and its scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def is_plain_lora(layer: Any) -> bool:
    """Whether a PEFT linear computes its base layer plus one adapter: enabled, not merged, without dropout."""
    import torch

    (name,) = layer.active_adapters
    return not (layer.disable_adapters or layer.merged) and isinstance(layer.lora_dropout[name], torch.nn.Identity)


def lora_weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """W [N, K] and bias [N] or None of a PEFT linear's base layer, A [r, K] and B [N, r] of its one adapter."""
    (name,), base = layer.active_adapters, layer.get_base_layer()
    return base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight


def lora_scaling(layer: Any) -> float:
    """The factor of the adapter's product, alpha / r."""
    (name,) = layer.active_adapters
    return float(layer.scaling[name])
