"""What the trained model says, computed apart from llama.cpp, torch and Unsloth: Qwen2 in numpy, float32.

Source: Qwen2 Technical Report (arXiv:2407.10671); the tests hold it equal to transformers' Qwen2ForCausalLM. One
layer's merged weights are in memory at a time, so measuring a 3B model takes a few hundred MB and not 12 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasttune.export.weights import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Base,
    FloatArray,
    Loras,
    Shape,
    merged_blocks,
    merged_rows,
)


def forward(base: Base, loras: Loras, ids: Sequence[int], last: int) -> FloatArray:
    """Logits (last, vocabulary) of the merged model at the last positions of one sequence of ids."""
    tensors, shape = base.tensors, base.shape
    embedding = tensors[EMBEDDING]
    hidden = np.concatenate([embedding.rows(token, token + 1) for token in ids])
    turns = rotations(len(ids), shape)
    for number in range(shape.layers):
        weights = layer_weights(base, loras, f"model.layers.{number}.")
        hidden = hidden + attention(rms_norm(hidden, weights["input_layernorm.weight"], shape), weights, shape, turns)
        hidden = hidden + mlp(rms_norm(hidden, weights["post_attention_layernorm.weight"], shape), weights)
    hidden = rms_norm(hidden[-last:], tensors[FINAL_NORM].whole(), shape)
    head = embedding if shape.tied else tensors[HEAD]
    return np.concatenate([hidden @ block.T for block in merged_blocks(head, None)], axis=1)


def layer_weights(base: Base, loras: Loras, prefix: str) -> dict[str, FloatArray]:
    """The merged weights of one layer."""
    names = [name for name in base.tensors if name.startswith(prefix) and not name.endswith("inv_freq")]
    found = {name: base.tensors[name] for name in names}
    merged = {name: merged_rows(tensor, loras.get(name), 0, tensor.shape[0]) for name, tensor in found.items()}
    return {name.removeprefix(prefix): weight for name, weight in merged.items()}


def rms_norm(hidden: FloatArray, weight: FloatArray, shape: Shape) -> FloatArray:
    """Hidden states (length, hidden) divided by their root mean square, times the norm's weight."""
    mean: FloatArray = np.square(hidden).mean(axis=-1, keepdims=True)
    return weight * (hidden / np.sqrt(mean + np.float32(shape.norm_epsilon)))


def rotations(length: int, shape: Shape) -> tuple[FloatArray, FloatArray]:
    """(cos, sin) of the rotary embedding, each (length, 1, head_size)."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head_size, 2, dtype=np.float64) / shape.head_size)
    angles = np.outer(np.arange(length), np.concatenate([frequencies, frequencies]))[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(heads: FloatArray, turns: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Heads (length, count, head_size) turned by their positions."""
    first, second = np.split(heads, 2, axis=-1)
    crossed: FloatArray = np.concatenate([-second, first], axis=-1)
    return heads * turns[0] + crossed * turns[1]


def attention(
    hidden: FloatArray, weights: dict[str, FloatArray], shape: Shape, turns: tuple[FloatArray, FloatArray]
) -> FloatArray:
    """Causal grouped-query attention over one sequence (length, hidden)."""

    def heads(name: str, count: int) -> FloatArray:
        values = hidden @ weights[f"self_attn.{name}.weight"].T + weights[f"self_attn.{name}.bias"]
        return values.reshape(len(hidden), count, shape.head_size)

    queries = rotate(heads("q_proj", shape.heads), turns).transpose(1, 0, 2)
    group = shape.heads // shape.kv_heads
    keys = rotate(heads("k_proj", shape.kv_heads), turns).transpose(1, 2, 0).repeat(group, axis=0)
    values = heads("v_proj", shape.kv_heads).transpose(1, 0, 2).repeat(group, axis=0)
    scores = queries @ keys / np.float32(np.sqrt(shape.head_size))
    scores += np.triu(np.full(scores.shape[1:], -np.inf, dtype=np.float32), k=1)
    mixed: FloatArray = np.exp(log_softmax(scores)) @ values
    return mixed.transpose(1, 0, 2).reshape(len(hidden), -1) @ weights["self_attn.o_proj.weight"].T


def mlp(hidden: FloatArray, weights: dict[str, FloatArray]) -> FloatArray:
    gate = hidden @ weights["mlp.gate_proj.weight"].T
    with np.errstate(over="ignore"):  # exp of a large negative gate: silu is 0 there, as it should be
        gate = gate / (1 + np.exp(-gate))
    return (gate * (hidden @ weights["mlp.up_proj.weight"].T)) @ weights["mlp.down_proj.weight"].T


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Log-probabilities along the last axis, in the precision of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
