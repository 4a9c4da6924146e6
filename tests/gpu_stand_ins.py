"""Unsloth's GPU model on a CPU: what it asks of a GPU itself is answered, its Triton kernels are written in torch and
torch's attention operators stood in for (gpu_attention.py). For a process of its own: it patches Unsloth for good.

`prepare` before anything imports Unsloth, then `install` and `use_kernels`. What is stood in for: five functions (the GPU's properties and
statistics, the current device, the memory to be freed, the tables of RoPE), and five Triton kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch


def prepare(folder: str) -> None:
    """The environment that lets Unsloth load its GPU back end where there is none; what it compiles lies in `folder`."""
    os.environ |= {
        "UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_DISABLE_PINNED_MEMORY": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": folder, "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip
    torch.set_num_threads(1)


def install() -> None:
    """Answer for the GPU. `fasttune` then takes the path of a GPU: `device.device_type()` says so."""
    from fasttune.training import device, model

    device.device_type = lambda: "cuda"
    fast_language_model = model.import_unsloth()
    load = fast_language_model.from_pretrained
    fast_language_model.from_pretrained = lambda **named: load(**named, device_map={"": "cpu"})
    from unsloth.models import llama

    gpu = SimpleNamespace(
        name="none",
        major=8,
        minor=6,
        total_memory=2**33,
        multi_processor_count=28,
        max_threads_per_multi_processor=1536,
    )
    torch.cuda.get_device_capability = lambda *_device: (8, 6)
    torch.cuda.get_device_properties = lambda *_device: gpu
    torch.cuda.empty_cache = lambda: None
    torch.cuda.current_device = lambda: 0
    llama.get_device_stats = lambda: ("no GPU. ", "", 0.0)
    llama.get_current_device = lambda: torch.device("cpu")
    llama.clean_gpu_cache = lambda: None
    llama.is_bfloat16_supported = lambda: True
    llama.LlamaRotaryEmbedding.get_cached = rope_tables
    llama.LlamaRotaryEmbedding.extend_rope_embedding = lambda self, x, seq_len, materialize_len=None: None


def rope_tables(self: Any, seq_len: int | None = None, device_index: int | None = None) -> Any:
    """cos and sin of every position, [positions, D] each, which Unsloth builds on a GPU."""
    rows = max(seq_len or 0, self.current_rope_size)
    if getattr(self, "_tables", None) is None or len(self._tables[0]) < rows:
        angles = torch.outer(torch.arange(rows).float(), self._unsloth_recompute_inv_freq())
        both = torch.cat((angles, angles), dim=-1)
        self._tables = both.cos().to(self._rope_cache_dtype), both.sin().to(self._rope_cache_dtype)
    return self._tables


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
