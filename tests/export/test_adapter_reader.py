"""Adapters that can't be merged are refused with one finding; scales are PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import TINY, edit, lora, read_model, write_adapter

from fasttune.console import Finding
from fasttune.export import adapter_reader
from fasttune.export.base_reader import read_base
from fasttune.export.source_files import FloatArray

NO_FIT = "tensors do not fit this base"
CONFIGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "DoRA": ({"use_dora": True}, "adapter-not-mergeable", "use_dora is set (True)"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "adapter-not-mergeable", "modules_to_save is set"),
    "bias": ({"bias": "lora_only"}, "adapter-not-mergeable", "bias is 'lora_only'"),
    "IA3": ({"peft_type": "IA3"}, "adapter-not-mergeable", "peft_type is 'IA3'"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "adapter-not-mergeable", "init_lora_weights is 'pissa_niter_4'"),
    "trained tokens": ({"trainable_token_indices": [1]}, "adapter-not-mergeable", "trainable_token_indices is set"),
    "other rank": ({"r": 3}, "adapter-does-not-fit", NO_FIT),
    "rank pattern": ({"rank_pattern": {"q_proj": 5}}, "adapter-does-not-fit", NO_FIT),
}
EMBEDDING = "base_model.model.model.embed_tokens.lora_embedding_A"
MAGNITUDE = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
TENSORS: dict[str, tuple[dict[str, FloatArray], str]] = {
    "another base": (lora(0, inner=128), NO_FIT),
    "layer too many": (lora(0) | lora(7), NO_FIT),
    "only A": ({name: value for name, value in lora(0).items() if "_A" in name}, NO_FIT),
    "only B": ({name: value for name, value in lora(0).items() if "_B" in name}, NO_FIT),
    "nothing": ({}, "the adapter holds no LoRA matrices"),
    "embedding": (lora(0) | {EMBEDDING: np.zeros((2, 5120), np.float32)}, f"{NO_FIT}: {EMBEDDING}"),
    "magnitude": (lora(0) | {MAGNITUDE: np.zeros(256, np.float32)}, NO_FIT),
}


def findings_of(adapter: Path) -> list[Finding]:
    """The findings about an adapter for the tiny base."""
    findings: list[Finding] = []
    loras = adapter_reader.read_adapter(adapter, read_base(TINY, findings), findings)
    assert findings or loras
    return findings


@pytest.mark.parametrize("case", CONFIGS)
def test_config_is_refused(adapter: Path, case: str) -> None:
    changes, code, message = CONFIGS[case]
    edit(adapter / "adapter_config.json", **changes)
    (finding,) = findings_of(adapter)
    assert finding.code == code and message in finding.what


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused(adapter: Path, case: str) -> None:
    tensors, message = TENSORS[case]
    write_adapter(adapter, tensors)
    (finding,) = findings_of(adapter)
    assert finding.code == "adapter-does-not-fit" and message in finding.what


def test_folder_without_files_is_refused(tmp_path: Path) -> None:
    assert [finding.code for finding in findings_of(tmp_path / "none")] == ["adapter-unreadable"] * 2


def test_pairs_are_found_by_the_weight_of_the_base(adapter: Path) -> None:
    write_adapter(adapter, lora(0) | lora(3))
    _base, loras = read_model(adapter)
    assert list(loras) == [f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 3)]
    assert all(one.a.shape == (2, 256) and one.b.shape == (256, 2) and one.scale == 2 for one in loras.values())


def test_scales_are_pefts() -> None:
    config = {"r": 8, "lora_alpha": 16, "rank_pattern": {"gate_proj": 16}, "alpha_pattern": {r"layers\.1\.mlp\..*": 4}}
    module = "model.layers.1.mlp.gate_proj"
    assert adapter_reader.rank_and_scale(config, module) == (16, 4 / 16)
    assert adapter_reader.rank_and_scale(config | {"use_rslora": True}, module) == (16, 4 / 4)
    assert adapter_reader.rank_and_scale(config, "model.layers.11.mlp.up_proj") == (8, 16 / 8)
