"""Unsloth's GPU model without a GPU, for scripts that run in a process of their own: Unsloth patches transformers.

What Unsloth asks of a GPU itself is answered for it (five functions); its kernels are stood in for by whoever needs them.
"""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {
    "UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_DISABLE_PINNED_MEMORY": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_AUTO_INSTALL": "0", "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1",
}  # fmt: skip

import torch

from fasttune.machine import without_collector

CAPABILITY = (8, 6)


def import_unsloth() -> Any:
    """Unsloth's FastLanguageModel with its GPU back end, out of the way of the search for garbage that follows each
    training step with checkpointing."""
    with without_collector():
        import unsloth
        from unsloth.models import llama

        gc.freeze()

    gpu = SimpleNamespace(
        name="none", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=2**33, multi_processor_count=28,
        max_threads_per_multi_processor=1536,
    )  # fmt: skip
    torch.cuda.get_device_capability = lambda *_device: CAPABILITY
    torch.cuda.get_device_properties = lambda *_device: gpu
    torch.cuda.empty_cache = lambda: None
    torch.cuda.current_device = lambda: 0
    llama.get_device_stats = lambda: ("no GPU. ", "", 0.0)
    llama.get_current_device = lambda: torch.device("cpu")
    llama.clean_gpu_cache = lambda: None
    llama.is_bfloat16_supported = lambda: True
    llama.LlamaRotaryEmbedding.get_cached = rope_tables
    llama.LlamaRotaryEmbedding.extend_rope_embedding = lambda *_anything, **_more: None
    return unsloth.FastLanguageModel


def rope_tables(self: Any, seq_len: int | None = None, device_index: int | None = None) -> Any:
    """cos and sin of the rotary embedding, which Unsloth keeps on each GPU."""
    rows = max(seq_len or 0, self.current_rope_size)
    if getattr(self, "_tables", None) is None or len(self._tables[0]) < rows:
        angles = torch.outer(torch.arange(rows).float(), self._unsloth_recompute_inv_freq())
        both = torch.cat((angles, angles), dim=-1)
        self._tables = both.cos().to(self._rope_cache_dtype), both.sin().to(self._rope_cache_dtype)
    return self._tables


def write_base(tiny: Path, folder: Path, **config: Any) -> Path:
    """A base of random weights in bfloat16 with the tokenizer of another one."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layers = config["num_hidden_layers"]
    settings = Qwen2Config.from_pretrained(tiny, layer_types=["full_attention"] * layers, **config)
    with torch.device("meta"):
        empty = Qwen2ForCausalLM(settings)
    model = empty.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.tie_weights()
    model.save_pretrained(folder)
    for file in tiny.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    return folder


def load(base: Path, dtype: torch.dtype, *, checkpointing: bool, r: int = 16) -> Any:
    """The model with LoRA, as model.load_base and model.add_lora make it on a GPU."""
    fast = import_unsloth()
    model, _tokenizer = fast.from_pretrained(
        model_name=str(base), max_seq_length=2048, dtype=dtype, load_in_4bit=False, use_exact_model_name=True,
        local_files_only=True, device_map={"": "cpu"},
    )  # fmt: skip
    return fast.get_peft_model(
        model, r=r, lora_alpha=2 * r, lora_dropout=0.0, bias="none", random_state=1,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
