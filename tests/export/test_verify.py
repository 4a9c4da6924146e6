"""A file that is not the trained model is refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from exports import SYSTEM, TINY, read_model, request, silent

from fasttune.console import FasttuneError
from fasttune.export import Artifact, chatml, export, kept, verify


def test_the_model_without_its_adapter_is_refused(trained: kept.Reference, tmp_path: Path) -> None:
    for quantization in ("f16", "q8_0"):
        (base,) = export(request(tmp_path, types=(quantization,)), silent)
        with pytest.raises(FasttuneError, match=r"the adapter is not in the file: KL") as caught:
            verify.check_file(base.path, quantization, trained)
        assert caught.value.findings[0].code == "adapter-not-in-file"


def test_another_base_is_refused(exported: dict[str, Artifact], material: Path, tmp_path: Path) -> None:
    """The file of the right adapter on weights that are not those of the run."""
    base, loras = read_model(material / "adapter")
    swapped = {**base.tensors, "model.layers.0.mlp.up_proj.weight": base.tensors["model.layers.1.mlp.up_proj.weight"]}
    passage = verify.check_passage(base, chatml.load_tokenizer(TINY), SYSTEM)
    other = kept.compute_reference(replace(base, tensors=swapped), loras, [passage])
    with pytest.raises(FasttuneError) as caught:
        verify.check_file(exported["f16"].path, "f16", other)
    assert caught.value.findings[0].code == "gguf-too-far" and "f16 is not the trained model" in str(caught.value)


def test_damaged_weights_are_refused(exported: dict[str, Artifact], trained: kept.Reference, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    content = bytearray(exported["f16"].path.read_bytes())
    content[-1_000_000:-900_000] = os.urandom(100_000)
    damaged.write_bytes(content)
    with pytest.raises(FasttuneError) as caught:
        verify.check_file(damaged, "f16", trained)
    assert caught.value.findings[0].code in ("gguf-too-far", "gguf-not-finite")


@pytest.mark.parametrize("keep", [0, 3, 1000, -4096])
def test_truncated_file_is_refused(
    exported: dict[str, Artifact], trained: kept.Reference, tmp_path: Path, keep: int
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported["q8_0"].path.read_bytes()[:keep])
    with pytest.raises(FasttuneError, match=r"llama\.cpp can't load it: ."):
        verify.check_file(cut, "q8_0", trained)


def test_other_tokens_are_refused(exported: dict[str, Artifact], tmp_path: Path) -> None:
    """A file in which two tokens have changed places."""
    path = Path(shutil.copy(exported["q8_0"].path, tmp_path / "swapped.gguf"))
    field = gguf.GGUFReader(path, "r+").fields["tokenizer.ggml.tokens"]
    one, other = (field.parts[field.data[field.contents().index(token)]] for token in "ab")
    one[:], other[:] = other.copy(), one.copy()
    one.base.flush()
    with pytest.raises(FasttuneError, match=r"llama\.cpp tokenizes .* differently from training") as caught:
        verify.check_tokens(path, chatml.load_tokenizer(TINY))
    assert caught.value.findings[0].code == "tokens-differ"


def test_long_system_prompt_leaves_the_end_of_the_conversation() -> None:
    base, tokenizer = read_model(None)[0], chatml.load_tokenizer(TINY)
    passage = verify.check_passage(base, tokenizer, SYSTEM * 100)
    assert len(passage.tokens) == verify.MAX_TOKENS and len(passage.labels) == verify.POSITIONS
    assert passage.labels == verify.check_passage(base, tokenizer, None).labels
