"""What is put into Unsloth's model on a GPU: attention over packed rows, and its fused functions for linears with LoRA,
fed from copies of the LoRA weights in the base's type.

Unsloth passes a row's layout, `prefix_seg_info`, through its layers to its function for shared prefixes. That function
is compiled (FlexAttention) and falls back on a T x T mask without a word where the compiler fails, so packed attention
takes its place. A row of one sample is left to Unsloth's own attention, which prefix_check.py compares ours with.

Unsloth has one autograd function for q, k and v and leaves Qwen2's to PEFT, since they have a bias; here the frozen
bias is added to its result. Its functions cast each LoRA weight, which is float32, in every forward and every backward
pass, and autograd casts the gradients back: 42 launches of 127 a layer. `AdapterCopies` casts once a step and a row.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from fasttune.console import FasttuneError, _, error
from fasttune.machine import installed_version
from fasttune.training.attention import Layout, packed_attention
from fasttune.training.lora_linear import is_plain_lora, lora_scaling

if TYPE_CHECKING:
    from torch import nn

LINEAR = ("W", "W_quant", "A", "B", "S")  # what Unsloth's functions take of a linear: weight, its state in NF4, LoRA
# What is called or replaced in Unsloth, with the parameters that it must begin with.
USED = {
    "unsloth:FastLanguageModel.for_inference": ("model",),
    "unsloth:FastLanguageModel.for_training": ("model", "use_gradient_checkpointing"),
    "unsloth.utils.attention_dispatch:_flex_shared_prefix_attention": (),
    "unsloth.utils.prefix_grouper_kernel:flex_shared_prefix_attention": ("Q", "K", "V", "prefix_seg_info", "scale"),
    "unsloth.utils.attention_dispatch:resolve_prefix_seg_info": ("kwargs", "past_key_value", "attention_mask"),
    "unsloth.utils.packing:get_packed_info_from_kwargs": ("kwargs", "device", "position_ids"),
    "unsloth.models.llama:original_apply_qkv": ("self", "X"),
    "unsloth.models.llama:original_apply_o": ("self", "X"),
    "unsloth.kernels.utils:get_lora_parameters": ("proj",),
    "unsloth.kernels.fast_lora:LoRA_W.forward": ("ctx", "X", *LINEAR),
    "unsloth.kernels.fast_lora:LoRA_QKV.forward": (
        "ctx", "X", *(p + name for p in "QKV" for name in LINEAR),
        "inplace",
    ),
    "unsloth.kernels.fast_lora:LoRA_MLP.forward": (
        "ctx", "X", *(p + name for p in ("gate", "up", "down") for name in LINEAR),
        "_forward_function", "_backward_function", "inplace",
    ),
    "unsloth.kernels.fast_lora:LoRA_W.backward": ("ctx", "dY"),
    "unsloth.kernels.fast_lora:LoRA_QKV.backward": ("ctx", "dQ", "dK", "dV"),
    "unsloth.kernels.fast_lora:LoRA_MLP.backward": ("ctx", "dY"),
    "unsloth.kernels.fast_lora:swiglu_fg_kernel": ("e", "g"),
    "unsloth.kernels.fast_lora:swiglu_DWf_DW_dfg_kernel": ("DW", "e", "g"),
}  # fmt: skip
# It has to look these up on a layer's attention: functions that are put there would else never be called.
ATTENTION, LOOKED_UP = "unsloth.models.llama:LlamaAttention_fast_forward", ("apply_qkv", "apply_o")


def use_cuda_layers(model: Any) -> None:
    """Put packed attention and the fused functions into a model with LoRA. Raises FasttuneError where this version of
    Unsloth is another one than is known here."""
    require_known_unsloth()
    from unsloth.utils import attention_dispatch

    attention_dispatch._flex_shared_prefix_attention = shared_prefix_attention
    watch_optimizers()
    model.adapter_copies = copies = AdapterCopies(model.get_input_embeddings().weight.dtype)
    backbone = model.get_base_model().model
    for layer in backbone.layers:
        use_fused_functions(layer.self_attn, layer.mlp, copies)
    # Whoever calls it: a row of the training, or Unsloth to read the prompt of an answer.
    backbone.register_forward_pre_hook(lambda *_module_and_inputs: copies.refresh())


def require_known_unsloth() -> None:
    """Raises FasttuneError where the installed Unsloth has no longer what is called here."""
    for path, parameters in USED.items():
        found = find(path)
        has = tuple(inspect.signature(found).parameters) if parameters else ()
        if has[: len(parameters)] != parameters:
            raise unknown_unsloth(path, _("its parameters are {names}", names=", ".join(has)))
    code = inspect.unwrap(find(ATTENTION)).__code__
    for method in LOOKED_UP:
        if method not in (*code.co_names, *code.co_consts):
            raise unknown_unsloth(f"{ATTENTION}.{method}", _("it is not there"))


def find(path: str) -> Any:
    """What a path like those of USED names. Raises FasttuneError where it is not there."""
    module, name = path.split(":")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        raise unknown_unsloth(path, _("it is not there")) from None


def unknown_unsloth(path: str, why: str) -> FasttuneError:
    """The error for an Unsloth that was changed in a place that is called here."""
    version = installed_version("unsloth")
    return error(
        "unsloth-changed",
        _("fasttune can't train on a GPU with unsloth {version}: {name} has changed", version=version, name=path),
        why=why,
        fix=_("install the version that fasttune was tested with: `make quickstart`"),
    )


# Attention ------------------------------------------------------------------------------------------------------------


def shared_prefix_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float | None = None
) -> torch.Tensor:
    """In place of Unsloth's `flex_shared_prefix_attention`: query [1, T, H, D], key and value [1, T, H_kv, D]; returns
    [1, T, H, D]."""
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (states.squeeze(0) for states in (query, key, value))  # [0] would copy its gradient
    return packed_attention(query, key, value, layout, scaling).unsqueeze(0)


def layout_arguments(layout: Layout) -> dict[str, Any]:
    """The keyword arguments that describe a row to Unsloth's model.

    `packed_seq_lengths` lies on the host and is used by rows of one sample alone; for the others it keeps Unsloth from
    reading the boundaries out of position_ids, for which it would wait for the GPU seven times a row.
    """
    lengths = {"packed_seq_lengths": host_lengths(layout.own.queries)}
    return lengths if layout.is_single else lengths | {"prefix_seg_info": layout}


@functools.lru_cache(maxsize=64)
def host_lengths(tokens: int) -> torch.Tensor:
    """The length of a row, always the same tensor for the same length: Unsloth copies each new one to the GPU, which a
    CUDA graph may not (cuda_graphs.py)."""
    return torch.tensor([tokens], dtype=torch.int32)


# Linears with LoRA ----------------------------------------------------------------------------------------------------


@functools.cache
def watch_optimizers() -> None:
    """Count the steps of all optimizers from now on: a fused one changes weights without counting up their version."""

    def count(*_step: Any) -> None:
        AdapterCopies.optimizer_steps += 1

    register_optimizer_step_post_hook(count)


class AdapterCopies:
    """The LoRA weights in the base's type, for Unsloth's functions, and their gradients' way back.

    A copy is a leaf of autograd's graph: its gradient, of the same type, is of one row. `collect` adds it to that of
    the weight itself, in float32. Where the base is float32 the copies are the weights.
    """

    optimizer_steps = 0

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.linears: list[nn.Linear] = []  # PEFT's A and B, each a linear of its own
        self.copies: list[torch.Tensor] = []
        self.copied: list[Any] = []  # what the weights were when the copies were made

    def add(self, linears: Sequence[nn.Linear]) -> list[int]:
        """Keep copies of the weights of some more linears; their places in `copies`."""
        self.linears += linears
        self.copied = []
        return list(range(len(self.linears) - len(linears), len(self.linears)))

    def refresh(self) -> None:
        """Make the copies equal to the weights where one of these has changed since: in a few launches for all.

        Outside of inference mode, in which Unsloth reads prompts: a tensor made there can't be trained with.
        """
        weights = [linear._parameters["weight"] for linear in self.linears]
        now = [self.optimizer_steps, *((id(weight), weight._version) for weight in weights if weight is not None)]
        if now == self.copied:
            return
        if self.dtype == torch.float32:
            self.copies = weights
        else:
            with torch.inference_mode(False), torch.no_grad():
                if len(self.copies) != len(weights):
                    self.copies = [torch.empty_like(weight, dtype=self.dtype).requires_grad_() for weight in weights]
                torch._foreach_copy_(self.copies, weights)
        self.copied = now

    def collect(self) -> None:
        """Add the copies' gradients to those of the weights, in float32, and drop them."""
        if self.dtype == torch.float32:
            return
        pairs = [
            (linear.weight, copy)
            for linear, copy in zip(self.linears, self.copies, strict=True)
            if copy.grad is not None
        ]
        if not pairs:
            return
        sums = [weight.grad for weight, _copy in pairs]
        wide = [torch.empty_like(weight) for weight, _copy in pairs]
        torch._foreach_copy_(wide, [copy.grad for _weight, copy in pairs])
        if all(one is None for one in sums):
            for (weight, _copy), gradient in zip(pairs, wide, strict=True):
                weight.grad = gradient
        else:
            torch._foreach_add_(sums, wide)
        self.drop()

    def drop(self) -> None:
        """Forget the gradients of a row whose backward pass was not completed."""
        if self.dtype != torch.float32:
            for copy in self.copies:
                copy.grad = None


def use_fused_functions(attention: Any, mlp: Any, copies: AdapterCopies) -> None:
    """Compute q, k and v, o, and the feed-forward of a layer by Unsloth's functions.

    What is no plain LoRA stays with what Unsloth has put there: a linear that is not trained, an adapter that is
    disabled, merged or has dropout.
    """
    from unsloth.models import llama

    parts = attention.q_proj, attention.k_proj, attention.v_proj
    if all(map(has_lora, parts)):
        before = getattr(attention, "apply_qkv", llama.original_apply_qkv)
        attention.apply_qkv = fused(qkv, parts, copies, functools.partial(before, attention))
    if has_lora(attention.o_proj) and attention.o_proj.get_base_layer().bias is None:
        before = getattr(attention, "apply_o", llama.original_apply_o)
        attention.apply_o = fused(output, (attention.o_proj,), copies, functools.partial(before, attention))
    parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if all(has_lora(part) and part.get_base_layer().bias is None for part in parts):
        compute = fused(feed_forward, parts, copies, mlp.forward)
        mlp.forward = functools.partial(compute, mlp)


Fused = Callable[[torch.Tensor, Sequence[Any], list[Any]], Any]


def fused(function: Fused, parts: Sequence[Any], copies: AdapterCopies, plain: Callable[[Any], Any]) -> Any:
    """A layer's method that calls `function` with x, the linears and their weights as LINEAR names them, or `plain`
    with x where one of them is no plain LoRA now."""
    from unsloth.kernels.utils import get_lora_parameters

    places = [copies.add([part.lora_A[name], part.lora_B[name]]) for part in parts for name in part.active_adapters]

    def method(_layer: Any, x: torch.Tensor) -> Any:
        if not all(map(is_plain_lora, parts)):
            return plain(x)
        weights: list[Any] = []
        for part, (a, b) in zip(parts, places, strict=True):
            weights += *get_lora_parameters(part)[:2], copies.copies[a], copies.copies[b], lora_scaling(part)
        return function(x, parts, weights)

    return method


def has_lora(part: Any) -> bool:
    """Whether a linear has an adapter."""
    return hasattr(part, "lora_A")


def qkv(x: torch.Tensor, parts: Sequence[Any], weights: list[Any]) -> tuple[torch.Tensor, ...]:
    """q, k and v of x with their frozen biases."""
    from unsloth.kernels.fast_lora import LoRA_QKV

    states = LoRA_QKV.apply(x, *weights, True)
    biases = [part.get_base_layer().bias for part in parts]
    return tuple(one if bias is None else one + bias.to(one.dtype) for one, bias in zip(states, biases, strict=True))


def output(x: torch.Tensor, _parts: Sequence[Any], weights: list[Any]) -> torch.Tensor:
    """The attention's output projection."""
    from unsloth.kernels.fast_lora import LoRA_W

    return LoRA_W.apply(x, *weights)


def feed_forward(x: torch.Tensor, _parts: Sequence[Any], weights: list[Any]) -> torch.Tensor:
    """down(silu(gate(x)) * up(x))."""
    from unsloth.kernels import fast_lora

    swiglu = fast_lora.swiglu_fg_kernel, fast_lora.swiglu_DWf_DW_dfg_kernel
    return fast_lora.LoRA_MLP.apply(x, *weights, *swiglu, True)
