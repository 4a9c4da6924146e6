"""The model: every touch of Unsloth and PEFT. Finds the base, loads it, adds LoRA, runs a row through it.

Unsloth has two back ends with one face. On a CUDA card it replaces the forward passes with its Triton kernels and
takes a row's layout as `prefix_seg_info` or `packed_seq_lengths`; without a card it loads stock transformers, and the
attention of engine.py is registered there. `hidden_states` hides the difference; above this file nobody knows which
one runs.

Settings that Unsloth reads from the environment are made here, once, before it is imported: no statistics ping (it can
block for two minutes), no installer, the compile cache in one place, banners off stdout.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fasttune import memory, processes
from fasttune.console import _, error
from fasttune.recipe import LoraRecipe, ModelRecipe

if TYPE_CHECKING:
    import torch

    from fasttune.engine import Batch

Device = Literal["cpu", "cuda"]
TINY = Path(__file__).parent / "tiny"
ATTENTION = "fasttune"  # the name of engine.attention among transformers' attention functions
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED")
FLEX_BLOCK = 128  # Unsloth's shared-prefix kernel pads every layer's Q, K and V to this unless the row already fits


# Where the base is --------------------------------------------------------------------------------------------------


def locate(recipe: ModelRecipe) -> Path:
    """The local folder of the base: `builtin:tiny`, a folder, or a hub's snapshot (downloaded once, then from its
    cache).

    Raises FasttuneError where the name is unknown or the hub can't be reached.
    """
    if recipe.base == "builtin:tiny":
        return TINY
    folder = Path(recipe.base).expanduser()
    if folder.is_dir():
        return require_model_folder(folder)
    if looks_like_path(recipe.base):
        raise error("base-not-found", _("there is no folder {folder}", folder=recipe.base), where="model.base")
    download = download_from_modelscope if recipe.mirror == "modelscope" else download_from_hub
    return require_model_folder(download(recipe.base, recipe.revision or None))


def looks_like_path(base: str) -> bool:
    """Whether a base that is no folder was meant as one: hub names are `owner/name`."""
    return base.startswith((".", "/", "~")) or base.count("/") != 1 or "\\" in base


def require_model_folder(folder: Path) -> Path:
    """The folder, if it holds a Hugging Face checkpoint; a message that names what is missing otherwise."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    missing += [] if weights else ["*.safetensors"]
    if missing:
        raise error(
            "base-incomplete",
            _(
                "{folder} is no complete Hugging Face checkpoint: {missing} missing",
                folder=folder,
                missing=", ".join(missing),
            ),
            where="model.base",
            fix=_("name the folder that holds config.json, tokenizer.json and the .safetensors files"),
        )
    return folder


def download_from_hub(name: str, revision: str | None) -> Path:
    """A snapshot by huggingface_hub, which honours HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError as reason:
        raise error(
            "base-not-found",
            _("the hub knows no model {name}", name=name),
            where="model.base",
            why=str(reason).splitlines()[0],
            fix=_("check the spelling (Qwen/Qwen2.5-0.5B-Instruct); a private model needs HF_TOKEN"),
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as reason:
        raise error(
            "hub-unreachable",
            _("{name} is not in the local cache and can't be downloaded", name=name),
            where="model.base",
            why=str(reason).splitlines()[0],
            fix=_(
                'check the connection; set HF_ENDPOINT to a mirror, or mirror = "modelscope" under [model], '
                "or name a local folder as base"
            ),
        ) from None


def download_from_modelscope(name: str, revision: str | None) -> Path:
    """A snapshot by the modelscope package, which the user installs when they want it."""
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise error(
            "modelscope-missing",
            _("the package modelscope is not installed"),
            where="model.mirror",
            fix=_("install it with: .venv/bin/python -m pip install modelscope"),
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision))
    except (OSError, ValueError) as reason:
        raise error(
            "hub-unreachable",
            _("ModelScope did not give {name}", name=name),
            where="model.base",
            why=str(reason).splitlines()[0],
            fix=_("check the name and the connection, or name a local folder as base"),
        ) from None


# The device ---------------------------------------------------------------------------------------------------------


def device() -> Device:
    """`cuda` where a card can be driven, else `cpu`; never a silent fall back.

    Raises FasttuneError where the machine shows a card that this torch can't drive.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    card = visible_card()
    if card and os.environ.get("UNSLOTH_FORCE_CPU") != "1":
        raise error(
            "gpu-not-usable",
            _(
                "this machine has a card ({card}), but torch {version} can't use it",
                card=card,
                version=torch.__version__,
            ),
            why=_(
                "this torch is built for: {build}", build=f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
            ),
            fix=_(
                "run `make quickstart` again to install the CUDA build, update the driver, or set UNSLOTH_FORCE_CPU=1"
            ),
        )
    return "cpu"


def visible_card() -> str:
    """The first NVIDIA card the driver lists; empty where there is none. WSL2 keeps nvidia-smi off PATH at times."""
    program = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if program is None:
        return ""
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return listed.stdout.split("(UUID")[0].strip() if listed.returncode == 0 else ""


def shares_prefixes() -> bool:
    """Whether this machine's attention can share prefixes: on CPU, and on cards of compute capability 8.0 and above."""
    import torch

    return device() == "cpu" or torch.cuda.get_device_capability() >= (8, 0)


def checks_sharing() -> bool:
    """Whether shared prefixes are checked before the first step: on a card, whose kernel is not ours."""
    return device() == "cuda"


def compute_dtype(recipe: ModelRecipe) -> torch.dtype:
    """What the model computes in: the recipe's word, or bf16 where the card has it, else fp16; float32 on a CPU."""
    import torch

    if recipe.dtype != "auto":
        return torch.float32 if recipe.dtype == "float32" else torch.bfloat16
    if device() == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def precision(recipe: ModelRecipe) -> dict[str, bool]:
    """The same as the Trainer's mixed-precision flag; the adapter's weights stay float32."""
    flag = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(compute_dtype(recipe)))
    return {flag: True} if flag else {}


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
            dtype=compute_dtype(recipe),
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
            use_gradient_checkpointing="unsloth" if checkpointing and device() == "cuda" else checkpointing,
            random_state=seed,
        )
    if device() == "cpu":
        register_attention()
        model.get_base_model().set_attn_implementation(ATTENTION)
        use_fast_layers(model)
        keep_freed_memory()
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

    from fasttune import engine

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

    from fasttune import layers

    def norm(layer: Any, _plain: Any, x: torch.Tensor) -> torch.Tensor:
        return layers.RmsNorm.apply(x, layer.weight, layer.variance_epsilon)

    def linear(layer: Any, plain: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not plain_lora(layer):
            return plain(x, *args, **kwargs)
        return layers.LoraLinear.apply(x, lora_scaling(layer), *lora_weights(layer))

    def mlp(layer: Any, plain: Any, x: torch.Tensor) -> torch.Tensor:
        parts = layer.gate_proj, layer.up_proj, layer.down_proj
        if not all(isinstance(part, Linear) and plain_lora(part) for part in parts):
            return plain(x)
        weights = [tensor for part in parts for tensor in lora_weights(part)]
        return layers.LoraMlp.apply(x, tuple(map(lora_scaling, parts)), *weights)

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


def keep_freed_memory() -> None:
    """Let glibc keep what a step has freed for the next one, instead of giving the kernel 200 MB a layer back and
    having it zeroed again (7 % of a step; other C libraries have no such call and do as they do)."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(M_MMAP_THRESHOLD, 2**30)
        glibc.mallopt(M_TRIM_THRESHOLD, -1)


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """States after the final norm, [1, T, C], of one packed row; T may be a little more than the row's tokens."""
    from fasttune import engine

    backbone = model.get_base_model().model
    if device() == "cpu":
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

    from fasttune import engine

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


def shape(model: Any) -> memory.Shape:
    """What decides the memory of a row, from the model's configuration.

    Of layers.py a layer of Qwen2.5 0.5B has been seen to take 87 KB a token in float32 and 50 in bfloat16 (24 layers:
    2.09 and 1.21 MB); ten states and three inner values are 94. What Unsloth's layers take on a card was counted over
    transformers' Qwen2 in float32; in 16 bit a card keeps LoRA's own inputs beside them.
    """
    config = model.config
    sizes = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    return memory.Shape(*sizes, 4, states=10, inner=3) if device() == "cpu" else memory.Shape(*sizes, 2, 12, 4)


def recompute_activations(model: Any) -> None:
    """Turn gradient checkpointing on in a model that was set up without it."""
    if device() == "cpu":
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    model.enable_input_require_grads()  # Unsloth's checkpoints are reentrant: without it no gradient comes through
    import_unsloth().for_training(model, use_gradient_checkpointing=True)


def free_memory() -> int:
    """Bytes that can still be had: of the card where one is used, torch's own unused ones included, else of the
    machine."""
    import psutil
    import torch

    if device() == "cpu":
        return psutil.virtual_memory().available // processes.on_this_machine()
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def used_memory() -> int:
    """Peak bytes of this process since its first step: reserved on the card where one is used, else resident."""
    import resource

    import torch

    if device() == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> int:
    """Let `peak_memory` begin anew; the bytes in use now."""
    import torch

    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # without it the peak of the process's whole life counts
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak_memory() -> int:
    """Most bytes that were in use since `reset_peak`: on the card, else resident."""
    import torch

    return torch.cuda.max_memory_allocated() if device() == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """A figure of this process as Linux counts it: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out: a card's, the CPU allocator's or Python's own."""
    import torch

    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in NO_MEMORY)


def release_memory() -> None:
    """Hand back what a failed attempt has left."""
    import torch

    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()


def random_state() -> list[torch.Tensor]:
    """The generators that dropout draws from."""
    import torch

    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device() == "cuda" else [])]


def set_random_state(states: Sequence[torch.Tensor]) -> None:
    """Put the generators where they were."""
    import torch

    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
