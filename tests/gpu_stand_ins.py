"""fasttune's GPU path over Unsloth's GPU model (gpu_model.py) on a CPU, with the five Triton kernels written in torch.
For a process of its own: Unsloth is patched for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_model
import torch


def install() -> None:
    """Load Unsloth's GPU back end; `fasttune` then takes the path of a GPU: `device.device_type()` says so."""
    from fasttune.training import device

    torch.set_num_threads(1)
    fast_language_model = gpu_model.import_unsloth()
    device.device_type = lambda: "cuda"
    load = fast_language_model.from_pretrained
    fast_language_model.from_pretrained = lambda **named: load(**named, device_map={"": "cpu"})


def use_kernels(around: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put the kernels below in the place of Triton's, each as `around(name, kernel)`."""
    from unsloth.kernels import fast_lora, rms_layernorm, rope_embedding

    rms_layernorm._rms_forward = around("rms_forward", rms_forward)
    rms_layernorm._rms_backward = around("rms_backward", rms_backward)
    rope_embedding._rope_launch = around("rope", rope)
    fast_lora.swiglu_fg_kernel = around("swiglu_forward", swiglu_forward)
    fast_lora.swiglu_DWf_DW_dfg_kernel = around("swiglu_backward", swiglu_backward)


def rms_forward(x: Any, weight: Any, eps: float, gemma: bool, wrap: Any, multirow: Any = None) -> Any:
    scale = torch.rsqrt(x.float().square().mean(-1) + eps)
    return (x.float() * scale[:, None]).to(weight.dtype) * weight, scale


def rms_backward(
    grad_y: Any, grad_x: Any, x: Any, weight: Any, scale: Any, eps: float, gemma: bool, wrap: Any,
    multirow: Any = None, train_w: bool = False, from_y: bool = False,
) -> None:  # fmt: skip
    normed, up = x.float() * scale[:, None], grad_y.float() * weight.float()
    grad_x.copy_(scale[:, None] * (up - normed * (up * normed).mean(-1, keepdim=True)))


def rope(
    q: Any, q_out: Any, k: Any, k_out: Any, cos: Any, sin: Any, positions: Any, has_positions: bool, is_backward: bool,
    cast: Any, wrap: Any,
) -> None:  # fmt: skip
    rows = positions.long() if has_positions else torch.arange(q.shape[2])
    half = q.shape[-1] // 2
    c, s = cos[rows, :half].float(), sin[rows, :half].float() * (-1 if is_backward else 1)
    for x, out in ((q, q_out), (k, k_out)):
        a, b = x[..., :half].float(), x[..., half:].float()
        low, high = a * c - b * s, b * c + a * s
        out[..., :half], out[..., half:] = low.to(out.dtype), high.to(out.dtype)


def swiglu_forward(e: Any, g: Any) -> Any:
    return torch.nn.functional.silu(e.float()).to(g.dtype) * g


def swiglu_backward(DW: Any, e: Any, g: Any) -> Any:
    """h, and the gradients of g and e, written into the arguments as the kernel does."""
    wide = e.float()
    sigmoid = torch.sigmoid(wide)
    activation = (sigmoid * wide).to(DW.dtype)
    h, grad_g, grad_activation = activation * g, DW * activation, DW * g
    grad_e = (grad_activation.float() * sigmoid * (1 + wide * (1 - sigmoid))).to(DW.dtype)
    DW.copy_(h), e.copy_(grad_g), g.copy_(grad_e)
    return DW, e, g
