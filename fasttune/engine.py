"""The three tensor functions that differ from stock training: collate, attention, loss. Pure torch, runs anywhere.

    row of two groups       [P P P | a a | b b b | c c c c]      groups: (prefix 3: a, b), (prefix 0: c)
    position_ids             0 1 2   3 4   3 4 5   0 1 2 3
    who attends to what      P: itself, causally   a, b: P and itself, causally   c: itself, causally

`attention` is the fast way (one scaled-dot-product call a suffix, no T x T mask); `dense_mask` describes the same
layout plainly and is what the tests compare with. The loss projects only the supervised positions onto the
vocabulary, in chunks, and gets the gradient and the top-1 hits from the same pass, so full logits exist nowhere.

What this file does not know: Unsloth, files, chat templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from fasttune.packing import Row
from fasttune.render import Example

# 64 MiB of float32 logits at a time: large enough for full matrix-multiply speed, small beside any model.
LOGITS_CHUNK_ELEMENTS = 16 * 1024 * 1024


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
        """The same row on a device; copies overlap with computation where the host memory is pinned."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.predictors.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.spans,
        )


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
    """Attention over one row: prefixes causally, each suffix over its group's prefix and itself.

    query [1, H, T, D], key and value [1, H_kv, T, D] with H a multiple of H_kv; returns [1, T, H, D].
    """
    output = torch.empty_like(query)
    for span in spans:
        prefix = slice(span.start, span.prefix_end)
        if span.prefix_end > span.start:
            output[:, :, prefix] = sdpa(query[:, :, prefix], key[:, :, prefix], value[:, :, prefix], None, scaling)
        for begin, end in span.suffixes:
            own = slice(begin, end)
            if span.prefix_end == span.start:
                output[:, :, own] = sdpa(query[:, :, own], key[:, :, own], value[:, :, own], None, scaling)
                continue
            keys = torch.cat((key[:, :, prefix], key[:, :, own]), dim=2)
            values = torch.cat((value[:, :, prefix], value[:, :, own]), dim=2)
            mask = suffix_mask(span.prefix_end - span.start, end - begin, query.device)
            output[:, :, own] = sdpa(query[:, :, own], keys, values, mask, scaling)
    return output.transpose(1, 2).contiguous()


def sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """torch's attention with grouped heads; causal where no mask is given."""
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def suffix_mask(prefix: int, length: int, device: torch.device) -> torch.Tensor:
    """[length, prefix + length], true where a suffix token may look: the whole prefix, and itself causally."""
    own = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return torch.cat((torch.ones(length, prefix, dtype=torch.bool, device=device), own), dim=1)


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


class SupervisedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over supervised positions, and top-1 hits, without ever holding all logits.

    The head is frozen in LoRA training, so the gradient with respect to the hidden states is formed in the forward
    pass, chunk by chunk, and only scaled in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = max(1, LOGITS_CHUNK_ELEMENTS // head.shape[0])
        precise = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=precise, device=hidden.device)
        hits = torch.zeros((), dtype=torch.long, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], rows):
            chunk, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logits = (chunk @ head.T).to(precise)
            hits += (logits.argmax(dim=1, keepdim=True) == wanted).sum()
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            total += (log_sum - logits.gather(1, wanted)).sum()
            if gradient is not None:
                probabilities = logits.sub_(log_sum).exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=precise))
                gradient[start : start + rows] = probabilities.to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
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
