"""The model: every touch of Unsloth and PEFT. Loads the base, adds LoRA, runs a row through it.

Unsloth has two back ends with one interface. On a CUDA GPU it replaces the forward passes with its Triton kernels and
takes a row's layout as `prefix_seg_info` or `packed_seq_lengths`; without a GPU it loads stock transformers, and the
attention of engine.py is registered there. `hidden_states` hides the difference; above this file nobody knows which
one runs.

Settings that Unsloth reads from the environment are made here, once, before it is imported: no statistics ping (it can
block for two minutes), no installer, the compile cache in one place, banners off stdout.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import device, row_budget

if TYPE_CHECKING:
    import torch

    from fasttune.training.engine import Batch


ATTENTION = "fasttune"  # the name of engine.attention among transformers' attention functions
FLEX_BLOCK = 128  # Unsloth's shared-prefix kernel pads every layer's Q, K and V to this unless the row already fits


# Loading ------------------------------------------------------------------------------------------------------------


def load_tokenizer(base: Path) -> Any:
    """The base's own tokenizer (Hugging Face, fast)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def load(base: Path, recipe: ModelRecipe) -> Any:
    """The frozen base through Unsloth: bf16 or fp16 (or NF4) on a card, float32 on CPU."""
    fast_language_model = import_unsloth()
    with quiet():
        model, _tokenizer = fast_language_model.from_pretrained(
            model_name=str(base),
            max_seq_length=recipe.max_seq_length,
            dtype=device.compute_dtype(recipe),
            load_in_4bit=recipe.load_in_4bit,
            use_exact_model_name=True,
            local_files_only=True,
        )
    return model


def add_lora(model: Any, recipe: LoraRecipe, seed: int, *, checkpointing: bool) -> Any:
    """A PeftModel with fresh LoRA weights on the recipe's linear layers, its attention set up for packed rows."""
    fast_language_model = import_unsloth()
    with quiet():
        model = fast_language_model.get_peft_model(
            model,
            r=recipe.r,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=list(recipe.target_modules),
            bias="none",
            use_gradient_checkpointing="unsloth" if checkpointing and device.device_type() == "cuda" else checkpointing,
            random_state=seed,
        )
    if device.device_type() == "cpu":
        register_attention()
        model.get_base_model().set_attn_implementation(ATTENTION)
        use_fast_layers(model)
        device.keep_freed_memory()
    return model


def save_adapter(model: Any, folder: Path) -> None:
    """LoRA weights in PEFT's layout, safetensors."""
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)


def load_adapter(model: Any, folder: Path) -> None:
    """Put the weights of an adapter of the same shape into a model that has one."""
    model.load_adapter(str(folder), "default", is_trainable=True)


def import_unsloth() -> Any:
    """Unsloth's FastLanguageModel; it must come before transformers' trainer is used, so train.py asks for it first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fasttune" / "unsloth"
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_AUTO_INSTALL", "0")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache))
    for name in ("bitsandbytes.backends.cpu.ops", "unsloth"):  # a filter: levels are set anew by what is imported
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    with quiet():
        from unsloth import FastLanguageModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return FastLanguageModel


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Unsloth announces itself with print and warnings; stdout is for data, so they go nowhere unless asked for."""
    if os.environ.get("FASTTUNE_DEBUG"):
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Running ------------------------------------------------------------------------------------------------------------


def register_attention() -> None:
    """Make engine.attention known to transformers; without a mask function of that name, no T x T mask is built."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from fasttune.training import engine

    def packed(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float,
        spans: Any = None,
        **more: Any,
    ) -> tuple[Any, None]:
        if spans is None:  # a single sequence, as in generate(): nothing is packed, plain causal attention is right
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
        return engine.attention(query, key, value, spans, scaling), None

    AttentionInterface.register(ATTENTION, packed)


def use_fast_layers(model: Any) -> None:
    """Run norms, feed-forward and linears with LoRA through layers.py; Unsloth has kernels for them on a card only.

    What these do not know (an adapter switched off, merged or with dropout; another activation) goes on as it was.
    """
    from peft.tuners.lora import Linear
    from transformers.activations import SiLUActivation
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

    from fasttune.training import cpu_layers

    def norm(layer: Any, _plain: Any, x: torch.Tensor) -> torch.Tensor:
        return cpu_layers.RmsNorm.apply(x, layer.weight, layer.variance_epsilon)

    def linear(layer: Any, plain: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not plain_lora(layer):
            return plain(x, *args, **kwargs)
        return cpu_layers.LoraLinear.apply(x, lora_scaling(layer), *lora_weights(layer))

    def mlp(layer: Any, plain: Any, x: torch.Tensor) -> torch.Tensor:
        parts = layer.gate_proj, layer.up_proj, layer.down_proj
        if not all(isinstance(part, Linear) and plain_lora(part) for part in parts):
            return plain(x)
        weights = [tensor for part in parts for tensor in lora_weights(part)]
        return cpu_layers.LoraMlp.apply(x, tuple(map(lora_scaling, parts)), *weights)

    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.forward = functools.partial(linear, layer, layer.forward)
        elif isinstance(layer, Qwen2MLP) and isinstance(layer.act_fn, SiLUActivation):
            layer.forward = functools.partial(mlp, layer, layer.forward)
        elif isinstance(layer, Qwen2RMSNorm):
            layer.forward = functools.partial(norm, layer, layer.forward)


def plain_lora(layer: Any) -> bool:
    """Whether a PEFT linear is its base plus one adapter, nothing else."""
    import torch

    (name,) = layer.active_adapters
    return not (layer.disable_adapters or layer.merged) and isinstance(layer.lora_dropout[name], torch.nn.Identity)


def lora_weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Base weight and bias, A and B of a PEFT linear's one adapter."""
    (name,), base = layer.active_adapters, layer.get_base_layer()
    return base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight


def lora_scaling(layer: Any) -> float:
    """What PEFT multiplies the adapter's part with: alpha / r."""
    (name,) = layer.active_adapters
    return float(layer.scaling[name])


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """States after the final norm, [1, T, C], of one packed row; T may be a little more than the row's tokens."""
    from fasttune.training import engine

    backbone = model.get_base_model().model
    if device.device_type() == "cpu":
        batch = engine.padded(batch, engine.ROWS)
        layout: dict[str, Any] = {"spans": batch.spans}
    else:
        batch, layout = cuda_layout(batch)
    return backbone(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **layout)[0]


def cuda_layout(batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """A row and the keyword that tells Unsloth's attention its layout.

    Rows with shared prefixes go as `prefix_seg_info`, padded to whole flex blocks; others as `packed_seq_lengths`
    (variable-length attention).
    """
    import torch

    from fasttune.training import engine

    where = batch.input_ids.device
    if all(span.prefix_end == span.start for span in batch.spans):
        lengths = [end - begin for span in batch.spans for begin, end in span.suffixes]
        return batch, {"packed_seq_lengths": engine.moved(torch.tensor(lengths, dtype=torch.int32), where)}
    from unsloth.utils.prefix_grouper_kernel import build_seg_info_multigroup

    batch = engine.padded(batch, FLEX_BLOCK)
    groups = [(s.prefix_end - s.start, [end - begin for begin, end in s.suffixes]) for s in batch.spans]
    segments, _groups = build_seg_info_multigroup(groups, where)
    return batch, {"prefix_seg_info": segments}


def head(model: Any) -> torch.Tensor:
    """The frozen output embedding, [V, C]."""
    return model.get_output_embeddings().weight


def generate(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int) -> str:
    """The greedy answer to a tokenized prompt, ended by the template's end token."""
    import torch

    fast_language_model = import_unsloth()
    fast_language_model.for_inference(model)
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.no_grad(), quiet():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    fast_language_model.for_training(model)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


# Memory -------------------------------------------------------------------------------------------------------------


def shape(model: Any) -> row_budget.Shape:
    """What decides the memory of a row, from the model's configuration.

    Of layers.py a layer of Qwen2.5 0.5B has been seen to take 87 KB a token in float32 and 50 in bfloat16 (24 layers:
    2.09 and 1.21 MB); ten states and three inner values are 94. What Unsloth's layers take on a card was counted over
    transformers' Qwen2 in float32; in 16 bit a card keeps LoRA's own inputs beside them.
    """
    config = model.config
    sizes = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    return (
        row_budget.Shape(*sizes, 4, states=10, inner=3)
        if device.device_type() == "cpu"
        else row_budget.Shape(*sizes, 2, 12, 4)
    )


def recompute_activations(model: Any) -> None:
    """Turn gradient checkpointing on in a model that was set up without it."""
    if device.device_type() == "cpu":
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    model.enable_input_require_grads()  # Unsloth's checkpoints are reentrant: without it no gradient comes through
    import_unsloth().for_training(model, use_gradient_checkpointing=True)
