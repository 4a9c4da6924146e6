"""A decoder layer's own arithmetic on a CPU: products, linear with LoRA, feed-forward, norm. Pure torch.

Autograd would be right here too. The backward passes are written by hand because it keeps more than they need (four
tensors of the feed-forward's width a layer instead of two) and takes several passes over memory where one will do. On
a card Unsloth's kernels do all of this.

What this file does not know: packing, Unsloth, PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

Weights = Sequence[Any]  # of a linear with LoRA: W [N, K] and bias [N] or None, frozen, A [r, K] and B [N, r], trained

CACHED_ROWS = 128  # 2.5 MB of the inner width of Qwen2.5 0.5B in float32


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: what sums and exponentials are taken in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def matmul(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows [T, K] times weight [N, K] transposed; each of them dense, or the transpose of a dense one.

    In float32 on a CPU by oneDNN instead of MKL, which torch takes by itself: MKL has no AVX-512 for processors that
    are not Intel's (measured on a Zen 5 with 2 cores: 210 GFLOP/s, oneDNN 480).
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


def lora_forward(rows: torch.Tensor, weights: Weights, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """rows W^T + bias + scaling (rows A^T) B^T, and rows A^T for the backward pass."""
    weight, bias, a, b = weights
    down = matmul(rows, a.to(weight.dtype))
    return matmul(rows, weight, bias).addmm_(down, b.to(weight.dtype).T, alpha=scaling), down


def rows_gradient(upstream: torch.Tensor, up: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Of `lora_forward`, where `up` is the gradient of rows A^T."""
    weight, _bias, a, _b = weights
    return matmul(upstream, weight.T).addmm_(up, a.to(weight.dtype))


def up_gradient(upstream: torch.Tensor, weights: Weights, scaling: float) -> torch.Tensor:
    """Of rows A^T, which `lora_forward` returns beside its result."""
    weight, _bias, _a, b = weights
    return matmul(upstream, b.to(weight.dtype).T).mul_(scaling)


def adapter_gradients(
    upstream: torch.Tensor, up: torch.Tensor, rows: torch.Tensor, down: torch.Tensor, weights: Weights, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of A and B; with the long dimension inside, in the order in which oneDNN is several times faster."""
    _weight, _bias, a, b = weights
    for_a, for_b = matmul(up.T, rows.T), matmul(down.T, upstream.T).T
    return for_a.to(a.dtype), for_b.to(b.dtype).mul(scaling)


def lora_backward(
    upstream: torch.Tensor, rows: torch.Tensor, down: torch.Tensor, weights: Weights, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of rows, A and B."""
    up = up_gradient(upstream, weights, scaling)
    return rows_gradient(upstream, up, weights), *adapter_gradients(upstream, up, rows, down, weights, scaling)


class LoraLinear(torch.autograd.Function):
    """x [..., K] to x W^T + bias + scaling (x A^T) B^T."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scaling: float, *weights: Any) -> torch.Tensor:
        rows = as_rows(x, weights)
        out, down = lora_forward(rows, weights, scaling)
        ctx.save_for_backward(rows, down, *weights)
        ctx.shape, ctx.dtype, ctx.scaling = x.shape, x.dtype, scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, down, *weights = ctx.saved_tensors
        upstream = as_rows(output_gradients[0], weights)
        up = up_gradient(upstream, weights, ctx.scaling)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = rows_gradient(upstream, up, weights).view(ctx.shape).to(ctx.dtype)
        return for_x, None, None, None, *adapter_gradients(upstream, up, rows, down, weights, ctx.scaling)


class LoraMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with three LoRA linears; x [..., K], their weights one after the other.

    Of the four tensors of the inner width that a backward pass needs, only gate and up are kept. The other two are
    computed again in a pass that reads these anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scalings: tuple[float, float, float], *weights: Any) -> torch.Tensor:
        rows = as_rows(x, weights)
        gate, gate_down = lora_forward(rows, weights[:4], scalings[0])
        up, up_down = lora_forward(rows, weights[4:8], scalings[1])
        inner = F.silu(gate).mul_(up)
        out, inner_down = lora_forward(inner, weights[8:], scalings[2])
        ctx.save_for_backward(rows, gate, gate_down, up, up_down, inner_down, *weights)
        ctx.shape, ctx.dtype, ctx.scalings = x.shape, x.dtype, scalings
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, gate, gate_down, up, up_down, inner_down, *weights = ctx.saved_tensors
        gate_weights, up_weights, down_weights = weights[:4], weights[4:8], weights[8:]
        gate_scaling, up_scaling, down_scaling = ctx.scalings
        upstream = as_rows(output_gradients[0], weights)
        for_down = up_gradient(upstream, down_weights, down_scaling)
        inner, for_gate, for_up = gated_backward(rows_gradient(upstream, for_down, down_weights), gate, up)
        last = adapter_gradients(upstream, for_down, inner, inner_down, down_weights, down_scaling)
        for_x, *second = lora_backward(for_up, rows, up_down, up_weights, up_scaling)
        more, *first = lora_backward(for_gate, rows, gate_down, gate_weights, gate_scaling)
        for_x += more
        for_x = for_x.view(ctx.shape).to(ctx.dtype)
        return for_x, None, None, None, *first, None, None, *second, None, None, *last


def as_rows(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """x [..., K] as a matrix of the weights' type."""
    return x.reshape(-1, x.shape[-1]).to(weights[0].dtype)


def gated_backward(
    upstream: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """silu(gate) * up once more, and the gradients of gate and up; `upstream` is overwritten.

    Some rows at a time, so that what several passes read stays in the processor's cache.
    """
    inner, for_up = torch.empty_like(gate), torch.empty_like(up)
    for start in range(0, len(gate), CACHED_ROWS):
        part = slice(start, start + CACHED_ROWS)
        active = F.silu(gate[part])
        torch.mul(active, up[part], out=inner[part])
        torch.mul(active, upstream[part], out=for_up[part])
        through = upstream[part].mul_(up[part])
        torch.ops.aten.silu_backward.grad_input(through, gate[part], grad_input=through)
    return inner, upstream, for_up


class RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, for a frozen weight (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = precise(x)
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * torch.mul(wide, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide = precise(x)
        upstream = precise(output_gradients[0]) * weight
        along = torch.linalg.vecdot(upstream, wide)[..., None]
        for_x = upstream.mul_(scale).addcmul_(wide, along * scale**3, value=-1 / x.shape[-1])
        return for_x.to(x.dtype), None, None
