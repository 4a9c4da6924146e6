"""Which of a run's conversations are measured: the same ones each time, within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from exports import TINY, read_model

from fasttune.data.dataset import Message, Sample
from fasttune.data.tokenize import Example
from fasttune.export import chatml, conversations


def samples(count: int, words: int = 3) -> tuple[Sample, ...]:
    return tuple(
        Sample(f"a.jsonl:{number}", (
            Message("system", "你是林栀。"), Message("user", f"问题{number}"), Message("assistant", "好" * words)
        ))
        for number in range(count)
    )  # fmt: skip


def test_sixteen_at_most_evenly_from_all() -> None:
    tokenizer, shape = chatml.load_tokenizer(TINY), read_model(None)[0].shape
    chosen = conversations.choose(samples(100), tokenizer, "assistant", shape)
    assert 8 < len(chosen) <= conversations.MOST_CONVERSATIONS
    assert chosen == conversations.choose(samples(100), tokenizer, "assistant", shape)
    assert len(set(chosen)) == len(chosen)
    text = tokenizer.decode(chosen[0].labels)
    assert text.startswith("好好好") and "<|im_end|>" in text  # the answer with its end, and nothing else
    assert conversations.choose((), tokenizer, "assistant", shape) == ()


def test_tokens_and_supervised_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, shape = chatml.load_tokenizer(TINY), read_model(None)[0].shape
    monkeypatch.setattr(conversations, "MOST_SUPERVISED", 50)
    chosen = conversations.choose(samples(16, words=40), tokenizer, "assistant", shape)
    assert sum(len(one.labels) for one in chosen) == 50
    monkeypatch.setattr(conversations, "MOST_TOKENS", 90)
    chosen = conversations.choose(samples(16, words=40), tokenizer, "assistant", shape)
    shared = len(chosen[0].tokens)
    assert shared <= 90 and all(len(one.tokens) <= shape.context_length for one in chosen)


def test_an_example_is_cut_after_its_last_supervised_token() -> None:
    example = Example("a", tuple(range(20)), ((3, 6), (10, 15)))
    whole = conversations.cut(example, 100, 100)
    assert whole is not None and whole.tokens == tuple(range(15)) and whole.spans == ((3, 6), (10, 15))
    part = conversations.cut(example, 12, 100)
    assert part is not None and part.spans == ((3, 6), (10, 12)) and part.labels == (3, 4, 5, 10, 11)
    assert conversations.cut(example, 3, 100) is None and conversations.cut(example, 100, 0) is None


def test_a_large_base_computes_fewer_tokens() -> None:
    tiny = read_model(None)[0].shape
    three_b = replace(tiny, hidden_size=2048, intermediate_size=11008, layers=36, heads=16, kv_heads=2)
    assert conversations.tokens_for(tiny) == conversations.MOST_TOKENS
    assert conversations.tokens_for(three_b) == conversations.FEWEST_TOKENS
