"""Bases, adapters and requests that can't be exported: each is refused before anything is written, with one message."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import fasttune
from fasttune.console import FasttuneError, Finding
from fasttune.export import export, preflight, weights
from fasttune.export.chatml import PLAIN

TINY = Path(fasttune.__file__).parent / "tiny"
NAME = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the tiny base whose files may be changed."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in TINY.iterdir():
        if file.suffix == ".safetensors":
            os.symlink(file, folder / file.name)
        elif file.is_file():
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A small adapter that can be merged."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    write_adapter(folder, lora(0))
    return folder


def lora(layer: int, rank: int = 2, inner: int = 256, outer: int = 256) -> dict[str, np.ndarray]:
    random = np.random.default_rng(layer)
    shapes = {"A": (rank, inner), "B": (outer, rank)}
    return {
        NAME.format(layer, side): random.normal(scale=0.05, size=size).astype(np.float32)
        for side, size in shapes.items()
    }


def write_adapter(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def job_of(base: Path, adapter: Path | None, out: Path, types: tuple[str, ...]) -> preflight.Job:
    return preflight.preflight(base, adapter, out, "linzhi", types, run_id="r", system=None, num_ctx=64)


def refusal(
    base: Path, adapter: Path | None, out: Path, types: tuple[str, ...] = ("f16",), **changed: Any
) -> list[Finding]:
    arguments = {"name": "linzhi", "run_id": "r", "system": None, "num_ctx": 512, "say": lambda line: None, **changed}
    name = arguments.pop("name")
    with pytest.raises(FasttuneError) as caught:
        export(base, adapter, out / "out", name, types, **arguments)
    assert not (out / "out").is_dir() or not list((out / "out").iterdir())
    return list(caught.value.findings)


BASES: dict[str, tuple[dict[str, Any], str]] = {
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
    "no number": ({"hidden_size": None}, "a number is missing or isn't one"),
}


@pytest.mark.parametrize("case", BASES)
def test_base_is_refused(base, tmp_path, case) -> None:
    changes, message = BASES[case]
    edit(base / "config.json", **changes)
    findings = refusal(base, None, tmp_path)
    assert len(findings) == 1 and message in findings[0].what, findings


def cut(base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(content[:-1000])


def garbage(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(b"\xff" * 100)


def pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def lost_shard(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def integers(base: Path) -> None:
    tensors = {name: np.zeros(4, dtype=np.int8) for name in ("model.norm.weight",)}
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    save_file(tensors, base / "model-2.safetensors")
    files = dict.fromkeys("ab", "model-1.safetensors") | {"c": "model-2.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def tokenizer_change(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(base: Path) -> None:
        document = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
        change(document)
        (base / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")

    return apply


def chat_template(text: str) -> Callable[[Path], None]:
    return lambda base: (base / "chat_template.jinja").write_text(text, encoding="utf-8") and None


FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "base-unreadable", "can't be read: No such file"),
    "broken config": (lambda base: (base / "config.json").write_text("{"), "base-unreadable", "is not JSON"),
    "config is a number": (
        lambda base: (base / "config.json").write_text("1"),
        "base-unreadable",
        "is not a JSON object",
    ),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "weights-missing", "no model.safetensors"),
    "pickled weights": (pickled, "weights-missing", "no model.safetensors"),
    "missing shard": (lost_shard, "weights-missing", "no model-1.safetensors"),
    "cut weights": (cut, "weights-damaged", "is not a whole safetensors file"),
    "garbage": (garbage, "weights-damaged", "is not a whole safetensors file (100 bytes)"),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "tokenizer-unreadable", "can't be read"),
    "wordpiece": (
        tokenizer_change(lambda document: document["model"].update(type="WordPiece")),
        "tokenizer-unsupported",
        "no byte-level BPE",
    ),
    "unknown option": (
        tokenizer_change(lambda document: document["model"].update(ignore_merges=True)),
        "tokenizer-unsupported",
        "ignore_merges is set",
    ),
    "split like GPT-2": (
        tokenizer_change(lambda document: document["pre_tokenizer"]["pretokenizers"].pop(0)),
        "tokenizer-unsupported",
        "doesn't split text as Qwen2 does",
    ),
    "no turn end": (
        tokenizer_change(lambda document: document["added_tokens"].pop()),
        "tokenizer-unsupported",
        "<|im_end|> is not an added token",
    ),
    "too many tokens": (
        tokenizer_change(lambda document: document["added_tokens"][0].update(id=9999)),
        "tokenizer-unsupported",
        "its last token has id 9999, the embedding has 5120 rows",
    ),
    "not ChatML": (
        chat_template(PLAIN.replace("<|im_start|>' +", "### ' +")),
        "template-not-chatml",
        "does not render conversations as ChatML",
    ),
    "trimming template": (
        chat_template(PLAIN.replace("message['content']", "message['content'] | trim")),
        "template-not-chatml",
        "does not render conversations as ChatML",
    ),
    "no template": (
        lambda base: (base / "chat_template.jinja").unlink(),
        "template-not-chatml",
        "the tokenizer has no chat template",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_base_folder_is_refused(base, tmp_path, case) -> None:
    damage, code, message = FILES[case]
    damage(base)
    findings = refusal(base, None, tmp_path)
    assert [finding.code for finding in findings] == [code] and message in findings[0].what, findings


def test_integer_tensor_is_refused(base, tmp_path) -> None:
    integers(base)
    whats = [finding.what for finding in refusal(base, None, tmp_path)]
    assert any("not float16, bfloat16 or float32" in what for what in whats), whats


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora is set (True)"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
    "bias": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "IA3": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "trained tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
    "other rank": ({"r": 3}, "tensors do not fit this base"),
    "rank pattern": ({"rank_pattern": {"q_proj": 5}}, "tensors do not fit this base"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapter_is_refused(adapter, tmp_path, case) -> None:
    changes, message = ADAPTERS[case]
    edit(adapter / "adapter_config.json", **changes)
    findings = refusal(TINY, adapter, tmp_path)
    assert len(findings) == 1 and message in findings[0].what, findings


TENSORS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "another base": (lora(0, inner=128), "tensors do not fit this base"),
    "layer too many": (lora(0) | lora(7), "tensors do not fit this base"),
    "half a pair": ({name: value for name, value in lora(0).items() if "_A" in name}, "tensors do not fit this base"),
    "only B": ({name: value for name, value in lora(0).items() if "_B" in name}, "tensors do not fit this base"),
    "nothing": ({}, "the adapter holds no LoRA matrices"),
    "embedding": (
        lora(0) | {"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((2, 5120), np.float32)},
        "tensors do not fit this base: base_model.model.model.embed_tokens.lora_embedding_A",
    ),
    "magnitude": (
        lora(0) | {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": np.zeros(256, np.float32)},
        "tensors do not fit this base",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_adapter_tensors_are_refused(adapter, tmp_path, case) -> None:
    tensors, message = TENSORS[case]
    write_adapter(adapter, tensors)
    findings = refusal(TINY, adapter, tmp_path)
    assert len(findings) == 1 and message in findings[0].what, findings


def test_adapter_folder_without_files(tmp_path) -> None:
    findings = refusal(TINY, tmp_path / "none", tmp_path)
    assert [finding.code for finding in findings] == ["adapter-unreadable"] * 2


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_weights_that_float16_cannot_hold_are_refused_and_nothing_stays(adapter, tmp_path, value) -> None:
    tensors = lora(2)
    tensors[NAME.format(2, "B")][5, 0] = value
    write_adapter(adapter, tensors)
    (finding,) = refusal(TINY, adapter, tmp_path)
    assert finding.code == "weights-not-finite" and finding.where == "model.layers.2.self_attn.q_proj.weight"


def test_everything_wrong_is_said_at_once(base, adapter, tmp_path) -> None:
    edit(base / "config.json", use_sliding_window=True, hidden_act="gelu")
    tokenizer_change(lambda document: document["model"].update(dropout=0.1))(base)
    edit(adapter / "adapter_config.json", use_dora=True, bias="all")
    findings = refusal(base, adapter, tmp_path, ("q4_k_m", "q9"), name="a/b", num_ctx=8192)
    assert [finding.code for finding in findings] == [
        "unknown-gguf-type",
        "bad-name",
        "base-unsupported",
        "base-unsupported",
        "adapter-not-mergeable",
        "adapter-not-mergeable",
        "tokenizer-unsupported",
        "bad-num-ctx",
    ]


def test_no_type_and_types_twice(adapter, tmp_path) -> None:
    assert refusal(TINY, adapter, tmp_path, ())[0].what == "no GGUF type is asked for"
    artifacts = export(
        TINY, adapter, tmp_path, "n", ["Q8_0", "f16", "q8_0"], run_id="r", system=None, num_ctx=64, say=print
    )
    assert [artifact.type for artifact in artifacts] == ["q8_0", "f16"]


def test_disk_space_is_counted_before(tmp_path, monkeypatch) -> None:
    class Usage:
        free = 90_000_000

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    (finding,) = refusal(TINY, None, tmp_path, ("q8_0", "q4_k_m"))
    assert finding.code == "disk-full" and finding.what == "0.13 GB are needed, 0.09 GB are free"


def test_a_file_where_the_folder_should_be(tmp_path) -> None:
    (tmp_path / "out").write_text("a file")
    (finding,) = refusal(TINY, None, tmp_path)
    assert finding.code == "not-a-folder" and (tmp_path / "out").read_text() == "a file"


def test_foreign_file_of_that_name_stays(tmp_path) -> None:
    (tmp_path / "linzhi-F16.gguf").write_bytes(b"mine")
    with pytest.raises(FasttuneError, match=r"without a readable linzhi-F16\.json"):
        export(TINY, None, tmp_path, "linzhi", ["f16"], run_id="r", system=None, num_ctx=64, say=print)
    assert (tmp_path / "linzhi-F16.gguf").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_special_tokens_lost_to_plain_text_are_a_warning(base, tmp_path) -> None:
    def lose(document: dict[str, Any]) -> None:
        document["model"]["vocab"]["<|vision_start|>"] = document["model"]["vocab"].pop("zz", 5116)

    tokenizer_change(lose)(base)
    job = job_of(base, None, tmp_path, ("f16",))
    (warning,) = job.warnings
    assert warning.code == "tokenizer-lost-specials" and "<|vision_start|>" in warning.what


def test_scales_are_pefts() -> None:
    config = {"r": 8, "lora_alpha": 16, "rank_pattern": {"gate_proj": 16}, "alpha_pattern": {r"layers\.1\.mlp\..*": 4}}
    module = "model.layers.1.mlp.gate_proj"
    assert weights.rank_and_scale(config, module) == (16, 4 / 16)
    assert weights.rank_and_scale(config | {"use_rslora": True}, module) == (16, 4 / 4)
    assert weights.rank_and_scale(config, "model.layers.11.mlp.up_proj") == (8, 16 / 8)
