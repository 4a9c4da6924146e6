"""A base that was dequantized is told from one that never was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from exports import read_model
from gguf import quants

from fasttune.export import grid


def weights(rows: int = 4, columns: int = 896) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.02, size=(rows, columns)).astype(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    stored = quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    return quants.dequantize(stored, gguf.GGMLQuantizationType.BF16).reshape(values.shape)


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q5_0", 5), ("Q5_1", 5)])
def test_dequantized_weights_lie_on_a_grid_also_in_bfloat16(name: str, bits: int) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values = quants.dequantize(quants.quantize(weights(), kind), kind)
    assert grid.bits_of(values) == grid.bits_of(to_bfloat16(values)) == bits


def test_ordinary_weights_lie_on_none() -> None:
    assert grid.bits_of(weights()) is None and grid.bits_of(to_bfloat16(weights())) is None


def test_weights_all_alike_are_no_error() -> None:
    assert grid.bits_of(np.zeros((4, 64), dtype=np.float32)) == 4


def test_most_matrices_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _loras = read_model(None)
    assert grid.find(base) is None
    names = list(grid.sample(base))
    on_grid = names[: len(names) // 2 + 1]
    kind = gguf.GGMLQuantizationType.Q5_0
    rows = quants.dequantize(quants.quantize(weights(4, 256), kind), kind)

    class OnGrid:
        def rows(self, start: int, stop: int) -> np.ndarray:
            return rows

    tensors = base.tensors | dict.fromkeys(on_grid, OnGrid())
    assert grid.find(replace(base, tensors=tensors)) == 5  # type: ignore[arg-type]
    tensors = base.tensors | dict.fromkeys(on_grid[1:], OnGrid())
    assert grid.find(replace(base, tensors=tensors)) is None  # type: ignore[arg-type]
