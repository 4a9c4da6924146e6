"""The GGUF files hold the merged model, in the layout of llama.cpp's converter and quantizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from exports import (
    LORA_NAME,
    SYSTEM,
    TINY,
    Expected,
    file_logits,
    lora,
    read_model,
    refusal,
    request,
    silent,
    write_adapter,
)

from fasttune.export import Artifact, export, verify, write
from fasttune.export.weights import Shape, expected_tensors


def keys(reader: Any) -> dict[str, Any]:
    """The keys of a GGUF file with their values, the reader's own left out."""
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def test_f16_is_plain_pefts_merged_model(exported: dict[str, Artifact], expected: Expected) -> None:
    logits = file_logits(exported["f16"].path, expected["ids"])
    trained = verify.divergence(expected["merged"], logits)
    assert trained.kl_mean < 1e-5 and trained.top1 == 1
    assert verify.divergence(expected["base"], logits).kl_mean > 0.01  # the adapter is in it
    assert np.abs(logits - expected["merged"]).max() < 0.05


def test_untied_float32_shards_with_unused_rows(
    material: Path, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verify.THRESHOLDS, "q4_k_m", (5e-2, 0.5))  # a random model is undecided everywhere
    untied = request(tmp_path, base=material / "untied", types=("f16", "q4_k_m"), system=None, num_ctx=512)
    artifacts = export(untied, silent)
    logits = file_logits(tmp_path / "linzhi-F16.gguf", expected["ids"])
    assert verify.divergence(expected["untied"], logits).kl_mean < 1e-5
    tokens = gguf.GGUFReader(tmp_path / "linzhi-F16.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 5200 and tokens[5120] == "[PAD5120]" and tokens[5119] == "<|im_end|>"
    assert artifacts[0].system == "You are a helpful assistant."  # what the template adds by itself


def test_q8_0_has_the_bytes_of_llama_cpps_quantizer(exported: dict[str, Artifact], tmp_path: Path) -> None:
    command = (
        "import sys; from fasttune.export import quantize; quantize.K_TYPES['q8_0'] = 7; quantize.main(*sys.argv[1:])"
    )
    path = tmp_path / "llama_cpp.gguf"
    arguments = [sys.executable, "-c", command, str(exported["f16"].path), str(path), "q8_0"]
    subprocess.run(arguments, check=True, capture_output=True)
    ours, theirs = gguf.GGUFReader(exported["q8_0"].path), gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in theirs.tensors}
    assert len(ours.tensors) == len(tensors) == 50
    for tensor in ours.tensors:
        assert tensor.tensor_type == tensors[tensor.name].tensor_type
        assert np.array_equal(tensor.data, tensors[tensor.name].data)
    assert keys(ours) == keys(theirs)


def test_keys_are_those_of_llama_cpps_converter(exported: dict[str, Artifact]) -> None:
    found = keys(gguf.GGUFReader(exported["f16"].path))
    tokens = found.pop("tokenizer.ggml.tokens")
    types = found.pop("tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 5120 and types.count(3) == 3 and types.count(1) == 5117
    assert len(found.pop("tokenizer.ggml.merges")) > 4000
    assert SYSTEM.split("。")[0].replace("'", "\\'") in found.pop("tokenizer.chat_template")
    assert found.pop("qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert found == {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "linzhi",
        "fasttune.run_id": "linzhi/001-fresh",
        "general.size_label": "4.5M",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "qwen2.block_count": 4,
        "qwen2.context_length": 4096,
        "qwen2.embedding_length": 256,
        "qwen2.feed_forward_length": 768,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def test_tensor_names_are_llama_cpps() -> None:
    shape = Shape(8, 16, 1, 2, 1, 32, 64, 1e4, 1e-6, tied_embeddings=False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
    assert [write.gguf_name(name, names) for name in expected_tensors(shape)] == [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_k.weight",
        "blk.0.attn_k.bias",
        "blk.0.attn_v.weight",
        "blk.0.attn_v.bias",
        "blk.0.attn_output.weight",
        "blk.0.ffn_norm.weight",
        "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",
        "output_norm.weight",
        "output.weight",
    ]
    with pytest.raises(KeyError, match=r"model\.layers\.0\.mlp\.router\.weight"):
        write.gguf_name("model.layers.0.mlp.router.weight", names)


def test_written_bytes_are_those_of_the_tensors(exported: dict[str, Artifact]) -> None:
    shape = read_model(None)[0].shape
    for quantization, encoding in write.WRITTEN_TYPES.items():
        tensors = gguf.GGUFReader(exported[quantization].path).tensors
        assert write.written_bytes(shape, encoding) == sum(int(tensor.n_bytes) for tensor in tensors)


def test_rows_that_blocks_do_not_divide_stay_float16() -> None:
    assert write.tensor_encoding((4, 96), "Q8_0") == "Q8_0"
    assert write.tensor_encoding((4, 100), "Q8_0") == "F16"
    assert write.tensor_encoding((100,), "Q8_0") == "F32"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_weights_that_float16_cannot_hold_are_refused(adapter: Path, tmp_path: Path, value: float) -> None:
    tensors = lora(2)
    tensors[LORA_NAME.format(2, "B")][5, 0] = value
    write_adapter(adapter, tensors)
    (finding,) = refusal(request(tmp_path / "out", adapter, base=TINY, types=("f16",)))
    assert finding.code == "weights-not-finite" and finding.where == "model.layers.2.self_attn.q_proj.weight"
