"""The tensor functions that differ from stock training: collate, attention, linear with LoRA, loss. Pure torch, runs
anywhere.

    row of two groups       [P P P | a a | b b b | c c c c]      groups: (prefix 3: a, b), (prefix 0: c)
    position_ids             0 1 2   3 4   3 4 5   0 1 2 3
    who attends to what      P: itself, causally   a, b: P and itself, causally   c: itself, causally

Three of them have a backward pass written by hand, because autograd would keep or copy what isn't needed:

- `PackedAttention` attends piece by piece and merges by log-sum-exp; `dense_mask` describes the same layout plainly and
  is what the tests compare with.
- `LoraLinear` adds the adapter into the base's output in place.
- `SupervisedCrossEntropy` walks the vocabulary in tiles, so full logits exist nowhere.

What this file does not know: Unsloth, PEFT, files, chat templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from fasttune.packing import Row
from fasttune.render import Example

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Logits at a time: on a CPU what stays in its cache while softmax passes over it; a card wants few, large launches.
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}


@dataclass(frozen=True)
class Span:
    """Where one group lies in a row: its shared prefix [start, prefix_end) and its suffixes [start, end)."""

    start: int
    prefix_end: int
    suffixes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """One row as tensors. T tokens, N supervised ones.

    input_ids, position_ids: [1, T]. predictors: [N] positions whose hidden state predicts; targets: [N] token ids.
    spans: the layout, for the attention.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    spans: tuple[Span, ...]

    def to(self, device: torch.device) -> Batch:
        """The same row on a device."""
        return Batch(
            moved(self.input_ids, device),
            moved(self.position_ids, device),
            moved(self.predictors, device),
            moved(self.targets, device),
            self.spans,
        )


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device. A card takes it from pinned memory: from other memory a copy waits until all
    that was asked of the card before is done."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def collate(row: Row, examples: Sequence[Example]) -> Batch:
    """Lay a planned row out as tensors."""
    tokens: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    spans: list[Span] = []
    for group in row.groups:
        start = len(tokens)
        tokens += examples[group.members[0]].tokens[: group.prefix]
        positions += range(group.prefix)
        suffixes = []
        for member in group.members:
            example = examples[member]
            begin = len(tokens)
            shift = begin - group.prefix  # row index of a token = its index in the sample + shift
            tokens += example.tokens[group.prefix :]
            positions += range(group.prefix, len(example.tokens))
            for learn_start, learn_end in example.learn:
                predictors += range(learn_start - 1 + shift, learn_end - 1 + shift)
                targets += example.tokens[learn_start:learn_end]
            suffixes.append((begin, len(tokens)))
        spans.append(Span(start, start + group.prefix, tuple(suffixes)))
    return Batch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        spans=tuple(spans),
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Sequence[Span], scaling: float
) -> torch.Tensor:
    """Attention over one row on a CPU: prefixes causally, each suffix over its group's prefix and itself.

    query [1, H, T, D], key and value [1, H_kv, T, D] with H a multiple of H_kv; returns [1, T, H, D].
    """
    return PackedAttention.apply(query, key, value, tuple(spans), scaling)


@dataclass(frozen=True)
class Piece:
    """Queries [start, end) of a row that look at keys [key_start, key_end): causally at themselves, or at all of a
    prefix."""

    start: int
    end: int
    key_start: int
    key_end: int
    causal: bool

    @property
    def queries(self) -> slice:
        return slice(self.start, self.end)

    @property
    def keys(self) -> slice:
        return slice(self.key_start, self.key_end)


def pieces(spans: Sequence[Span]) -> list[Piece]:
    """Causal pieces that cover every query once, then for each prefix its suffixes, all in one piece."""
    own = [(span.start, span.prefix_end) for span in spans] + [suffix for span in spans for suffix in span.suffixes]
    causal = [Piece(start, end, start, end, True) for start, end in own if end > start]
    shared = [span for span in spans if span.prefix_end > span.start]
    return causal + [Piece(s.prefix_end, s.suffixes[-1][1], s.start, s.prefix_end, False) for s in shared]


class PackedAttention(torch.autograd.Function):
    """Attention in pieces, each by torch's flash kernel for CPUs, merged exactly by their log-sum-exp.

    A query's softmax over prefix and own tokens is the mean of the softmaxes over either part, weighted by exp(lse).
    Backward, each part takes the merged output and log-sum-exp: then its probabilities are those of the whole
    (FlashAttention-2, arXiv 2307.08691, section 3.1). So no key is copied and no mask is built, whatever the lengths.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: tuple[Span, ...], scaling: float
    ) -> torch.Tensor:
        _one, heads, length, width = query.shape
        ctx.dtype = query.dtype
        query, key, value = precise(query), precise(key), precise(value)  # the kernel is slower in 16 bit
        output = query.new_empty(1, length, heads, width)
        lse = query.new_empty(1, heads, length)
        for piece in pieces(spans):
            q, part = piece.queries, (query[:, :, piece.queries], key[:, :, piece.keys], value[:, :, piece.keys])
            found, found_lse = flash_attention(*part, 0.0, piece.causal, scale=scaling)
            found = found.transpose(1, 2)
            if not piece.causal:
                merged = torch.logaddexp(lse[:, :, q], found_lse)
                found = found * weight_of(found_lse, merged) + output[:, q] * weight_of(lse[:, :, q], merged)
                found_lse = merged
            output[:, q], lse[:, :, q] = found, found_lse
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return output.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        upstream, output = precise(output_gradients[0]).transpose(1, 2), output.transpose(1, 2)
        gradients = [torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)]
        for piece in pieces(ctx.spans):
            q, k = piece.queries, piece.keys
            part = (query[:, :, q], key[:, :, k], value[:, :, k], output[:, :, q], lse[:, :, q])
            found = flash_attention_backward(upstream[:, :, q], *part, 0.0, piece.causal, scale=ctx.scaling)
            for total, where, gradient in zip(gradients, (q, k, k), found, strict=True):
                total[:, :, where] += gradient
        return (*(gradient.to(ctx.dtype) for gradient in gradients), None, None)


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: what sums and exponentials are taken in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def weight_of(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The share [1, T, H, 1] of a softmax's mass that lies in one part; both log-sum-exps are [1, H, T]."""
    return (part - whole).exp().transpose(1, 2)[..., None]


def dense_mask(spans: Sequence[Span], length: int) -> torch.Tensor:
    """The same layout as a plain mask [1, 1, T, T], true where a query (row) may see a key (column): the reference."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for span in spans:
        for q in range(span.start, span.prefix_end):
            mask[q, span.start : q + 1] = True
        for begin, end in span.suffixes:
            for q in range(begin, end):
                mask[q, span.start : span.prefix_end] = True
                mask[q, begin : q + 1] = True
    return mask[None, None]


def matmul(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows [T, K] times weight [N, K] transposed.

    In float32 on a CPU by oneDNN instead of MKL, which torch takes by itself: MKL has no AVX-512 for processors that
    are not Intel's (measured on a Zen 5 with 2 cores: 210 GFLOP/s, oneDNN 480).
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


class LoraLinear(torch.autograd.Function):
    """x [..., K] to x W^T + bias + scaling (x A^T) B^T, with W [N, K] frozen, A [r, K] and B [N, r] trained."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        down = matmul(rows, a.to(weight.dtype))
        out = matmul(rows, weight, bias).addmm_(down, b.to(weight.dtype).T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, down)
        ctx.shape, ctx.dtype, ctx.scaling = x.shape, x.dtype, scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, down = ctx.saved_tensors
        upstream = output_gradients[0].reshape(-1, weight.shape[0]).to(weight.dtype)
        up = matmul(upstream, b.to(weight.dtype).T).mul_(ctx.scaling)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = matmul(upstream, weight.T).addmm_(up, a.to(weight.dtype)).view(ctx.shape).to(ctx.dtype)
        for_a = matmul(up.T, rows.T).to(a.dtype)
        for_b = (
            matmul(down.T, upstream.T).T.to(b.dtype).mul(ctx.scaling)
        )  # in this order oneDNN is several times faster
        return for_x, None, None, for_a, for_b, None


class SupervisedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over supervised positions, and top-1 hits, without ever holding all logits.

    The head is frozen in LoRA training, so the gradient with respect to the hidden states, softmax(logits) head -
    head[target], is formed in the forward pass and only scaled in the backward pass. It is summed over tiles of the
    vocabulary under a running maximum (online softmax, arXiv 1805.02867), so every logit is computed once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wanted = precise(head[targets])
        highest = wanted.new_full((len(hidden), 1), -torch.inf)
        sums, first = torch.zeros_like(highest), torch.zeros_like(targets)[:, None]
        gradient = torch.zeros_like(wanted) if ctx.needs_input_grad[0] else None
        columns = max(1, TILE_ELEMENTS[hidden.device.type] // max(1, len(hidden)))
        for start in range(0, len(head), columns):
            tile = head[start : start + columns]
            logits = precise(matmul(hidden, tile))
            top, where = logits.max(dim=1, keepdim=True)
            first = torch.where(top > highest, where + start, first)
            before, highest = highest, torch.maximum(highest, top)
            shrink = (before - highest).exp_()
            weights = logits.sub_(highest).exp_()
            sums = sums * shrink + weights.sum(dim=1, keepdim=True)
            if gradient is not None:
                gradient = gradient.mul_(shrink).add_(matmul(weights.to(hidden.dtype), tile.T))
        total = (highest + sums.log() - (hidden * wanted).sum(dim=1, keepdim=True)).sum()
        hits = (first == targets[:, None]).sum()
        ctx.save_for_backward(None if gradient is None else gradient.div_(sums).sub_(wanted).to(hidden.dtype))
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * output_gradients[0].to(gradient.dtype), None, None


def loss(hidden: torch.Tensor, head: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of a row's supervised tokens, and how many were predicted first.

    hidden [1, T, C] are the states after the final norm, head [V, C] the frozen output embedding. Divide by the step's
    supervised tokens before backward: then rows add up to the step's mean, however it was cut (E1).
    """
    predicting = hidden[0].index_select(0, batch.predictors)
    total, hits = SupervisedCrossEntropy.apply(predicting, head, batch.targets)
    return total, hits
