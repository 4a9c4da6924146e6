"""A file that is not the trained model is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from exports import SYSTEM, TINY, read_model, request, silent

from fasttune.console import FasttuneError
from fasttune.export import Artifact, chatml, export, verify
from fasttune.export.quantize import K_TYPES
from fasttune.export.write import WRITTEN_TYPES


def test_every_type_has_a_threshold() -> None:
    assert verify.THRESHOLDS.keys() == {*WRITTEN_TYPES, *K_TYPES}


def test_the_model_without_its_adapter_is_refused(trained: verify.Reference, tmp_path: Path) -> None:
    (base,) = export(request(tmp_path, types=("q8_0",)), silent)
    with pytest.raises(FasttuneError, match=r"the adapter is not in the file: KL"):
        verify.check_logits(base.path, "q8_0", trained)


def test_damaged_weights_are_refused(exported: dict[str, Artifact], trained: verify.Reference, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    content = bytearray(exported["f16"].path.read_bytes())
    content[-1_000_000:-900_000] = os.urandom(100_000)
    damaged.write_bytes(content)
    with pytest.raises(FasttuneError) as caught:
        verify.check_logits(damaged, "f16", trained)
    assert caught.value.findings[0].code in ("gguf-too-far", "gguf-not-finite")


@pytest.mark.parametrize("keep", [0, 3, 1000, -4096])
def test_truncated_file_is_refused(
    exported: dict[str, Artifact], trained: verify.Reference, tmp_path: Path, keep: int
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported["q8_0"].path.read_bytes()[:keep])
    with pytest.raises(FasttuneError, match=r"llama\.cpp can't load it: ."):
        verify.check_logits(cut, "q8_0", trained)


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


def test_divergence_is_the_kl_of_softmax() -> None:
    one, other = np.log([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), np.log([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    found = verify.divergence((one + 3).astype(np.float32), other.astype(np.float32))
    assert found.kl_mean == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2, rel=1e-5)
    assert (found.positions, found.top1) == (2, 0.5)


def test_long_system_prompt_leaves_the_end_of_the_conversation() -> None:
    base, tokenizer = read_model(None)[0], chatml.load_tokenizer(TINY)
    ids = verify.check_ids(base, tokenizer, SYSTEM * 100)
    assert len(ids) == verify.MAX_TOKENS
    assert ids[-20:] == verify.check_ids(base, tokenizer, None)[-20:]


def test_a_coarse_type_that_rounds_the_training_away_is_said_and_not_refused(
    exported: dict[str, Artifact], trained: verify.Reference, tmp_path: Path
) -> None:
    """As a base on the type's own grid makes it: the file of the base stands for one whose adapter was rounded away."""
    (base,) = export(request(tmp_path, types=("q4_k_m",)), silent)
    figures = verify.check_logits(base.path, "q4_k_m", trained)
    assert figures["kl_from_base"] < verify.LOST * figures["kl_mean"]
    figures["kl_limit"] = figures["kl_mean"] / 2
    lost = verify.type_loss("x.gguf", "q4_k_m", figures)
    assert lost is not None and lost.code == "gguf-loses-training" and "q4_k_m rounds the training away" in lost.what
    kept = verify.check_logits(exported["q4_k_m"].path, "q4_k_m", trained)
    assert verify.type_loss("x.gguf", "q4_k_m", kept) is None
