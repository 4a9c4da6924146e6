"""The trained model's logits without llama.cpp, torch and Unsloth: the forward pass of Qwen2 in numpy, float32.

Several sequences are computed together: the weights are merged once for all of them, and a prefix that they share, the
system prompt, is computed once. The merged weights of one layer are in memory at a time, so a 3B model takes a few
hundred MB and not 12 GB. What is kept are hidden states and no logits, which would be 170 times as large.

Source: Qwen2 Technical Report (arXiv:2407.10671); tests compare it with transformers' Qwen2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from fasttune.training.packing import common_prefix

Watch = Callable[[str, FloatArray], None]  # gets the name of a weight and its inputs (length, columns)
QUERIES = 256  # attended at once: scores of a long conversation would take gigabytes


@dataclass(frozen=True)
class Layout:
    """Sequences of token ids laid out one after another, the prefix that they share once at the beginning.

    `ids` are the tokens (length), `positions` those of the rotary embedding, `spans` the half-open spans that the
    parts take: the shared prefix first (empty where there is none), then what each sequence adds to it.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def at(self, sequence: int, position: int) -> int:
        """The index among `ids` of a position of a sequence."""
        start, prefix = self.spans[sequence + 1][0], self.spans[0][1]
        return position if position < prefix else start + position - prefix


def lay_out(sequences: Sequence[Sequence[int]]) -> Layout:
    """The layout of one sequence or more; each keeps at least one token of its own."""
    shared = len(sequences[0]) - 1 if len(sequences) > 1 else 0
    for sequence in sequences[1:]:
        shared = min(common_prefix(sequences[0][:shared], sequence), len(sequence) - 1)
    ids, positions, spans = list(sequences[0][:shared]), list(range(shared)), [(0, shared)]
    for sequence in sequences:
        spans.append((len(ids), len(ids) + len(sequence) - shared))
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
    return Layout(tuple(ids), tuple(positions), tuple(spans))


def forward(base: Base, loras: Loras, ids: Sequence[int], last: int) -> FloatArray:
    """Logits (last, vocab_size) of the merged model at the last positions of one sequence of token ids."""
    hidden = hidden_states(base, loras, lay_out([ids]))
    return logits(base, hidden[-last:])


def hidden_states(base: Base, loras: Loras, layout: Layout, watch: Watch | None = None) -> FloatArray:
    """The last hidden states (length, hidden_size) of a layout, after the final norm; `watch` sees the inputs of every
    matrix of every layer."""
    tensors, shape = base.tensors, base.shape
    hidden = np.concatenate([tensors[EMBEDDING].rows(token, token + 1) for token in layout.ids])
    rotations = rotary_embedding(layout.positions, shape)
    for number in range(shape.layers):
        prefix = f"model.layers.{number}."
        layer = Layer(prefix, layer_weights(base, loras, prefix), shape, watch)
        normed = rms_norm(hidden, layer.weights["input_layernorm.weight"], shape)
        hidden = hidden + attention(normed, layer, rotations, layout)
        hidden = hidden + mlp(rms_norm(hidden, layer.weights["post_attention_layernorm.weight"], shape), layer)
    return rms_norm(hidden, tensors[FINAL_NORM].whole(), shape)


def logits(base: Base, hidden: FloatArray) -> FloatArray:
    """Logits (length, vocab_size) of last hidden states (length, hidden_size)."""
    head = base.tensors[EMBEDDING] if base.shape.tied_embeddings else base.tensors[LM_HEAD]
    found = np.empty((len(hidden), head.shape[0]), dtype=np.float32)
    start = 0
    for block in merged_blocks(head, None):
        found[:, start : start + len(block)] = hidden @ block.T
        start += len(block)
    return found


@dataclass(frozen=True)
class Layer:
    """The merged weights of one layer by their names without its prefix, and who watches their inputs."""

    prefix: str
    weights: dict[str, FloatArray]
    shape: Shape
    watch: Watch | None

    def product(self, name: str, inputs: FloatArray) -> FloatArray:
        """inputs (length, columns) @ weight.T."""
        if self.watch is not None:
            self.watch(f"{self.prefix}{name}.weight", inputs)
        product: FloatArray = inputs @ self.weights[f"{name}.weight"].T
        return product


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


def rotary_embedding(positions: Sequence[int], shape: Shape) -> tuple[FloatArray, FloatArray]:
    """(cos, sin) of the rotary embedding at positions, each (length, 1, head_dim)."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
    angles = np.outer(np.asarray(positions), np.concatenate([frequencies, frequencies]))[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(heads: FloatArray, rotations: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Heads (length, heads, head_dim) rotated by the angles of their positions."""
    first, second = np.split(heads, 2, axis=-1)
    crossed: FloatArray = np.concatenate([-second, first], axis=-1)
    return heads * rotations[0] + crossed * rotations[1]


def attention(hidden: FloatArray, layer: Layer, rotations: tuple[FloatArray, FloatArray], layout: Layout) -> FloatArray:
    """Causal grouped-query attention over a layout (length, hidden_size); each part sees itself and the prefix."""
    shape = layer.shape

    def heads(name: str, count: int) -> FloatArray:
        values = layer.product(f"self_attn.{name}", hidden) + layer.weights[f"self_attn.{name}.bias"]
        return values.reshape(len(hidden), count, shape.head_dim)

    queries = rotate(heads("q_proj", shape.heads), rotations).transpose(1, 0, 2)
    keys = rotate(heads("k_proj", shape.kv_heads), rotations).transpose(1, 0, 2)
    values = heads("v_proj", shape.kv_heads).transpose(1, 0, 2)
    prefix = layout.spans[0][1]
    mixed = np.empty_like(queries)
    for start, end in layout.spans:
        before = min(prefix, start)  # 0 for the prefix itself
        seen = [np.concatenate([all_[:, :before], all_[:, start:end]], axis=1) for all_ in (keys, values)]
        for first in range(start, end, QUERIES):
            last = min(first + QUERIES, end)
            mixed[:, first:last] = attend(queries[:, first:last], seen[0], seen[1], before + first - start)
    return layer.product("self_attn.o_proj", mixed.transpose(1, 0, 2).reshape(len(hidden), -1))


def attend(queries: FloatArray, keys: FloatArray, values: FloatArray, offset: int) -> FloatArray:
    """Values mixed for queries (heads, count, head_dim) by keys and values (kv_heads, length, head_dim); the first
    query sees the keys up to the one at `offset`, itself."""
    group = len(queries) // len(keys)
    scores = queries @ keys.transpose(0, 2, 1).repeat(group, axis=0) / np.float32(np.sqrt(queries.shape[-1]))
    scores += np.triu(np.full(scores.shape[1:], -np.inf, dtype=np.float32), k=offset + 1)
    mixed: FloatArray = np.exp(log_softmax(scores)) @ values.repeat(group, axis=0)
    return mixed


def mlp(hidden: FloatArray, layer: Layer) -> FloatArray:
    """down(silu(gate(x)) * up(x)) for hidden states (length, hidden_size)."""
    gate = layer.product("mlp.gate_proj", hidden)
    with np.errstate(over="ignore"):  # exp(-gate) of a large negative gate is inf and silu 0, as it should be
        gate = gate / (1 + np.exp(-gate))
    return layer.product("mlp.down_proj", gate * layer.product("mlp.up_proj", hidden))


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Log-probabilities along the last axis, in the precision of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
