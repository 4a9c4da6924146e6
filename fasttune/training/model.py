"""The model: every call of Unsloth and PEFT. Loads the base, adds LoRA, computes a row.

Unsloth has two back ends with one interface. On a GPU it replaces the forward passes with its Triton kernels and takes
a row's layout as `prefix_seg_info` (cuda_layers.py); without one it loads stock transformers, to which this file adds
the attention of attention.py and the layers of cpu_layers.py. `hidden_states` hides the difference: its callers do not
know which back end runs.

The environment variables that Unsloth reads are set here, before it is imported: no statistics request (it can block
for two minutes), no installer, one folder for compiled kernels, no banners on stdout.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.console import _, error
from fasttune.machine import cache_folder, without_collector
from fasttune.planning.init import context
from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import device, four_bits, hub, memory, row_budget
from fasttune.training.lora_linear import is_plain_lora, lora_scaling, lora_weights

if TYPE_CHECKING:
    import torch

    from fasttune.training.engine import Batch


ATTENTION = "fasttune"  # the name of packed attention among transformers' attention functions


# Loading ------------------------------------------------------------------------------------------------------------


def load_tokenizer(base: Path) -> Any:
    """The tokenizer in the base's folder. Raises FasttuneError where it needs Python code of its own; that is never
    run, and nobody is asked whether it may be."""
    from transformers import AutoTokenizer

    hub.refuse_remote_code(base)
    return AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)


def load_base(base: Path, recipe: ModelRecipe) -> Any:
    """The frozen base, loaded by Unsloth in `device.compute_dtype`, or with its weights in NF4 for `load_in_4bit`.

    Raises FasttuneError where it can't be held in 4 bits. Not more than the base's own context length is asked for,
    beyond which Unsloth stretches RoPE on a GPU (E5; plan_check.length_beyond_base).
    """
    fast_language_model = import_unsloth()
    if recipe.load_in_4bit and device.device_type() == "cpu":
        four_bits.require_whole_blocks(base)
    with quiet():
        model, _tokenizer = fast_language_model.from_pretrained(
            model_name=str(base),
            max_seq_length=min(recipe.max_seq_length, context(str(base))),
            dtype=device.compute_dtype(recipe),
            load_in_4bit=recipe.load_in_4bit,
            use_exact_model_name=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    if recipe.load_in_4bit:
        four_bits.require_four_bits(model)
    return model


def add_lora(model: Any, recipe: LoraRecipe, seed: int, *, checkpointing: bool, offload: bool = False) -> Any:
    """A PeftModel with fresh LoRA weights on the recipe's linear layers, its attention set up for packed rows.

    `checkpointing`: use gradient checkpointing, on a GPU with `offload` Unsloth's, which keeps the layers' inputs in
    the computer's memory.
    """
    fast_language_model = import_unsloth()
    with quiet():
        model = fast_language_model.get_peft_model(
            model,
            r=recipe.r,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=list(recipe.target_modules),
            bias="none",
            use_gradient_checkpointing="unsloth" if checkpointing and offload else checkpointing,
            random_state=seed,
        )
    if device.device_type() == "cpu":
        register_attention()
        model.get_base_model().set_attn_implementation(ATTENTION)
        use_cpu_layers(model)
        device.keep_freed_memory()
    else:
        from fasttune.training import cuda_layers

        cuda_layers.use_cuda_layers(model)
    return model


def save_adapter(model: Any, folder: Path) -> None:
    """Write the LoRA weights in PEFT's layout, adapter_config.json and adapter_model.safetensors, byte for byte as
    PEFT's `save_pretrained` does.

    Without its README.md, a form for a model's page on a hub: its template is compiled for each, which takes longer
    than the rest of a small model's checkpoint.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = config.base_model_name_or_path or model.get_base_model().name_or_path
    config.inference_mode = True  # whoever loads the folder does not train it, unless it says so
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def save_trained_adapter(model: Any, folder: Path) -> None:
    """As `save_adapter`, after the last step, and PEFT's README.md beside it. Raises FasttuneError where every B of the
    adapter is still 0, as it was before the first one: the model would say what the base says."""
    if not any(weight.detach().any() for name, weight in model.named_parameters() if ".lora_B." in name):
        what = _("the training changed nothing: every B of the adapter is 0, and the model answers as the base does")
        fix = _("train more steps, or set train.warmup_steps = 0; `--on-existing new` trains another run")
        raise error("nothing-trained", what, fix=fix)
    save_adapter(model, folder)
    model.create_or_update_model_card(str(folder))


def load_adapter(model: Any, folder: Path) -> None:
    """Load the weights of an adapter folder into a model that has an adapter of the same shape."""
    model.load_adapter(str(folder), "default", is_trainable=True)


@functools.cache
def import_unsloth() -> Any:
    """Unsloth's FastLanguageModel. Unsloth patches transformers' Trainer, so modules that import the Trainer call this
    first. What is imported stays: no search for garbage looks through it meanwhile, nor ever after."""
    with without_collector():
        import torch

        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ.setdefault("UNSLOTH_AUTO_INSTALL", "0")
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", unsloth_cache())
        if not torch.cuda.is_available():  # on a CPU nothing is compiled, and importing the compiler takes 2 s of 10
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        for name in ("bitsandbytes.backends.cpu.ops", "unsloth"):  # a filter, since the import sets levels anew
            logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
        with quiet():
            from unsloth import FastLanguageModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        gc.freeze()
    return FastLanguageModel


def unsloth_cache() -> str:
    """Where Unsloth writes the code that it compiles; a new folder for a user who has no home folder, since code is not
    read from where others may write."""
    try:
        return str(cache_folder() / "unsloth")
    except FileNotFoundError:
        return tempfile.mkdtemp(prefix="fasttune-unsloth-")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed to stdout, and warnings: Unsloth announces itself there, and stdout is for data.
    FASTTUNE_DEBUG=1 keeps both."""
    if os.environ.get("FASTTUNE_DEBUG"):
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Computing a row ----------------------------------------------------------------------------------------------------


def register_attention() -> None:
    """Register packed attention with transformers. No mask function of that name is registered, so transformers builds
    no T x T mask."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from fasttune.training.attention import packed_attention

    def packed(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float,
        layout: Any = None,
        **more: Any,
    ) -> tuple[Any, None]:
        if layout is None:  # one sequence, as in generate(): nothing is packed, plain causal attention
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [1, H, T, D] before
        return packed_attention(query, key, value, layout, scaling)[None], None

    AttentionInterface.register(ATTENTION, packed)


def use_cpu_layers(model: Any) -> None:
    """Compute norms, feed-forward and linears with LoRA by cpu_layers.py; Unsloth has kernels for them on GPUs only.

    Cases that cpu_layers.py does not cover keep their own forward pass: an adapter that is disabled, merged or has
    dropout, and another activation than SiLU.
    """
    from peft.tuners.lora import Linear
    from transformers.activations import SiLUActivation
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

    from fasttune.training import cpu_layers

    def norm(layer: Any, _forward: Any, x: torch.Tensor) -> torch.Tensor:
        return cpu_layers.RmsNorm.apply(x, layer.weight, layer.variance_epsilon)

    def linear(layer: Any, forward: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not is_plain_lora(layer):
            return forward(x, *args, **kwargs)
        return cpu_layers.LoraLinear.apply(x, lora_scaling(layer), *lora_weights(layer))

    def mlp(layer: Any, forward: Any, x: torch.Tensor) -> torch.Tensor:
        parts = layer.gate_proj, layer.up_proj, layer.down_proj
        if not all(isinstance(part, Linear) and is_plain_lora(part) for part in parts):
            return forward(x)
        weights = [tensor for part in parts for tensor in lora_weights(part)]
        return cpu_layers.LoraMlp.apply(x, tuple(map(lora_scaling, parts)), *weights)

    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.forward = functools.partial(linear, layer, layer.forward)
        elif isinstance(layer, Qwen2MLP) and isinstance(layer.act_fn, SiLUActivation):
            layer.forward = functools.partial(mlp, layer, layer.forward)
        elif isinstance(layer, Qwen2RMSNorm):
            layer.forward = functools.partial(norm, layer, layer.forward)


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """The hidden states after the final norm of one packed row, [1, T, C]; T is the row's tokens plus padding."""
    from fasttune.training import cross_entropy, cuda_layers, engine

    backbone = model.get_base_model().model
    if device.device_type() == "cpu":
        batch = engine.pad_row(batch, cross_entropy.ROWS)
        layout: dict[str, Any] = {"layout": batch.layout}
    else:
        layout = cuda_layers.layout_arguments(batch.layout)
    return backbone(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **layout)[0]


def collect_gradients(model: Any) -> None:
    """After a row's backward pass: add its gradient to that of the LoRA weights. On a CPU autograd has done so."""
    if device.device_type() == "cuda":
        model.adapter_copies.collect()


def row_leaves(model: Any, trained: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The tensors that the gradient of a row is of, up to date, and the `trained` parameters that they belong to: on a
    GPU the copies of LoRA weights that Unsloth's functions take."""
    if device.device_type() == "cpu":
        return [*trained], [*trained]
    model.adapter_copies.refresh()
    weights = [linear.weight for linear in model.adapter_copies.linears]
    copied = set(map(id, weights))
    others = [parameter for parameter in trained if id(parameter) not in copied]
    return [*model.adapter_copies.copies, *others], [*weights, *others]


def drop_gradients(model: Any) -> None:
    """Forget all gradients, those of a row that was not completed too."""
    model.zero_grad(set_to_none=True)
    if device.device_type() == "cuda":
        model.adapter_copies.drop()


def lm_head_weight(model: Any) -> torch.Tensor:
    """The frozen output embedding, [V, C]."""
    return model.get_output_embeddings().weight


@contextlib.contextmanager
def inference(model: Any) -> Iterator[None]:
    """Unsloth's inference mode in the block, afterwards training mode with gradient checkpointing as it was: by itself
    Unsloth puts back on a GPU what LoRA was added with, though it was turned on since, for lack of memory (E3)."""
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    import_unsloth().for_inference(model)
    try:
        yield
    finally:
        import_unsloth().for_training(model, use_gradient_checkpointing=checkpointing)


def generate(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int) -> str:
    """The greedy answer to a tokenized prompt, up to the end-of-sequence token or `max_new_tokens`."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.no_grad(), quiet(), inference(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


# Memory -------------------------------------------------------------------------------------------------------------


def memory_shape(model: Any) -> row_budget.MemoryShape:
    """What decides the activation memory of a row, from the model's configuration (memory.py)."""
    config = model.config
    sizes = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return memory.activation_shape(device.device_type(), *sizes)


def checkpoint_bytes(model: Any) -> int:
    """About the size of a checkpoint."""
    return memory.checkpoint_bytes(sum(one.numel() for one in model.parameters() if one.requires_grad))
