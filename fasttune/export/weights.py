"""The weights of a Qwen2 base and of a LoRA adapter, and the one place where the two are merged.

    merged_rows(tensor, lora, start, stop) = W[start:stop] + scale * (B[start:stop] @ A)        in float32

base_reader.py and adapter_reader.py read them. Nothing here holds a whole model in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fasttune.console import _
from fasttune.export.source_files import FloatArray, Tensor

BLOCK_BYTES = 16 << 20
EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen2 config.json that decide what the weights mean; named as there where a name is long."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    tied_embeddings: bool

    @property
    def head_dim(self) -> int:
        """hidden_size / heads; the reader refuses a base with another one."""
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class Base:
    """A local Hugging Face folder of 16-bit or 32-bit Qwen2 weights; `tensors` by their name in it."""

    folder: Path
    config: dict[str, Any]
    shape: Shape
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Lora:
    """The adapter of one weight (out, in): `a` (r, in), `b` (out, r), and the factor of B @ A."""

    a: Tensor
    b: Tensor
    scale: float


Loras = Mapping[str, Lora]  # by the name of the base's weight


def merged_rows(tensor: Tensor, lora: Lora | None, start: int, stop: int) -> FloatArray:
    """Rows start:stop of a merged weight in float32, as PEFT's merge_and_unload computes it for plain LoRA."""
    values = tensor.rows(start, stop)
    if lora is None:
        return values
    return values + np.float32(lora.scale) * (lora.b.rows(start, stop) @ lora.a.whole())


def merged_blocks(tensor: Tensor, lora: Lora | None) -> Iterator[FloatArray]:
    """The merged weight in blocks of whole rows, each about BLOCK_BYTES of float32."""
    step = max(1, BLOCK_BYTES // (4 * math.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        yield merged_rows(tensor, lora, start, min(start + step, tensor.shape[0]))


def expected_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every weight of a Qwen2ForCausalLM, in the order in which they are written."""
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab_size, hidden)}
    for number in range(shape.layers):
        shapes |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not shape.tied_embeddings:
        shapes[LM_HEAD] = (shape.vocab_size, hidden)
    return shapes


def first_names(names: Sequence[str]) -> str:
    """Names for a message: all of them up to three, else three and how many there are."""
    listed = ", ".join(sorted(names)[:3])
    return listed if len(names) <= 3 else _("{names} … ({count} in all)", names=listed, count=len(names))
