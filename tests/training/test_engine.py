"""Packed rows compute what one sample a row computes: attention, loss and every gradient, in float64 on a real
Qwen2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from samples import random_examples
from transformers import AttentionInterface, Qwen2Config, Qwen2ForCausalLM

from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.training import engine, packing
from fasttune.training.engine import Batch


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, spans: Any = None, **_more: Any
) -> tuple[torch.Tensor, None]:
    return engine.attention(query, key, value, spans, scaling), None


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
    attention: str = "packed-under-test",
    checkpointing: bool = False,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[float, int, list[torch.Tensor]]:
    """Loss and gradients of one step through collate, attention and loss."""
    model = small_model(attention, checkpointing=checkpointing)
    step = packing.plan_step(examples, range(len(examples)), budget)
    total, hits = 0.0, 0
    for row in step.rows:
        batch = change(engine.collate(row, examples))
        layout: dict[str, Any] = {"spans": batch.spans}
        if attention == "sdpa":
            layout = {"attention_mask": engine.dense_mask(batch.spans, batch.input_ids.shape[1])}
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
    plain_loss, plain_hits, plain = packed(examples, 4096, attention="sdpa")
    assert loss == pytest.approx(plain_loss, rel=1e-10)
    assert hits == plain_hits
    assert difference(gradients, plain) < 1e-9


def shift_labels(batch: Batch) -> Batch:
    return Batch(batch.input_ids, batch.position_ids, batch.label_positions, batch.labels.roll(1), batch.spans)


def shift_positions(batch: Batch) -> Batch:
    return Batch(batch.input_ids, batch.position_ids, batch.label_positions - 1, batch.labels, batch.spans)


def restart_positions(batch: Batch) -> Batch:
    """Positions of suffixes from 0: what a packer forgets that does not know prefixes."""
    positions = batch.position_ids.clone()
    for span in batch.spans:
        for begin, end in span.suffixes:
            positions[0, begin:end] = torch.arange(end - begin)
    return Batch(batch.input_ids, positions, batch.label_positions, batch.labels, batch.spans)


def one_token_less_prefix(batch: Batch) -> Batch:
    """Suffixes that do not see the last prefix token."""
    spans = tuple(
        engine.Span(s.start, max(s.start, s.prefix_end - 1), ((s.prefix_end - 1, s.prefix_end), *s.suffixes))
        if s.prefix_end - s.start > 1
        else s
        for s in batch.spans
    )
    return Batch(batch.input_ids, batch.position_ids, batch.label_positions, batch.labels, spans)


@pytest.mark.parametrize("change", [shift_labels, shift_positions, restart_positions, one_token_less_prefix])
def test_off_by_one_is_noticed(change: Callable[[Batch], Batch]) -> None:
    examples = random_examples(1, count=9)
    assert any(group.prefix > 1 for row in packing.plan_step(examples, range(9), 4096).rows for group in row.groups)
    _loss, _hits, gradients = packed(examples, 4096, change=change)
    _expected_loss, _expected_hits, expected = reference(examples)
    assert difference(gradients, expected) > 1e-3


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("tile", [1, 2 * 7 * 5, 2**20])  # scores of one query, of five with a rest, of all
def test_merged_attention_equals_the_masked_one(
    monkeypatch: pytest.MonkeyPatch,
    tile: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Two groups, one without a prefix, four query heads on two key heads: output and all three gradients."""
    monkeypatch.setattr(engine, "SCORE_ELEMENTS", tile)
    torch.manual_seed(0)
    spans = (engine.Span(0, 7, ((7, 12), (12, 13), (13, 21))), engine.Span(21, 21, ((21, 30),)))
    shapes = [(1, 4, 30, 16), (1, 2, 30, 16), (1, 2, 30, 16)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    upstream = torch.randn(1, 30, 4, 16, dtype=dtype)
    query, key, value = inputs
    out = engine.attention(query, key, value, spans, 0.25)
    found = [out, *torch.autograd.grad(out, inputs, upstream)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    mask = engine.dense_mask(spans, 30)
    plain = torch.nn.functional.scaled_dot_product_attention(*exact, mask, scale=0.25, enable_gqa=True).transpose(1, 2)
    expected = [plain, *torch.autograd.grad(plain, exact, upstream.double())]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


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
