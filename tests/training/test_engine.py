"""Packed rows compute what one sample a row computes: loss and every gradient, in float64 on a real Qwen2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import random_examples
from transformers import AttentionInterface, Qwen2Config, Qwen2ForCausalLM

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.training import attention, engine, packing
from fasttune.training.engine import Batch


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, layout: Any, **_more: Any
) -> tuple[torch.Tensor, None]:
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return attention.packed_attention(query, key, value, layout, scaling)[None], None


AttentionInterface.register("packed-under-test", attend)


def small_model(attention: str, *, checkpointing: bool = False) -> Qwen2ForCausalLM:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=200, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = attention
    model = Qwen2ForCausalLM(config).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.lm_head.weight.requires_grad_(False)  # tied, frozen: as in LoRA training
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def packed(
    examples: Sequence[Example],
    budget: int,
    *,
    implementation: str = "packed-under-test",
    checkpointing: bool = False,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[float, int, list[torch.Tensor]]:
    """Loss and gradients of one step through collate, attention and loss."""
    model = small_model(implementation, checkpointing=checkpointing)
    step = packing.plan_step(examples, range(len(examples)), budget)
    total, hits = 0.0, 0
    for row in step.rows:
        batch = change(engine.collate(row, examples))
        layout: dict[str, Any] = {"layout": batch.layout}
        if implementation == "sdpa":
            layout = {"attention_mask": attention.dense_mask(batch.layout)}
        hidden = model.model(batch.input_ids, position_ids=batch.position_ids, use_cache=False, **layout)[0]
        loss, top1 = engine.loss(hidden, model.lm_head.weight, batch)
        (loss / step.supervised).backward()
        total, hits = total + loss.item() / step.supervised, hits + int(top1)
    return total, hits, [p.grad for p in model.parameters() if p.grad is not None]


def reference(examples: Sequence[Example]) -> tuple[float, int, list[torch.Tensor]]:
    """The same by stock transformers, one sample a forward pass, its own labels and shift."""
    model = small_model("sdpa")  # eager takes its softmax in float32
    supervised = sum(map(batches.supervised_tokens, examples))
    total, hits = 0.0, 0
    for example in examples:
        labels = torch.full((1, len(example.tokens)), -100)
        for start, end in example.supervised:
            labels[0, start:end] = torch.tensor(example.tokens[start:end])
        logits = model(torch.tensor([example.tokens]), use_cache=False).logits[:, :-1]
        shifted = labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten(), reduction="sum") / supervised
        loss.backward()
        total, hits = total + loss.item(), hits + int((logits.argmax(-1) == shifted).sum())
    return total, hits, [p.grad for p in model.parameters() if p.grad is not None]


def difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Largest gradient difference relative to the largest gradient."""
    assert len(one) == len(other) > 0
    largest = max(gradient.abs().max() for gradient in other)
    return float(max((a - b).abs().max() for a, b in zip(one, other, strict=True)) / largest)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("budget", [0, 30, 70, 4096])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_packed_rows_equal_single_samples(seed: int, budget: int, checkpointing: bool) -> None:
    examples = random_examples(seed, count=9)
    loss, hits, gradients = packed(examples, budget, checkpointing=checkpointing)
    expected_loss, expected_hits, expected = reference(examples)
    assert loss == pytest.approx(expected_loss, rel=1e-8)
    assert hits == expected_hits
    assert difference(gradients, expected) < 1e-8


@pytest.mark.parametrize("seed", [1, 2])
def test_block_attention_equals_the_dense_mask(seed: int) -> None:
    examples = random_examples(seed, count=9)
    loss, hits, gradients = packed(examples, 4096)
    plain_loss, plain_hits, plain = packed(examples, 4096, implementation="sdpa")
    assert loss == pytest.approx(plain_loss, rel=1e-10)
    assert hits == plain_hits
    assert difference(gradients, plain) < 1e-9


def shift_labels(batch: Batch) -> Batch:
    return replace(batch, labels=batch.labels.roll(1))


def shift_positions(batch: Batch) -> Batch:
    return replace(batch, label_positions=batch.label_positions - 1)


def restart_positions(batch: Batch) -> Batch:
    """Positions of suffixes from 0: what a packer forgets that does not know prefixes."""
    positions = batch.position_ids.clone()
    for q, _k in batch.layout.own.slices():
        positions[0, q] = torch.arange(q.stop - q.start)
    return replace(batch, position_ids=positions)


def one_token_less_prefix(batch: Batch) -> Batch:
    """Suffixes that do not see the last token of their group's prefix, but another group's."""
    layout = batch.layout
    assert layout.shared is not None and layout.keys.stop > 1
    starts = layout.shared.key_starts - torch.tensor([0, *[1] * (len(layout.shared.key_starts) - 1)])
    return replace(batch, layout=replace(layout, shared=replace(layout.shared, key_starts=starts)))


@pytest.mark.parametrize("change", [shift_labels, shift_positions, restart_positions, one_token_less_prefix])
def test_off_by_one_is_noticed(change: Callable[[Batch], Batch]) -> None:
    examples = random_examples(1, count=9)
    assert any(group.prefix > 1 for row in packing.plan_step(examples, range(9), 4096).rows for group in row.groups)
    _loss, _hits, gradients = packed(examples, 4096, change=change)
    _expected_loss, _expected_hits, expected = reference(examples)
    assert difference(gradients, expected) > 1e-3


def test_a_refused_pin_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """WSL2 has little pinned memory; rows that are made smaller for it would be cut for ever."""

    def refuse(_tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    tensor = torch.arange(3)
    assert engine.pinned(tensor) is tensor


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_a_padded_row_computes_the_same(multiple: int) -> None:
    examples = random_examples(3, count=9)
    expected_loss, expected_hits, expected = packed(examples, 4096)
    loss, hits, gradients = packed(examples, 4096, change=lambda batch: engine.pad_row(batch, multiple))
    (row,) = packing.plan_step(examples, range(9), 4096).rows
    length = engine.pad_row(engine.collate(row, examples), multiple).input_ids.shape[1]
    assert length % multiple == 0 and row.tokens <= length < row.tokens + multiple
    assert loss == pytest.approx(expected_loss, rel=1e-12) and hits == expected_hits
    assert difference(gradients, expected) < 1e-12
