"""What a training holds in memory, in bytes, from the shapes of the base: arithmetic only, no torch.

    weights       the frozen base, in the number type it is computed in, or in NF4
    adapter       LoRA's weights and their gradients, float32
    optimizer     its state for each of LoRA's weights
    activations   what the longest row keeps for its backward pass (row_budget.py)
    logits        the tile of the vocabulary that the loss goes through (cross_entropy.py)
    runtime       Python, torch and Unsloth; on a GPU CUDA's own

How far it is from what is measured: benchmarks/memory.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fasttune.recipe.schema import LoraRecipe, ModelRecipe, TrainRecipe
from fasttune.training.row_budget import MemoryShape

DeviceKind = Literal["cpu", "cuda"]
GIB = 2**30
# hidden, intermediate, layers, heads, key/value heads, vocabulary, tied embeddings: the public Qwen2.5 configurations,
# for bases that are not on this disk yet.
PUBLIC = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
}
# A weight in NF4: half a byte, and for 64 of them one byte of scale and a share of the scales' own (QLoRA,
# arXiv 2305.14314, section 3).
NF4_BYTES = 0.5 + 0.127 / 8
# Bytes a trained weight that the optimizer keeps.
OPTIMIZER_BYTES = {"adamw_torch_fused": 8, "adamw_torch": 8, "adamw_8bit": 2, "sgd": 0}
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}  # of logits at a time, as in cross_entropy.py; a test compares them
TILE_COPIES = 3  # of a tile: logits, exponentials, and those in the type of the hidden states
# Measured: a process that has imported torch and Unsloth and has trained a step holds 0.58 GiB, the tokenizers of a
# vocabulary of 151,936 words 0.23 GiB more. Not measured yet, by others' figures: CUDA's context and libraries.
RUNTIME_BYTES = {"cpu": int(0.58 * GIB), "cuda": int(0.9 * GIB)}
CPU_BFLOAT16 = 1.21 / 2.09  # of the activations in float32
VOCABULARY_BYTES = 1600  # a word of the vocabulary, in the memory of the computer


@dataclass(frozen=True)
class ModelSize:
    """The configuration of a base as far as its memory depends on it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    head_size: int = 0  # 0: hidden / heads

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a decoder layer."""
        size = self.head_size or self.hidden // self.heads
        return {
            "q_proj": (self.hidden, self.heads * size),
            "k_proj": (self.hidden, self.kv_heads * size),
            "v_proj": (self.hidden, self.kv_heads * size),
            "o_proj": (self.heads * size, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_weights(self) -> int:
        """The weights of all decoder layers' linear layers: those that NF4 packs."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_shapes.values())

    @property
    def other_weights(self) -> int:
        """Embeddings, head, norms and the biases of q, k and v."""
        biases = sum(self.linear_shapes[name][1] for name in ("q_proj", "k_proj", "v_proj"))
        norms = self.layers * (2 * self.hidden + biases) + self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + norms

    def adapter_weights(self, lora: LoraRecipe) -> int:
        """LoRA's weights: r for each input and output of its linear layers."""
        return self.layers * lora.r * sum(sum(self.linear_shapes[name]) for name in lora.target_modules)


def read_size(base: Path) -> ModelSize:
    """The size of a base in a folder. Raises OSError, ValueError or KeyError where its config.json is no such."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    return ModelSize(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        head_size=config.get("head_dim") or 0,
    )


def public_size(name: str) -> ModelSize | None:
    """The size of a public Qwen2.5 base by the "0.5B" in its name; None for another name."""
    found = re.search(r"qwen2\.5.*?[-_](\d+(?:\.\d+)?b)(?![a-z0-9])", name.lower())
    return ModelSize(*PUBLIC[found[1]]) if found and found[1] in PUBLIC else None


def checkpoint_bytes(trained: int) -> int:
    """About the size of a checkpoint with so many trained weights: the adapter and Adam's two moments in float32, and
    1 MiB of small files."""
    return 3 * 4 * trained + 2**20


def activation_shape(kind: DeviceKind, hidden: int, intermediate: int, layers: int) -> MemoryShape:
    """What decides the activation memory of a row.

    On a CPU (cpu_layers.py) a token of Qwen2.5 0.5B was measured to take 2.09 MB in float32 and 1.21 MB in bfloat16,
    and one of builtin:tiny, whose four layers let the one at work count for more, 0.104 MB in float32; these vectors
    are 2.11 and 0.103 MB. On a GPU a layer keeps 14 bytes a hidden value and 4 a value of the feed-forward for a token,
    counted by the storages that stay alive in Unsloth's GPU model (tests/gpu_row_memory.py): 31 KB of 0.5B, 71 KB of
    3B. The layer at work holds 11 KB of 0.5B more. These vectors are a tenth more.
    """
    if kind == "cpu":
        return MemoryShape(layers, hidden, intermediate, 4, states=12, inner=2, working_states=14, working_inner=5)
    return MemoryShape(layers, hidden, intermediate, 2, states=3.85, inner=1.1, working_states=1.2, working_inner=0.5)


@dataclass(frozen=True)
class Memory:
    """Bytes of each part of a training at its peak, on the device that computes."""

    weights: int
    adapter: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    @property
    def fixed(self) -> int:
        """All but what depends on the row."""
        return self.total - self.activations - self.logits

    def parts(self) -> dict[str, int]:
        """The bytes by name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True)
class LongestRow:
    """The row that takes most memory: its tokens and those of them that are supervised."""

    tokens: int
    supervised: int


def needed(
    size: ModelSize,
    model: ModelRecipe,
    lora: LoraRecipe,
    train: TrainRecipe,
    kind: DeviceKind,
    row: LongestRow,
    *,
    checkpointing: bool,
) -> Memory:
    """The memory of a training whose longest row is `row`, with or without gradient checkpointing."""
    width = value_bytes(model, kind)
    trained = size.adapter_weights(lora)
    shape = activation_shape(kind, size.hidden, size.intermediate, size.layers)
    token = shape.checkpointed_token_bytes() if checkpointing else shape.token_bytes()
    tile = min(TILE_ELEMENTS[kind], max(1, row.supervised) * size.vocabulary)
    return Memory(
        weights=weight_bytes(size, model, kind),
        adapter=trained * 4 * 2,
        optimizer=trained * OPTIMIZER_BYTES[train.optim],
        activations=int(row.tokens * token * (CPU_BFLOAT16 if kind == "cpu" and width == 2 else 1)),
        logits=tile * 4 * TILE_COPIES + 2 * 4 * row.supervised * size.hidden,
        runtime=RUNTIME_BYTES[kind] + (size.vocabulary * VOCABULARY_BYTES if kind == "cpu" else 0),
    )


def weight_bytes(size: ModelSize, model: ModelRecipe, kind: DeviceKind) -> int:
    """Bytes of the base's weights: the linear layers in NF4 where they are held so, all else as it is computed in."""
    width = value_bytes(model, kind)
    linear = NF4_BYTES if model.load_in_4bit else width
    return int(size.linear_weights * linear + size.other_weights * width)


def value_bytes(model: ModelRecipe, kind: DeviceKind) -> int:
    """Bytes of a number that the model computes with: 16 bits on a GPU, float32 on a CPU, or model.dtype."""
    widths: Mapping[str, Any] = {"auto": 2 if kind == "cuda" else 4, "bfloat16": 2, "float32": 4}
    return int(widths[model.dtype])
