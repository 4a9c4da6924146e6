"""Unsloth's Triton kernels, as fasttune's GPU path launches them, compiled for GPUs that aren't there.

    python gpu_compile.py FOLDER     prints JSON: for each kernel and architecture its shared memory in bytes, or an error

Each launch of Unsloth's own functions, in the widths of Qwen2.5 1.5B and the 16-bit type that a training takes on an
architecture, is caught and compiled by Triton and ptxas; nothing runs.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import gpu_model

# isort: split
import torch

os.environ.pop("TRITON_INTERPRET")
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = {torch.float16: (75,), torch.bfloat16: (86, 89, 90, 120)}
HIDDEN, INNER, HEADS, KEY_HEADS, WIDTH, TOKENS = 1536, 8960, 12, 2, 128, 256
FOUND: dict[str, int | str] = {}
run = JITFunction.run


class Driver:
    """Triton's driver for one architecture, which launches nothing."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
    (dtype,) = {one.dtype for one in args if isinstance(one, torch.Tensor)} & ARCHITECTURES.keys()
    for architecture in ARCHITECTURES[dtype]:
        driver.set_active(Driver(architecture))
        self.device_caches.clear()
        key = f"{self.fn.__name__} sm_{architecture}"
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **named)
            FOUND[key] = (kernel.result() if hasattr(kernel, "result") else kernel).metadata.shared
        except Exception as problem:  # what would end a training
            FOUND[key] = f"{type(problem).__name__}: {str(problem)[:300]}"


def launch_all(dtype: torch.dtype) -> None:
    """One launch of each kernel that a row of training makes."""
    from unsloth.kernels import rms_layernorm, rope_embedding, swiglu

    weight = torch.nn.Parameter(torch.ones(HIDDEN, dtype=dtype), requires_grad=False)
    norm = SimpleNamespace(weight=weight, variance_epsilon=1e-6)
    x = torch.randn(1, TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    y = rms_layernorm.fast_rms_layernorm(norm, x, save_output=True, reuse_grad=True)
    y.backward(torch.randn_like(y))
    states = [
        torch.randn(1, TOKENS, n, WIDTH, dtype=dtype).transpose(1, 2).requires_grad_() for n in (HEADS, KEY_HEADS)
    ]
    tables = [torch.randn(32768, WIDTH, dtype=dtype) for _table in range(2)]
    turned = rope_embedding.fast_rope_embedding(*states, *tables, torch.zeros(1, TOKENS, dtype=torch.int32))
    torch.autograd.backward(turned, [torch.randn_like(one) for one in turned])
    e, g = (torch.randn(1, TOKENS, INNER, dtype=dtype) for _matrix in range(2))
    swiglu.swiglu_fg_kernel(e, g)
    swiglu.swiglu_DWf_DW_dfg_kernel(torch.randn(TOKENS, INNER, dtype=dtype), e[0], g[0])
    nf4(dtype)


def nf4(dtype: torch.dtype) -> None:
    import bitsandbytes.functional as bitsandbytes
    from unsloth.kernels import nf4 as kernels

    packed, state = bitsandbytes.quantize_4bit(
        torch.randn(128, HIDDEN, dtype=dtype), quant_type="nf4", compress_statistics=True
    )
    scales = state.state2
    kernels._launch(
        kernels._nf4_dequant_kernel, packed, state.absmax, scales.code, scales.absmax, state.offset.reshape(1),
        state.code, state.blocksize, scales.blocksize, torch.empty(128, HIDDEN, dtype=dtype), fp_fusion=False,
    )  # fmt: skip


gpu_model.import_unsloth()
JITFunction.run = compile_only
for dtype in ARCHITECTURES:
    launch_all(dtype)
print(json.dumps({"triton": triton.__version__, "kernels": FOUND}))
