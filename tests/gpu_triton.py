"""Unsloth's Triton kernels in Triton's interpreter, against torch in float64: part of the child process of
test_gpu_rows.py, which calls `errors` before its stand-ins take the kernels' place.

In float32: Triton 3.6's interpreter gives not-a-number in bfloat16.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

TOKENS = 10


def errors() -> dict[str, float]:
    """Of each kernel the largest relative error of its results and gradients."""
    torch.manual_seed(0)
    found = {"RMSNorm": rms_norm(), "NF4": nf4()}
    for heads in ((14, 2, 64), (12, 2, 128)):
        found[f"RoPE {heads}"] = rope(*heads)
    return found | {"SwiGLU and LoRA, MLP": mlp(), "LoRA, QKV": qkv()}


def worst(found: Any, expected: Any) -> float:
    """The largest |a - b| / |b| of the pairs."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.detach().double() - b.detach()).norm() / b.detach().double().norm()) for a, b in pairs)


def rms_norm() -> float:
    from unsloth.kernels import rms_layernorm

    weight = torch.nn.Parameter(torch.randn(896), requires_grad=False)
    norm, x = SimpleNamespace(weight=weight, variance_epsilon=1e-6), torch.randn(1, TOKENS, 896, requires_grad=True)
    y = rms_layernorm.fast_rms_layernorm(norm, x, save_output=True, reuse_grad=True)
    upstream, exact = torch.randn_like(y), x.detach().double().requires_grad_()
    z = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    (expected,) = torch.autograd.grad(z, exact, upstream.double())
    return worst((y, *torch.autograd.grad(y, x, upstream.clone())), (z, expected))


def rope(heads: int, key_heads: int, width: int) -> float:
    """Rotation at positions that begin anew, as a shared prefix's suffixes do."""
    from unsloth.kernels import rope_embedding

    states = [torch.randn(1, TOKENS, n, width).transpose(1, 2).requires_grad_() for n in (heads, key_heads)]
    angles = torch.outer(torch.arange(64.0), 1e6 ** (-torch.arange(0, width, 2) / width))
    cos, sin = (torch.cat((function(angles),) * 2, -1) for function in (torch.cos, torch.sin))
    positions = torch.tensor([[*range(6), *range(2, 6)]], dtype=torch.int32)
    turned = rope_embedding.fast_rope_embedding(*states, cos, sin, positions)
    upstream = [torch.randn_like(one) for one in turned]
    found = [*turned, *torch.autograd.grad(turned, states, upstream)]
    exact, rows = [one.detach().double().requires_grad_() for one in states], positions[0].long()
    halves = [torch.cat((-one[..., width // 2 :], one[..., : width // 2]), -1) for one in exact]
    expected = [one * cos[rows].double() + half * sin[rows].double() for one, half in zip(exact, halves, strict=True)]
    return worst(found, [*expected, *torch.autograd.grad(expected, exact, [one.double() for one in upstream])])


def nf4() -> float:
    """Against bitsandbytes' own dequantization, which it equals bit for bit: 560 blocks of 64 weights, whose scales are
    three blocks of at most 256, the last one shorter."""
    import bitsandbytes.functional as bitsandbytes
    from unsloth.kernels import nf4 as kernels

    weight = torch.randn(40, 896)
    packed, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    made, scales = torch.empty_like(weight), state.state2
    kernels._launch(
        kernels._nf4_dequant_kernel, packed, state.absmax, scales.code, scales.absmax, state.offset.reshape(1),
        state.code, state.blocksize, scales.blocksize, made, fp_fusion=False,
    )  # fmt: skip
    return float((made - bitsandbytes.dequantize_4bit(packed, state)).abs().max())


def linear(inputs: int, outputs: int) -> tuple[Any, ...]:
    """Weight, no NF4, A, B and scaling of a linear with LoRA."""
    a, b = torch.randn(8, inputs) / inputs**0.5, torch.randn(outputs, 8) * 0.1
    return torch.randn(outputs, inputs) / inputs**0.5, None, a.requires_grad_(), b.requires_grad_(), 2.0


def plain(x: torch.Tensor, part: tuple[Any, ...]) -> torch.Tensor:
    weight, _nf4, a, b, scaling = part
    return x @ weight.double().T + scaling * (x @ a.double().T) @ b.double().T


def mlp() -> float:
    from unsloth.kernels import fast_lora, swiglu

    gate, up, down = linear(64, 192), linear(64, 192), linear(192, 64)
    x, kernels = (
        torch.randn(1, TOKENS, 64, requires_grad=True),
        (swiglu.swiglu_fg_kernel, swiglu.swiglu_DWf_DW_dfg_kernel),
    )
    trained = [one for part in (gate, up, down) for one in part[2:4]]
    exact = x.detach().double().requires_grad_()
    y = fast_lora.LoRA_MLP.apply(x.clone(), *gate, *up, *down, *kernels, True)
    z = plain(torch.nn.functional.silu(plain(exact, gate)) * plain(exact, up), down)
    upstream = torch.randn_like(y)
    expected = torch.autograd.grad(z, (exact, *trained), upstream.double())
    return worst((y, *torch.autograd.grad(y, (x, *trained), upstream)), (z, *expected))


def qkv() -> float:
    from unsloth.kernels import fast_lora

    parts = linear(64, 64), linear(64, 32), linear(64, 32)
    x, trained = torch.randn(1, TOKENS, 64, requires_grad=True), [one for part in parts for one in part[2:4]]
    exact = x.detach().double().requires_grad_()
    ys = fast_lora.LoRA_QKV.apply(x.clone(), *parts[0], *parts[1], *parts[2], True)
    zs = [plain(exact, part) for part in parts]
    upstream = [torch.randn_like(y) for y in ys]
    expected = torch.autograd.grad(zs, (exact, *trained), [one.double() for one in upstream])
    return worst((*ys, *torch.autograd.grad(ys, (x, *trained), upstream)), (*zs, *expected))
