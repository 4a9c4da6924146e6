"""The merge of base and adapter, and the tensors that a Qwen2 has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exports import lora, read_model, write_adapter
from safetensors import safe_open

from fasttune.export import weights
from fasttune.export.weights import Shape

NAME = "model.layers.1.self_attn.q_proj.weight"


def test_merge_is_base_plus_scaled_product(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = lora(1)
    write_adapter(adapter, pair)
    base, loras = read_model(adapter)
    a, b = pair.values()
    with safe_open(base.folder / "model.safetensors", framework="pt") as file:
        stored = file.get_tensor(NAME).float().numpy()
    tensor = base.tensors[NAME]
    assert np.array_equal(weights.merged_rows(tensor, None, 3, 9), stored[3:9])
    merged = stored + 2 * (b @ a)
    assert np.allclose(weights.merged_rows(tensor, loras[NAME], 3, 9), merged[3:9], atol=1e-6)
    monkeypatch.setattr(weights, "BLOCK_BYTES", 100 * 256 * 4)
    blocks = list(weights.merged_blocks(tensor, loras[NAME]))
    assert [len(block) for block in blocks] == [100, 100, 56]
    assert np.allclose(np.concatenate(blocks), merged, atol=1e-6)


def test_tensors_of_a_shape_with_grouped_queries() -> None:
    shape = Shape(96, 160, 2, 6, 3, 5200, 512, 1e6, 1e-6, tied_embeddings=False)
    tensors = weights.expected_tensors(shape)
    assert shape.head_dim == 16 and len(tensors) == 2 * 12 + 3
    assert tensors["model.layers.1.self_attn.q_proj.weight"] == (96, 96)
    assert tensors["model.layers.1.self_attn.k_proj.weight"] == (48, 96)
    assert tensors["model.layers.1.self_attn.v_proj.bias"] == (48,)
    assert tensors["model.layers.0.mlp.down_proj.weight"] == (96, 160)
    assert tensors["lm_head.weight"] == (5200, 96)


def test_names_for_a_message() -> None:
    assert weights.first_names(["b", "a"]) == "a, b"
    assert weights.first_names(["d", "c", "b", "a"]) == "a, b, c … (4 in all)"
