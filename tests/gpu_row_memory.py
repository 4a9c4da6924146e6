"""What a row takes in Unsloth's GPU model, by the storages that its operators make and that stay alive.

    python tests/gpu_row_memory.py TINY FOLDER     prints JSON: bytes a token of one more layer, and of the peak

The tests call `measure` in a fork of the child process that gpu_rows.py is. Nothing is computed: matrix products, Unsloth's Triton kernels and the attention give empty tensors of the right kind.
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import gpu_model
import torch
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS, SHORT, LONG = 2, 64, 128
aten = torch.ops.aten


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operators have made and that are alive; products are not computed."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()
        self.old = {tensor.untyped_storage()._cdata for tensor in old}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = product(func, args, kwargs) if func in PRODUCTS else func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.count(one.untyped_storage())
        return out

    def count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self.old or size == 0:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


PRODUCTS = (aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm_.default)


def product(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """An empty result of a matrix product, or the tensor that it is written into."""
    if func is aten.mm.out:
        return kwargs["out"]
    if func is aten.addmm_.default:
        return args[0]
    a, b = args[:2] if func is aten.mm.default else args[1:3]
    return a.new_empty(a.shape[0], b.shape[1])


class Attend(torch.autograd.Function):
    """What a flash kernel keeps: its inputs, its output and a log-sum-exp a head and token in float32."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_gradients: torch.Tensor) -> Any:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def stand_in() -> None:
    """Unsloth's kernels and the attention as functions that return empty tensors."""
    from unsloth.kernels import fast_lora, rms_layernorm, rope_embedding
    from unsloth.utils import attention_dispatch

    def norm(x: torch.Tensor, *_anything: Any, **_more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty_like(x), torch.empty(len(x), dtype=torch.float32)

    rms_layernorm._rms_forward = norm
    rms_layernorm._rms_backward = lambda *_anything, **_more: None
    rope_embedding._rope_launch = lambda *_anything, **_more: None
    fast_lora.swiglu_fg_kernel = lambda e, g: torch.empty_like(e)
    fast_lora.swiglu_DWf_DW_dfg_kernel = lambda DW, e, g: (DW, e, g)
    attention_dispatch._flex_shared_prefix_attention = lambda q, k, v, *_more, **_named: Attend.apply(q, k, v)


def row_bytes(model: Any, tokens: int) -> tuple[int, int]:
    """Bytes that a row keeps for its backward pass, and at its peak."""
    from fasttune.training import attention, engine
    from fasttune.training import model as models

    layout = attention.layout([(tokens // 2, [tokens // 4, tokens // 4])], [])
    ids, labels = torch.full((1, tokens), 7), torch.full((8,), 7)
    batch = engine.Batch(ids, torch.arange(tokens)[None], torch.arange(8), labels, layout)
    old = (*model.parameters(), *model.buffers(), ids, labels, batch.position_ids, *layout.tensors())
    with Live(old) as live, torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = models.hidden_states(model, batch)
        kept = live.now
        hidden.sum().backward()
    return kept, live.peak


def measure(tiny: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Bytes a token that a layer keeps, and at the peak, without and with gradient checkpointing; patches Unsloth."""
    from fasttune.training import cuda_layers, device

    device.device_type = lambda: "cuda"
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    base = gpu_model.write_base(tiny, folder, num_hidden_layers=LAYERS, **sizes)
    found = {}
    for checkpointing in (False, True):
        model = gpu_model.load(base, torch.bfloat16, checkpointing=checkpointing)
        cuda_layers.use_cuda_layers(model)
        model.train()
        stand_in()
        row_bytes(model, 16)  # what is made once
        short, long = row_bytes(model, SHORT), row_bytes(model, LONG)
        kept, peak = ((b - a) / (LONG - SHORT) for a, b in zip(short, long, strict=True))
        found["checkpointed" if checkpointing else "plain"] = {"kept": kept / LAYERS, "peak": peak}
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
