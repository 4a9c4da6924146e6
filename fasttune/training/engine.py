"""The tensor functions that know how a row is packed: collate, attention, loss. Pure torch, runs anywhere.

    row of two groups       [P P P | a a | b b b | c c c c]      groups: (prefix 3: a, b), (prefix 0: c)
    position_ids             0 1 2   3 4   3 4 5   0 1 2 3
    who attends to what      P: itself, causally   a, b: P and itself, causally   c: itself, causally

Two of them have a backward pass written by hand, because autograd would keep or copy what isn't needed:

- `PackedAttention` attends piece by piece and merges by log-sum-exp; `dense_mask` describes the same layout plainly and
  is what the tests compare with.
- `SupervisedCrossEntropy` walks the vocabulary in tiles, so full logits exist nowhere.

What this file does not know: Unsloth, PEFT, files, chat templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fasttune.data.tokenize import Example
from fasttune.training.cpu_layers import matmul, precise
from fasttune.training.packing import Row

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Logits or attention scores at a time: on a CPU what stays in its cache while softmax passes over it; a card wants few,
# large launches.
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
ROWS, COLUMNS = 8, 64  # products of multiples of these leave no rest for slower code (a tenth of the loss's time)


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
            for learn_start, learn_end in example.supervised:
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


def padded(batch: Batch, multiple: int) -> Batch:
    """The row, up to a multiple of so many tokens, with a group of its own behind it that nothing is learned from."""
    length = batch.input_ids.shape[1]
    missing = -length % multiple
    if not missing:
        return batch
    positions = torch.arange(missing, device=batch.position_ids.device)
    return replace(
        batch,
        input_ids=fill_up(batch.input_ids[0], multiple)[None],
        position_ids=torch.cat((batch.position_ids, positions[None]), dim=1),
        spans=(*batch.spans, Span(length, length, ((length, length + missing),))),
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
    """Attention in pieces, merged exactly by their log-sum-exp; causal ones by torch's flash kernel for CPUs.

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
            if piece.causal:  # these come first and cover every query
                found, lse[:, :, q] = flash_attention(*part, 0.0, True, scale=scaling)
                output[:, q] = found.transpose(1, 2)
            else:
                found, found_lse = full_attention(*part, scaling)
                merged = torch.logaddexp(lse[:, :, q], found_lse)
                output[:, q].mul_(weight_of(lse[:, :, q], merged))
                output[:, q].add_(found.transpose(1, 2).mul_(weight_of(found_lse, merged)))
                lse[:, :, q] = merged
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return output.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        upstream, output = precise(output_gradients[0]).transpose(1, 2), output.transpose(1, 2)
        gradients = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        for piece in pieces(ctx.spans):
            q, k = piece.queries, piece.keys
            part = (upstream[:, :, q], query[:, :, q], key[:, :, k], value[:, :, k], output[:, :, q], lse[:, :, q])
            if piece.causal:
                found = flash_attention_backward(*part, 0.0, True, scale=ctx.scaling)
            else:
                found = full_attention_backward(*part, ctx.scaling)
            for total, where, gradient in zip(gradients, (q, k, k), found, strict=True):
                if piece.causal:
                    total[:, :, where] = gradient
                else:
                    total[:, :, where] += gradient
        return (*(gradient.to(ctx.dtype) for gradient in gradients), None, None)


def full_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention without a mask, as `flash_attention` gives it: output [1, H, T, D] and log-sum-exp [1, H, T].

    All query heads of a key head are the rows of one product: for a prefix that is large enough to be worth leaving
    the flash kernel, whose many small products are MKL's (see `matmul`).
    """
    output, lse = torch.empty_like(query), query.new_empty(query.shape[:3])
    for n, block in blocks(query, key):
        scores = matmul(as_rows(query[block]), key[0, n] * scaling)
        highest = scores.amax(dim=1, keepdim=True)
        total = scores.sub_(highest).exp_().sum(dim=1, keepdim=True)
        output[block] = as_states(matmul(scores, value[0, n].contiguous().T).div_(total), output[block])
        lse[block] = as_states(total.log_().add_(highest), lse[block])
    return output, lse


def full_attention_backward(
    upstream: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, as `flash_attention_backward` gives them."""
    for_query, for_key, for_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    along = torch.linalg.vecdot(upstream, output)
    for n, block in blocks(query, key):
        rows, up, keys = as_rows(query[block]), as_rows(upstream[block]), key[0, n] * scaling
        weights = matmul(rows, keys).sub_(as_rows(lse[block])).exp_()
        for_value[0, n] += matmul(up.T, weights.T).T
        for_scores = matmul(up, value[0, n].contiguous()).sub_(as_rows(along[block])).mul_(weights)
        for_key[0, n] += matmul(rows.T, for_scores.T).T.mul_(scaling)
        for_query[block] = as_states(matmul(for_scores, keys.T), for_query[block])
    return for_query, for_key, for_value


def blocks(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[int, tuple[int, slice, slice]]]:
    """For each key head the query heads that it serves, cut into stretches of queries whose scores make up a tile."""
    heads, length = query.shape[1] // key.shape[1], query.shape[2]
    stretch = max(1, TILE_ELEMENTS["cpu"] // (heads * key.shape[2]))
    for n in range(key.shape[1]):
        for start in range(0, length, stretch):
            yield n, (0, slice(n * heads, (n + 1) * heads), slice(start, start + stretch))


def as_rows(states: torch.Tensor) -> torch.Tensor:
    """[heads, T, D] as a dense matrix [T * heads, D]: a token's heads lie together in memory. [heads, T]: D is 1."""
    return states.transpose(0, 1).reshape(states.shape[0] * states.shape[1], -1).contiguous()


def as_states(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`as_rows` undone: a view of the shape of `like`."""
    return rows.view(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)


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


class SupervisedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over supervised positions, and top-1 hits, without ever holding all logits.

    The head is frozen in LoRA training, so the gradient with respect to the hidden states, softmax(logits) head -
    head[target], is formed in the forward pass and only scaled in the backward pass. It is summed over tiles of the
    vocabulary under a running maximum (online softmax, arXiv 1805.02867), so every logit is computed once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(hidden)
        hidden, targets = fill_up(hidden, ROWS), fill_up(targets, ROWS)
        wanted = precise(head[targets])
        highest = wanted.new_full((len(hidden), 1), -torch.inf)
        sums, first = torch.zeros_like(highest), torch.zeros_like(targets)[:, None]
        gradient = torch.zeros_like(wanted) if ctx.needs_input_grad[0] else None
        columns = max(COLUMNS, TILE_ELEMENTS[hidden.device.type] // max(1, len(hidden)) // COLUMNS * COLUMNS)
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
        total = (highest + sums.log() - (hidden * wanted).sum(dim=1, keepdim=True))[:count].sum()
        hits = (first == targets[:, None])[:count].sum()
        if gradient is not None:
            gradient = gradient.div_(sums).sub_(wanted)[:count].to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * output_gradients[0].to(gradient.dtype), None, None


def fill_up(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    """Rows of zeros added up to a multiple of so many."""
    missing = -len(rows) % multiple
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows


def loss(hidden: torch.Tensor, head: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of a row's supervised tokens, and how many were predicted first.

    hidden [1, T, C] are the states after the final norm, head [V, C] the frozen output embedding. Divide by the step's
    supervised tokens before backward: then rows add up to the step's mean, however it was cut (E1).
    """
    predicting = hidden[0].index_select(0, batch.predictors)
    total, hits = SupervisedCrossEntropy.apply(predicting, head, batch.targets)
    return total, hits
