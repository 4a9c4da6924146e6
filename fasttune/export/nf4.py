"""The weights that a QLoRA training computes with: the base rounded to NF4 and back, in numpy.

    64 weights share a scale, the largest magnitude among them; each becomes the nearest of 16 values times that scale.
    256 scales, less their mean, are rounded in turn to the nearest of 256 values times their largest magnitude.

Source: QLoRA (arXiv 2305.14314, section 3 and appendix E); the tables are those of bitsandbytes, with which a test
compares the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fasttune.export.source_files import FloatArray, Tensor
from fasttune.export.weights import Base

BLOCK, SCALES = 64, 256
# Quantiles of the normal distribution, scaled to [-1, 1], zero among them.
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    dtype=np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Nf4Tensor(Tensor):
    """A matrix whose rows are read as NF4 stands for them."""

    def rows(self, start: int, stop: int) -> FloatArray:
        """Rows start:stop in float32; the whole matrix is rounded, since scales and their mean belong to all of it."""
        return rounded(super().rows(0, self.shape[0]))[start:stop]


def in_4_bits(base: Base) -> Base:
    """The base as a QLoRA training holds it: the matrices of its layers in NF4, all else as it is."""
    tensors = {
        name: Nf4Tensor(**vars(tensor)) if name.endswith("_proj.weight") else tensor
        for name, tensor in base.tensors.items()
    }
    return replace(base, tensors=tensors)


def rounded(weights: FloatArray) -> FloatArray:
    """A matrix [rows, columns] rounded to NF4 with doubly quantized scales, in float32."""
    blocks = in_blocks(weights, BLOCK)
    scales = np.abs(blocks).max(axis=1)
    values = nearest(NF4, blocks / nonzero(scales)[:, None])
    values *= rounded_scales(scales)[:, None]
    return values.reshape(-1)[: weights.size].reshape(weights.shape)


def rounded_scales(scales: FloatArray) -> FloatArray:
    """The scales of all blocks as 8 bits stand for them."""
    mean = scales.mean(dtype=np.float32)
    blocks = in_blocks(scales - mean, SCALES)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    values = nearest(DYNAMIC, blocks / nonzero(largest)) * largest
    return values.reshape(-1)[: len(scales)] + mean


def in_blocks(values: FloatArray, size: int) -> FloatArray:
    """All values in blocks [count, size], the last one filled up with zeros."""
    flat = values.reshape(-1)
    return np.pad(flat, (0, -len(flat) % size)).reshape(-1, size)


def nonzero(scales: FloatArray) -> FloatArray:
    """The scales to divide by: 1 where all weights of a block are zero."""
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32, copy=False)


def nearest(table: FloatArray, values: FloatArray) -> FloatArray:
    """Of each value the nearest in a rising table."""
    found: FloatArray = table[np.searchsorted((table[1:] + table[:-1]) / 2, values)]
    return found


def dynamic_table() -> FloatArray:
    """The 256 values for scales: seven decades with 1, 2, 4 … 64 values in each, of both signs, zero and one (8-bit
    optimizers, arXiv 2110.02861, section 2.1)."""
    found = [0.0, 1.0]
    for decade in range(7):
        bounds = np.linspace(0.1, 1, 2**decade + 1, dtype=np.float32)
        means = (bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (decade - 6)
        found += [*means, *-means]
    return np.sort(np.array(found, dtype=np.float32))


DYNAMIC = dynamic_table()
