"""Bases that can't be exported: each is refused with one finding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import TINY, edit
from safetensors.numpy import save_file

from fasttune.console import Finding
from fasttune.export import base_reader

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "llama"}, "model_type is 'llama', export writes qwen2 only"),
    "sliding window": ({"use_sliding_window": True}, "sliding window attention is on"),
    "sliding layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window attention is on"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantized (bitsandbytes)"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        "rope scaling 'yarn' is set",
    ),
    "yarn of transformers 4": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is set"),
    "head size": ({"head_dim": 128}, "head_dim is not hidden_size / num_attention_heads"),
    "more layers": ({"num_hidden_layers": 5}, "tensors are missing: model.layers.4."),
    "fewer layers": ({"num_hidden_layers": 3}, "tensors are not part of a Qwen2 model: model.layers.3."),
    "other width": ({"intermediate_size": 512}, "tensors do not have the shape that config.json gives them"),
    "no output head": ({"tie_word_embeddings": False}, "tensors are missing: lm_head.weight"),
    "no number": ({"hidden_size": None}, "not what transformers writes: hidden_size = None"),
    "a text": ({"num_attention_heads": "4"}, "num_attention_heads = '4'"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    "a list": ({"rope_scaling": [1]}, "a value is missing or not what transformers writes"),
    "a number for a table": ({"quantization_config": 4}, "a value is missing or not what transformers writes"),
    # Lists as long as these numbers would be made before any weight is read.
    "layers without end": ({"num_hidden_layers": 10**12}, "num_hidden_layers = 1e+12"),
    "a vocabulary without end": ({"vocab_size": 10**12}, "vocab_size = 1e+12"),
    "a number beyond floats": ({"hidden_size": 10**400}, "hidden_size"),
}


def findings_of(folder: Path) -> list[Finding]:
    """The findings about the base in a folder."""
    findings: list[Finding] = []
    base_reader.read_base(folder, findings)
    return findings


@pytest.mark.parametrize("case", CONFIGS)
def test_config_is_refused(base: Path, case: str) -> None:
    changes, message = CONFIGS[case]
    edit(base / "config.json", **changes)
    (finding,) = findings_of(base)
    assert finding.level == "error" and message in finding.what


def cut(base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(content[:-1000])


def pickle_weights(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def lose_shard(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "base-unreadable", "can't be read: No such file"),
    "broken config": (lambda base: (base / "config.json").write_text("{"), "base-unreadable", "is not JSON"),
    "config is a number": (
        lambda base: (base / "config.json").write_text("1"),
        "base-unreadable",
        "is not a JSON object",
    ),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "weights-missing", "no model.safetensors"),
    "pickled weights": (pickle_weights, "weights-missing", "no model.safetensors"),
    "missing shard": (lose_shard, "weights-missing", "no model-1.safetensors"),
    "cut weights": (cut, "weights-damaged", "is not a complete safetensors file"),
}


@pytest.mark.parametrize("case", FILES)
def test_folder_is_refused(base: Path, case: str) -> None:
    damage, code, message = FILES[case]
    damage(base)
    (finding,) = findings_of(base)
    assert finding.code == code and message in finding.what


def test_integer_tensors_are_refused(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    save_file({"model.norm.weight": np.zeros(4, dtype=np.int8)}, base / "model-2.safetensors")
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert any("not float16, bfloat16 or float32" in finding.what for finding in findings_of(base))


def test_rope_theta_of_both_transformers_versions() -> None:
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert base_reader.shape_of(config | {"rope_parameters": {"rope_theta": 5e5}}).rope_theta == 5e5
    assert base_reader.shape_of({**config, "rope_parameters": None, "rope_theta": 1e6}).rope_theta == 1e6


def test_a_stored_head_of_a_tied_model_is_ignored() -> None:
    findings: list[Finding] = []
    model = base_reader.read_base(TINY, findings)
    assert model is not None and model.shape.tied_embeddings and findings == []
    tensors = model.tensors | {"lm_head.weight": model.tensors["model.embed_tokens.weight"]}
    base_reader.check_tensors(TINY, model.shape, tensors, findings)
    assert findings == []
