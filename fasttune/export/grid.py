"""Whether the weights of a base lie on a quantization grid: whether it was dequantized from a GGUF file.

People do fine-tune such checkpoints. Rounded again to a type as coarse as its grid, a base is free to keep, and a small
adapter on top of it is rounded away: every weight falls back onto its old level (docs/export.md has the figures).

A block of a 4-, 5- or 6-bit type has at most 16, 32 or 64 levels at equal distances. 32 weights that were never
quantized have some two that are much closer to each other, also in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base

ROWS = 4  # of a matrix that are looked at
BLOCK = 32  # weights with one scale; 16 in a 6-bit type
MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
SHARE = 0.9  # of the blocks of a matrix on a grid, as an all-zero block or one of two values is on any
ROUNDING = 0.2  # of a step: what 16-bit numbers leave of equal distances
BITS = (4, 5, 6)


def find(base: Base) -> int | None:
    """The bits of the grid that most matrices of the base lie on; None where they lie on none."""
    found = [bits_of(base.tensors[name].rows(0, ROWS)) for name in sample(base) if name in base.tensors]
    on_grid = [bits for bits in found if bits is not None]
    return max(on_grid, key=on_grid.count) if 2 * len(on_grid) > len(found) else None


def sample(base: Base) -> Iterator[str]:
    """The matrices that are looked at: some of the first, the middle and the last layer."""
    for layer in sorted({0, base.shape.layers // 2, base.shape.layers - 1}):
        for name in MATRICES:
            yield f"model.layers.{layer}.{name}.weight"


def bits_of(rows: FloatArray) -> int | None:
    """The fewest bits whose grid nearly all blocks of these rows (count, columns) lie on; None where there is none."""
    for bits in BITS:
        size = BLOCK if bits < max(BITS) else BLOCK // 2
        blocks = rows[:, : rows.shape[1] // size * size].reshape(-1, size)
        if len(blocks) and on_grid(blocks, 2**bits).mean() >= SHARE:
            return bits
    return None


def on_grid(blocks: FloatArray, levels: int) -> np.ndarray:
    """For each block (count, size) whether its weights lie on at most `levels` values at equal distances."""
    rising = np.sort(blocks.astype(np.float64), axis=1)
    offset = rising - rising[:, :1]
    span = offset[:, -1:]
    gaps = np.diff(rising, axis=1)
    least = np.where(gaps > span / (4 * levels), gaps, np.inf).min(axis=1, keepdims=True)
    single = np.where((gaps > span / (4 * levels)) & (gaps < 1.5 * least), gaps, np.nan)
    step = np.nanmedian(np.where(span > 0, single, 1), axis=1, keepdims=True)
    whole = np.round(offset / step)  # of the median gap; fitted to all weights, the rounding of each averages out
    step = (offset * whole).sum(axis=1, keepdims=True) / np.maximum(np.square(whole).sum(axis=1, keepdims=True), 1)
    place = offset / np.where(step > 0, step, 1)
    is_even = np.abs(place - np.round(place)).max(axis=1) <= ROUNDING
    near = (gaps > 1e-9 * span) & (gaps < span / (4 * levels))  # two weights closer than any two levels
    found: np.ndarray = (span[:, 0] == 0) | (is_even & (place.max(axis=1) <= levels) & ~near.any(axis=1))
    return found
