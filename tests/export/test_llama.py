"""Answers of a GGUF file by llama.cpp: those of transformers, seeded, in whole characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exports import TINY, Expected

from fasttune.console import FasttuneError
from fasttune.export import Artifact, chatml, llama


def test_greedy_answer_is_that_of_transformers(exported: dict[str, Artifact], expected: Expected) -> None:
    answer = chatml.load_tokenizer(TINY).decode(expected["answer"], skip_special_tokens=True)
    prompt = expected["prompt"].tolist()
    with llama.open_gguf(exported["f16"].path, 512) as model:
        pieces = list(llama.stream(model, prompt, llama.Sampling(max_new_tokens=40)))
        assert "".join(pieces) == answer and len(pieces) > 1
        assert llama.answer(model, prompt, llama.Sampling(max_new_tokens=2)) == "".join(pieces[:2])


def test_cache_of_an_earlier_prompt_changes_nothing(exported: dict[str, Artifact], expected: Expected) -> None:
    ids = expected["ids"].tolist()
    with llama.open_gguf(exported["f16"].path, 512) as model:
        fresh = model.logits(ids, last=3)
        model.logits([*ids[:20], *ids[30:]])
        again = model.logits(ids, last=3)
    assert np.abs(fresh - again).max() < 1e-2 and (fresh.argmax(axis=1) == again.argmax(axis=1)).all()


def test_sequence_longer_than_a_batch(
    exported: dict[str, Artifact], expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last positions lie in two batches."""
    ids = expected["ids"].tolist()
    with llama.open_gguf(exported["f16"].path, 512) as model:
        whole = model.logits(ids, last=20)
    monkeypatch.setattr(llama, "BATCH_TOKENS", 16)
    with llama.open_gguf(exported["f16"].path, 512) as model:
        batched = model.logits(ids, last=20)
    assert batched.shape == (20, 5120) and np.abs(whole - batched).max() < 1e-2


def test_sampling_is_seeded_and_varies(exported: dict[str, Artifact], expected: Expected) -> None:
    prompt = expected["prompt"].tolist()
    with llama.open_gguf(exported["q4_k_m"].path, 512) as model:

        def drawn(seed: int) -> str:
            return llama.answer(model, prompt, llama.Sampling(8, temperature=1.5, top_p=1.0, seed=seed))

        assert drawn(1) == drawn(1)
        assert len({drawn(seed) for seed in range(3)}) > 1


def test_top_p_leaves_out_improbable_tokens() -> None:
    logits = np.log(np.array([0.05, 0.6, 0.35], dtype=np.float32))
    random = np.random.default_rng(0)
    sampling = llama.Sampling(1, temperature=1.0, top_p=0.8)
    tokens = [llama.sample_token(logits, sampling, random) for _number in range(200)]
    assert set(tokens) == {1, 2} and 100 < tokens.count(1) < 150
    assert llama.sample_token(logits, llama.Sampling(1), random) == 1


def test_characters_come_whole_out_of_split_bytes(exported: dict[str, Artifact]) -> None:
    text = "🙂龘 é 林栀"
    assert "".join(llama.decode_utf8(bytes([byte]) for byte in text.encode())) == text
    assert list(llama.decode_utf8([b"a\xf0\x9f", b"\x99\x82b", b"\xe6\x9e"])) == ["a", "🙂b", "", "�"]
    with llama.open_gguf(exported["f16"].path, 64) as model:
        ids = model.tokenize(text)
        assert len(ids) > len(text) / 2
        assert "".join(llama.decode_utf8(map(model.token_bytes, ids))) == text


def test_prompt_that_fills_the_context_is_an_error(exported: dict[str, Artifact]) -> None:
    with llama.open_gguf(exported["f16"].path, 256) as model, pytest.raises(FasttuneError, match="the prompt has 256"):
        llama.answer(model, [1] * 256, llama.Sampling(4))


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(FasttuneError, match=r"llama\.cpp can't load it: .") as caught, \
            llama.open_gguf(tmp_path / "x.gguf", 64):  # fmt: skip
        pass
    assert caught.value.findings[0].code == "gguf-cannot-load"


def test_a_repeated_token_becomes_less_likely_as_llama_cpp_does_it() -> None:
    logits = np.array([2.0, -1.0, 4.0, 1.0], dtype=np.float32)
    assert llama.penalized(logits, [0, 1, 1], 2.0).tolist() == [1.0, -2.0, 4.0, 1.0]
    assert llama.penalized(logits, [0, 1], 1.0) is logits
    old = [2, *[3] * llama.REPEAT_LAST_N]  # the first is too long ago
    assert llama.penalized(logits, old, 2.0).tolist() == [2.0, -1.0, 4.0, 0.5]


def test_top_k_takes_the_likeliest_alone() -> None:
    logits = np.array([1.0, 5.0, 4.9, 4.8], dtype=np.float32)
    random = np.random.default_rng(0)
    sampling = llama.Sampling(1, temperature=2.0, top_p=1.0, top_k=2)
    assert {llama.sample_token(logits, sampling, random) for _number in range(100)} == {1, 2}
    everything = llama.Sampling(1, temperature=2.0, top_p=1.0)
    assert {llama.sample_token(logits, everything, random) for _number in range(300)} == {0, 1, 2, 3}
