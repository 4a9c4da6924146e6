"""The trained model's logits without llama.cpp, torch and Unsloth: the forward pass of Qwen2 in numpy, float32.

Source: Qwen2 Technical Report (arXiv:2407.10671); tests compare it with transformers' Qwen2ForCausalLM. The merged
weights of one layer are in memory at a time, so a 3B model takes a few hundred MB and not 12 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasttune.export.source_files import FloatArray
from fasttune.export.weights import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Base,
    Loras,
    Shape,
    merged_blocks,
    merged_rows,
)


def forward(base: Base, loras: Loras, ids: Sequence[int], last: int) -> FloatArray:
    """Logits (last, vocab_size) of the merged model at the last positions of one sequence of token ids."""
    tensors, shape = base.tensors, base.shape
    embedding = tensors[EMBEDDING]
    hidden = np.concatenate([embedding.rows(token, token + 1) for token in ids])
    rotations = rotary_embedding(len(ids), shape)
    for number in range(shape.layers):
        weights = layer_weights(base, loras, f"model.layers.{number}.")
        hidden = hidden + attention(
            rms_norm(hidden, weights["input_layernorm.weight"], shape), weights, shape, rotations
        )
        hidden = hidden + mlp(rms_norm(hidden, weights["post_attention_layernorm.weight"], shape), weights)
    hidden = rms_norm(hidden[-last:], tensors[FINAL_NORM].whole(), shape)
    head = embedding if shape.tied_embeddings else tensors[LM_HEAD]
    return np.concatenate([hidden @ block.T for block in merged_blocks(head, None)], axis=1)


def layer_weights(base: Base, loras: Loras, prefix: str) -> dict[str, FloatArray]:
    """{name without its prefix: merged weight} of one layer, in float32."""
    names = [name for name in base.tensors if name.startswith(prefix) and not name.endswith("inv_freq")]
    found = {name: base.tensors[name] for name in names}
    merged = {name: merged_rows(tensor, loras.get(name), 0, tensor.shape[0]) for name, tensor in found.items()}
    return {name.removeprefix(prefix): weight for name, weight in merged.items()}


def rms_norm(hidden: FloatArray, weight: FloatArray, shape: Shape) -> FloatArray:
    """weight * x / sqrt(mean(x²) + eps) over the last axis of hidden states (length, hidden_size)."""
    mean: FloatArray = np.square(hidden).mean(axis=-1, keepdims=True)
    return weight * (hidden / np.sqrt(mean + np.float32(shape.rms_norm_eps)))


def rotary_embedding(length: int, shape: Shape) -> tuple[FloatArray, FloatArray]:
    """(cos, sin) of the rotary embedding, each (length, 1, head_dim)."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
    angles = np.outer(np.arange(length), np.concatenate([frequencies, frequencies]))[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(heads: FloatArray, rotations: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Heads (length, heads, head_dim) rotated by the angles of their positions."""
    first, second = np.split(heads, 2, axis=-1)
    crossed: FloatArray = np.concatenate([-second, first], axis=-1)
    return heads * rotations[0] + crossed * rotations[1]


def attention(
    hidden: FloatArray, weights: dict[str, FloatArray], shape: Shape, rotations: tuple[FloatArray, FloatArray]
) -> FloatArray:
    """Causal grouped-query attention over one sequence (length, hidden_size)."""

    def heads(name: str, count: int) -> FloatArray:
        values = hidden @ weights[f"self_attn.{name}.weight"].T + weights[f"self_attn.{name}.bias"]
        return values.reshape(len(hidden), count, shape.head_dim)

    queries = rotate(heads("q_proj", shape.heads), rotations).transpose(1, 0, 2)
    group = shape.heads // shape.kv_heads
    keys = rotate(heads("k_proj", shape.kv_heads), rotations).transpose(1, 2, 0).repeat(group, axis=0)
    values = heads("v_proj", shape.kv_heads).transpose(1, 0, 2).repeat(group, axis=0)
    scores = queries @ keys / np.float32(np.sqrt(shape.head_dim))
    scores += np.triu(np.full(scores.shape[1:], -np.inf, dtype=np.float32), k=1)
    mixed: FloatArray = np.exp(log_softmax(scores)) @ values
    return mixed.transpose(1, 0, 2).reshape(len(hidden), -1) @ weights["self_attn.o_proj.weight"].T


def mlp(hidden: FloatArray, weights: dict[str, FloatArray]) -> FloatArray:
    """down(silu(gate(x)) * up(x)) for hidden states (length, hidden_size)."""
    gate = hidden @ weights["mlp.gate_proj.weight"].T
    with np.errstate(over="ignore"):  # exp(-gate) of a large negative gate is inf and silu 0, as it should be
        gate = gate / (1 + np.exp(-gate))
    return (gate * (hidden @ weights["mlp.up_proj.weight"].T)) @ weights["mlp.down_proj.weight"].T


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Log-probabilities along the last axis, in the precision of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
