"""A decoder layer's own arithmetic on a CPU: matrix products, linear with LoRA, feed-forward, norm. Pure torch.

Autograd computes the same. The backward passes are written by hand because autograd keeps more than they need (four
tensors of the feed-forward's width a layer instead of two) and passes several times over memory where once will do. On
a GPU Unsloth's kernels do all of this.

Names: x is the input, h = x A^T its projection to LoRA's rank, y the output; grad_t is the gradient of the loss with
respect to t. Letters of shapes: T tokens, K inputs, N outputs, r LoRA rank. This file does not know packing, Unsloth or
PEFT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

# Of a linear layer with LoRA: W [N, K] and bias [N] or None, both frozen, A [r, K] and B [N, r], both trained.
LoraWeights = Sequence[Any]

HAS_ONEDNN = torch.backends.mkldnn.is_available()  # asked at every product: 2 % of a small model's training
IS_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkl.is_available()
NEVER = sys.maxsize
MKL_FROM = 65 if IS_AVX2 else NEVER  # the smallest dimension of a product that is left to MKL
CACHED_ROWS = 128  # 2.5 MB of the feed-forward's width of Qwen2.5 0.5B in float32


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 or float64, for sums and exponentials."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]; each matrix dense or the transpose of a dense one.

    In float32 on a CPU by whichever of torch's two libraries is faster. MKL has no AVX-512 for processors that are not
    Intel's (measured on a Zen 5 with 2 cores: 210 GFLOP/s, oneDNN 480). With AVX2 alone it is the faster one, most of
    all for x times a matrix that is not transposed, as every backward pass has it (one core of a Zen 3: 87 GFLOP/s,
    oneDNN 57), except where one side is as thin as LoRA's rank or a head (43, oneDNN 74).
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and HAS_ONEDNN and min(*x.shape, len(weight)) < MKL_FROM:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def lora_forward(x: torch.Tensor, weights: LoraWeights, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x W^T + bias + scaling h B^T, and h = x A^T for the backward pass."""
    weight, bias, a, b = weights
    h = matmul(x, a.to(weight.dtype))
    return matmul(x, weight, bias).addmm_(h, b.to(weight.dtype).T, alpha=scaling), h


def input_gradient(grad_y: torch.Tensor, grad_h: torch.Tensor, weights: LoraWeights) -> torch.Tensor:
    """grad_x = grad_y W + grad_h A."""
    weight, _bias, a, _b = weights
    return matmul(grad_y, weight.T).addmm_(grad_h, a.to(weight.dtype))


def projection_gradient(grad_y: torch.Tensor, weights: LoraWeights, scaling: float) -> torch.Tensor:
    """grad_h = scaling grad_y B."""
    weight, _bias, _a, b = weights
    return matmul(grad_y, b.to(weight.dtype).T).mul_(scaling)


def adapter_gradients(
    grad_y: torch.Tensor, grad_h: torch.Tensor, x: torch.Tensor, h: torch.Tensor, weights: LoraWeights, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """grad_A = grad_h^T x and grad_B = scaling grad_y^T h, as products whose inner dimension is T: in this order oneDNN
    is several times faster."""
    _weight, _bias, a, b = weights
    grad_a, grad_b = matmul(grad_h.T, x.T), matmul(h.T, grad_y.T).T
    return grad_a.to(a.dtype), grad_b.to(b.dtype).mul(scaling)


def lora_backward(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, weights: LoraWeights, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, A and B."""
    grad_h = projection_gradient(grad_y, weights, scaling)
    return input_gradient(grad_y, grad_h, weights), *adapter_gradients(grad_y, grad_h, x, h, weights, scaling)


class LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + scaling (x A^T) B^T; x [..., K], y [..., N]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scaling: float, *weights: Any) -> torch.Tensor:
        rows = flatten_tokens(x, weights)
        y, h = lora_forward(rows, weights, scaling)
        ctx.save_for_backward(rows, h, *weights)
        ctx.shape, ctx.dtype, ctx.scaling = x.shape, x.dtype, scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, h, *weights = ctx.saved_tensors
        grad_y = flatten_tokens(output_gradients[0], weights)
        grad_h = projection_gradient(grad_y, weights, ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = input_gradient(grad_y, grad_h, weights).view(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, None, *adapter_gradients(grad_y, grad_h, rows, h, weights, ctx.scaling)


class LoraMlp(torch.autograd.Function):
    """y = down(silu(gate(x)) * up(x)) of three LoRA linears; x and y [..., K]. `weights` are those of gate, up and
    down, four each.

    Of the four tensors of the feed-forward's width that a backward pass needs, only gate(x) and up(x) are kept. The
    other two, silu(gate(x)) and the product, are computed again while these are read.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scalings: tuple[float, float, float], *weights: Any) -> torch.Tensor:
        rows = flatten_tokens(x, weights)
        gate, gate_h = lora_forward(rows, weights[:4], scalings[0])
        up, up_h = lora_forward(rows, weights[4:8], scalings[1])
        inner = F.silu(gate).mul_(up)
        y, down_h = lora_forward(inner, weights[8:], scalings[2])
        ctx.save_for_backward(rows, gate, gate_h, up, up_h, down_h, *weights)
        ctx.shape, ctx.dtype, ctx.scalings = x.shape, x.dtype, scalings
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, gate, gate_h, up, up_h, down_h, *weights = ctx.saved_tensors
        gate_weights, up_weights, down_weights = weights[:4], weights[4:8], weights[8:]
        gate_scaling, up_scaling, down_scaling = ctx.scalings
        grad_y = flatten_tokens(output_gradients[0], weights)
        grad_h = projection_gradient(grad_y, down_weights, down_scaling)
        inner, grad_gate, grad_up = gated_backward(input_gradient(grad_y, grad_h, down_weights), gate, up)
        of_down = adapter_gradients(grad_y, grad_h, inner, down_h, down_weights, down_scaling)
        grad_x, *of_up = lora_backward(grad_up, rows, up_h, up_weights, up_scaling)
        through_gate, *of_gate = lora_backward(grad_gate, rows, gate_h, gate_weights, gate_scaling)
        grad_x += through_gate
        grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, None, *of_gate, None, None, *of_up, None, None, *of_down


def flatten_tokens(x: torch.Tensor, weights: LoraWeights) -> torch.Tensor:
    """x [..., K] as a matrix [T, K] of the base weight's type."""
    return x.reshape(-1, x.shape[-1]).to(weights[0].dtype)


def gated_backward(
    grad_inner: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """inner = silu(gate) * up once more, and the gradients of gate and up; `grad_inner` is overwritten.

        grad_up = silu(gate) * grad_inner        grad_gate = silu'(gate) * up * grad_inner

    CACHED_ROWS rows at a time, so that what several passes read stays in the processor's cache.
    """
    inner, grad_up = torch.empty_like(gate), torch.empty_like(up)
    for start in range(0, len(gate), CACHED_ROWS):
        part = slice(start, start + CACHED_ROWS)
        activation = F.silu(gate[part])
        torch.mul(activation, up[part], out=inner[part])
        torch.mul(activation, grad_inner[part], out=grad_up[part])
        grad_activation = grad_inner[part].mul_(up[part])
        torch.ops.aten.silu_backward.grad_input(grad_activation, gate[part], grad_input=grad_activation)
    return inner, grad_inner, grad_up


class RmsNorm(torch.autograd.Function):
    """y = weight * x s with s = 1 / sqrt(mean(x^2) + epsilon), over the last dimension [K] (arXiv 1910.07467).

    The weight is frozen. With g = weight * grad_y: grad_x = s g - x s^3 (g . x) / K.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = at_least_float32(x)
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * torch.mul(wide, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide = at_least_float32(x)
        g = at_least_float32(output_gradients[0]) * weight
        dot = torch.linalg.vecdot(g, wide)[..., None]
        grad_x = g.mul_(scale).addcmul_(wide, dot * scale**3, value=-1 / x.shape[-1])
        return grad_x.to(x.dtype), None, None
