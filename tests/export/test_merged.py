"""The merged Hugging Face folder holds plain PEFT's merged model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from exports import TINY, Expected, edit, read_model, request, silent

from fasttune.console import FasttuneError
from fasttune.export import export, kept, merged, reference
from fasttune.runs import documents
from fasttune.runs.documents import MergedDocument


@pytest.fixture(scope="module")
def out(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one GGUF file and the merged folder."""
    folder = tmp_path_factory.mktemp("merged")
    export(request(folder, material / "adapter", types=("f16",), keep_merged=True), silent)
    return folder


def test_weights_are_plain_pefts(material: Path, expected: Expected, out: Path) -> None:
    ids = expected["ids"].tolist()
    logits = reference.forward(*read_model(None, out / "merged"), ids, len(ids))
    assert kept.kl_rows(expected["merged"], logits).mean() < 1e-3  # bfloat16, as the base
    theirs, ours = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (TINY, out / "merged"))
    assert ours.keys() == theirs.keys() and all(ours[name].dtype == theirs[name].dtype for name in ours)
    name = "model.layers.0.mlp.down_proj"
    loras = safetensors.torch.load_file(material / "adapter" / "adapter_model.safetensors")
    low_rank = [loras[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA"]
    product = theirs[f"{name}.weight"].float() + 5 / 8**0.5 * (low_rank[0] @ low_rank[1])
    assert (product.bfloat16() == ours[f"{name}.weight"]).float().mean() > 0.999  # torch adds in another order


def test_shards_are_loaded_by_plain_transformers(
    material: Path, expected: Expected, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of more than one shard, as a 3B one is: it predicts what plain PEFT's adapter on the base predicts, and
    holds the very weights of the single file."""
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(merged, "SHARD_BYTES", 2_000_000)
    export(request(tmp_path, material / "adapter", types=(), keep_merged=True), silent)
    shards = sorted((tmp_path / "merged").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3 and all(path.stat().st_size < 3_000_000 for path in shards)  # the embedding alone has 2.6 MB
    weights = {name: weight for path in shards for name, weight in safetensors.torch.load_file(path).items()}
    single = safetensors.torch.load_file(out / "merged" / "model.safetensors")
    assert weights.keys() == single.keys() and all(torch.equal(weights[name], single[name]) for name in single)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(expected["ids"])[None]).logits[0].numpy()
    assert kept.kl_rows(expected["adapted"], logits).mean() < 1e-3  # bfloat16, as the base
    assert kept.kl_rows(expected["base"], logits).mean() > 0.01


def test_folder_loads_in_transformers_and_says_what_it_is(out: Path) -> None:
    names = {path.name for path in (out / "merged").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "merged.json"}
    document = documents.read(out / "merged" / "merged.json", MergedDocument)
    assert (document.run_id, document.base) == ("linzhi/001-fresh", str(TINY))


def test_the_same_folder_is_used_as_it_is(material: Path, out: Path) -> None:
    lines: list[str] = []
    again = request(out, material / "adapter", types=("f16",), keep_merged=True)
    export(again, lines.append)
    assert lines == ["linzhi-F16.gguf already exists"]
    document = out / "merged" / "merged.json"
    fields = json.loads(document.read_text(encoding="utf-8"))
    del fields["format"]  # as written before 0.1.0
    document.write_text(json.dumps(fields), encoding="utf-8")
    export(again, lines.append)
    assert lines == ["linzhi-F16.gguf already exists"] * 2


def test_another_folder_is_never_replaced(material: Path, out: Path) -> None:
    other = request(out, material / "adapter", types=("q8_0",), keep_merged=True, run_id="another/001-fresh")
    with pytest.raises(FasttuneError, match="merged: already exists and was made from something else"):
        export(other, silent)
    edit(out / "merged" / "merged.json", format=99)
    with pytest.raises(FasttuneError, match=r"merged: already exists, without a readable merged\.json") as caught:
        export(request(out, material / "adapter", types=("f16",), keep_merged=True), silent)
    assert "newer fasttune" in caught.value.findings[0].why


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 1.0059, -3.0e38], dtype=np.float32)  # two of them are ties
    found = np.frombuffer(merged.encode(values, "BF16"), dtype="<u2")
    import torch

    rounded = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(found, rounded)
    assert merged.encode(values, "F32") == values.tobytes()
