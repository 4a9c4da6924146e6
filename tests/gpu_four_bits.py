"""QLoRA over Unsloth's GPU model on a CPU, for the child process of test_gpu_rows.py: bitsandbytes holds the weights in NF4
and takes the place of Unsloth's Triton kernel, which takes a minute in Triton's interpreter and is compared there alone."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import graph_stand_in
import torch

LAUNCHES: Counter[str] = Counter()  # of the kernel, by the way in which Unsloth asks for it


def use_four_bits() -> None:
    """Let Unsloth's GPU back end hold weights in NF4 here. Raises AssertionError where it has other names."""
    from unsloth.kernels import nf4, utils
    from unsloth.models import loader

    assert loader.ALLOW_BITSANDBYTES is False  # it asks for bitsandbytes' CUDA library
    loader.ALLOW_BITSANDBYTES = True
    assert utils._USE_NF4_KERNELS
    for function in (dequantize_nf4, dequantize_nf4_planned):
        name = function.__name__
        assert getattr(utils, name) is getattr(nf4, name)
        assert parameters(function) == parameters(getattr(nf4, name)), name
        setattr(utils, name, graph_stand_in.as_one(function))
    assert parameters(utils._can_use_scratch) == ("device",) and utils._current_device.__name__ == "current_device"
    # As on a GPU's main stream: one scratch buffer for all weights, except while a graph is recorded.
    utils._can_use_scratch = lambda device: graph_stand_in.Graph.recording is None
    utils._current_device = lambda: torch.device("cpu").index


def parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def dequantize_nf4(
    W: Any, absmax: Any, code2: Any, absmax2: Any, offset: Any, code: Any, blocksize: int, blocksize2: int, shape: Any,
    dtype: torch.dtype, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """In place of Unsloth's function of this name: without the choice of a GPU and the kernel."""
    LAUNCHES["a buffer of its own" if out is None else "a buffer that is given"] += 1
    made = torch.empty(shape, dtype=dtype) if out is None else out
    launch(W, absmax, code2, absmax2, offset, code, blocksize, blocksize2, made)
    return made


def dequantize_nf4_planned(
    W: Any, absmax: Any, code2: Any, absmax2: Any, offset: Any, code: Any, blocksize: int, blocksize2: int,
    out: torch.Tensor,
) -> Any:  # fmt: skip
    """In place of Unsloth's function of this name, which every forward pass comes to: a launch into the scratch buffer,
    and how to repeat it for the same weight."""

    def again(out: torch.Tensor) -> bool:
        LAUNCHES["scratch, repeated"] += 1
        launch(W, absmax, code2, absmax2, offset, code, blocksize, blocksize2, out)
        return True

    LAUNCHES["scratch"] += 1
    launch(W, absmax, code2, absmax2, offset, code, blocksize, blocksize2, out)
    return again


def launch(
    W: Any, absmax: Any, code2: Any, absmax2: Any, offset: Any, code: Any, blocksize: int, blocksize2: int,
    out: torch.Tensor,
) -> None:  # fmt: skip
    """What Unsloth's Triton kernel does, bit for bit as gpu_triton.nf4 says, by bitsandbytes' CPU back end."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    scales = QuantState(absmax=absmax2, code=code2, blocksize=blocksize2, dtype=torch.float32)
    state = QuantState(absmax, out.shape, code, blocksize, "nf4", out.dtype, offset, scales)
    out.copy_(dequantize_4bit(W.reshape(-1, 1), state))


def round_to_nf4(plain: Any) -> dict[str, torch.Tensor]:
    """Give the linear layers of a plain PEFT model the weights that NF4 has for theirs, by bitsandbytes; by name."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = {name: one.data for name, one in plain.named_parameters() if name.endswith("base_layer.weight")}
    for weight in weights.values():
        weight.copy_(dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True)))
    return weights


def same_weights(model: Any, weights: dict[str, torch.Tensor]) -> int:
    """How many of a model's linear layers are in NF4 and stand for these weights, bit for bit."""
    from bitsandbytes.functional import dequantize_4bit

    packed = {name: one for name, one in model.named_parameters() if name in weights and hasattr(one, "quant_state")}
    return sum(torch.equal(dequantize_4bit(one.data, one.quant_state), weights[name]) for name, one in packed.items())
