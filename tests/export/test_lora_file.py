"""The adapter alone as a GGUF file: llama.cpp with it on the base predicts what PEFT does, rsLoRA and patterns included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from exports import TINY, Expected, edit, read_model, request, silent

from fasttune.console import FasttuneError
from fasttune.export import export, kept, llama, lora_file
from fasttune.export.artifact import read_document


@pytest.fixture(scope="module")
def out(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lora/ of the adapter of plain PEFT: rsLoRA, with patterns of ranks and alphas."""
    folder = tmp_path_factory.mktemp("lora")
    assert export(request(folder, material / "adapter", types=(), adapter_file=True), silent) == []
    return folder


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys, tensors) of a GGUF file."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return keys, {tensor.name: tensor.data for tensor in reader.tensors}


def test_llama_cpp_with_the_adapter_predicts_what_peft_does(
    material: Path, out: Path, tmp_path: Path, expected: Expected
) -> None:
    """As `llama-cli --model base --lora adapter` does it; the base is exported by itself."""
    export(request(tmp_path, types=("f16",)), silent)
    ids = expected["ids"].tolist()
    path = out / "lora" / "linzhi-LoRA.gguf"
    with llama.open_gguf(tmp_path / "linzhi-F16.gguf", 512, lora=path) as model:
        logits = model.logits(ids, last=len(ids))
    assert kept.kl_rows(expected["adapted"], logits).mean() < 1e-4
    assert (expected["adapted"].argmax(axis=1) == logits.argmax(axis=1)).all()
    assert kept.kl_rows(expected["base"], logits).mean() > 0.01


def test_only_the_adapter_and_its_document_stay(out: Path) -> None:
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"linzhi-LoRA.gguf", "linzhi-LoRA.json"}
    document = read_document(out / "lora" / "linzhi-LoRA.gguf")
    assert document.type == "lora" and 0 <= document.checks["kl_mean"] < 1e-3


def test_keys_and_tensors_are_those_of_llama_cpps_converter(material: Path, out: Path) -> None:
    keys, tensors = contents(out / "lora" / "linzhi-LoRA.gguf")
    _base, loras = read_model(material / "adapter")
    assert keys == {
        "general.architecture": "qwen2", "general.type": "adapter", "general.name": "linzhi", "general.file_type": 0,
        "general.quantization_version": 2, "adapter.type": "lora",
        "adapter.lora.alpha": pytest.approx(16 * 8**0.5),  # rsLoRA: alpha / sqrt(r), times r
    }  # fmt: skip
    assert len(tensors) == 2 * len(loras) == 56
    plain = loras["model.layers.0.self_attn.k_proj.weight"]
    assert np.array_equal(tensors["blk.0.attn_k.weight.lora_a"], plain.a.whole())
    assert np.array_equal(tensors["blk.0.attn_k.weight.lora_b"], plain.b.whole())  # nothing multiplied in
    pattern = loras["model.layers.2.mlp.down_proj.weight"]  # alpha 5 in place of 16
    assert np.allclose(tensors["blk.2.ffn_down.weight.lora_b"], pattern.b.whole() * np.float32(5 / 16))


def test_the_same_file_is_used_as_it_is_and_another_never_replaced(material: Path, out: Path) -> None:
    path = out / "lora" / "linzhi-LoRA.gguf"
    before = path.stat().st_mtime_ns
    again = request(out, material / "adapter", types=(), adapter_file=True)
    export(again, silent)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(FasttuneError, match="already exists and was made from something else"):
        export(request(out, material / "adapter", types=(), adapter_file=True, run_id="x/001-fresh"), silent)


def test_a_file_that_is_not_the_adapter_is_refused(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpha as llama.cpp's own converter writes it, which is wrong for rsLoRA."""
    monkeypatch.setattr(lora_file, "shared_alpha", lambda loras: 16.0)
    monkeypatch.setattr(lora_file, "scaled_b", lambda lora, alpha: lora.b.whole())
    with pytest.raises(FasttuneError, match="predicts something else than was trained") as caught:
        export(request(tmp_path, material / "adapter", types=(), adapter_file=True), silent)
    assert caught.value.findings[0].code == "gguf-too-far"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_weights_that_are_not_finite_leave_nothing(adapter: Path, tmp_path: Path) -> None:
    edit(adapter / "adapter_config.json", lora_alpha=float("inf"))
    with pytest.raises(FasttuneError, match="not finite"):
        export(request(tmp_path / "out", adapter, types=(), adapter_file=True), silent)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_base_without_an_adapter_has_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FasttuneError, match="there is no adapter"):
        export(request(tmp_path / "out", types=(), adapter_file=True), silent)
    assert TINY.is_dir() and not (tmp_path / "out").exists()
