"""The tensor functions that know how a row is packed: collate, attention, loss. Pure torch, runs on every device.

    row of two groups       [P P P | a a | b b b | c c c c]      groups: (prefix 3: a, b), (prefix 0: c)
    position_ids             0 1 2   3 4   3 4 5   0 1 2 3
    who attends to what      P: itself, causally   a, b: P and itself, causally   c: itself, causally

`PackedAttention` has a backward pass written by hand, because autograd would keep or copy tensors that are not needed:
it goes block by block and merges blocks by their log-sum-exp. The loss itself is cross_entropy.py's. This file does not
know Unsloth, PEFT or chat templates.

Shapes: T tokens of a row, N supervised ones, H query heads, H_kv key heads, D width of a head, C of the model, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fasttune.data.tokenize import Example
from fasttune.training.cpu_layers import at_least_float32, matmul
from fasttune.training.cross_entropy import SupervisedCrossEntropy, pad_rows
from fasttune.training.packing import Row

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

SCORE_ELEMENTS = 2**20  # of a tile of attention scores: they stay in a CPU's cache while softmax passes over them


@dataclass(frozen=True)
class Span:
    """Where one prefix group lies in a row: its shared prefix [start, prefix_end), its suffixes [begin, end) each."""

    start: int
    prefix_end: int
    suffixes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """One row as tensors.

    input_ids, position_ids: [1, T]. label_positions: [N], the positions whose hidden state predicts a supervised token
    (its own position less 1). labels: [N], the token ids to predict. spans: the layout, for the attention.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    label_positions: torch.Tensor
    labels: torch.Tensor
    spans: tuple[Span, ...]

    def to(self, device: torch.device) -> Batch:
        """The same row on a device."""
        tensors = self.input_ids, self.position_ids, self.label_positions, self.labels
        ids, positions, label_positions, labels = (to_device(tensor, device) for tensor in tensors)
        return Batch(ids, positions, label_positions, labels, self.spans)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device. For a GPU it is pinned first: a copy from pageable memory would wait until
    the GPU has done all that was queued before."""
    return (pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in pinned memory, or itself where that is refused. WSL2 has little of it, and says "out of memory": of
    the computer's, which smaller rows would not mend (E3)."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor


def collate(row: Row, examples: Sequence[Example]) -> Batch:
    """Lay a planned row out as tensors on the host."""
    tokens: list[int] = []
    positions: list[int] = []
    label_positions: list[int] = []
    labels: list[int] = []
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
            for first, end in example.supervised:
                label_positions += range(first - 1 + shift, end - 1 + shift)
                labels += example.tokens[first:end]
            suffixes.append((begin, len(tokens)))
        spans.append(Span(start, start + group.prefix, tuple(suffixes)))
    return Batch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        label_positions=torch.tensor(label_positions),
        labels=torch.tensor(labels),
        spans=tuple(spans),
    )


def pad_row(batch: Batch, multiple: int) -> Batch:
    """The row, lengthened to a multiple of `multiple` tokens by a group of its own that holds no supervised token."""
    length = batch.input_ids.shape[1]
    missing = -length % multiple
    if not missing:
        return batch
    positions = torch.arange(missing, device=batch.position_ids.device)
    return replace(
        batch,
        input_ids=pad_rows(batch.input_ids[0], multiple)[None],
        position_ids=torch.cat((batch.position_ids, positions[None]), dim=1),
        spans=(*batch.spans, Span(length, length, ((length, length + missing),))),
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Sequence[Span], scaling: float
) -> torch.Tensor:
    """Attention over one row on a CPU: prefixes causally, each suffix over its group's prefix and causally over itself.

    query [1, H, T, D], key and value [1, H_kv, T, D] with H a multiple of H_kv; returns [1, T, H, D].
    """
    return PackedAttention.apply(query, key, value, tuple(spans), scaling)


@dataclass(frozen=True)
class Block:
    """A block of the score matrix: queries [start, end) attend to keys [key_start, key_end), their own causally or all
    of a prefix's."""

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


def attention_blocks(spans: Sequence[Span]) -> list[Block]:
    """Causal blocks that cover every query once, then one block a shared prefix: all its suffixes over the prefix."""
    own = [(span.start, span.prefix_end) for span in spans] + [suffix for span in spans for suffix in span.suffixes]
    causal = [Block(start, end, start, end, True) for start, end in own if end > start]
    shared = [span for span in spans if span.prefix_end > span.start]
    return causal + [Block(s.prefix_end, s.suffixes[-1][1], s.start, s.prefix_end, False) for s in shared]


class PackedAttention(torch.autograd.Function):
    """Attention block by block, merged exactly by log-sum-exp; causal blocks by torch's flash kernel for CPUs.

    Let o_1, o_2 be a query's outputs over two disjoint sets of keys and L_1, L_2 the log-sum-exps of its scores. Over
    the union:

        L = logaddexp(L_1, L_2)        o = exp(L_1 - L) o_1 + exp(L_2 - L) o_2

    In the backward pass every block takes the merged o and L, since its probabilities are P = exp(scores - L)
    (FlashAttention-2, arXiv 2307.08691, section 3.1). No key is copied and no mask is built, whatever the lengths.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: tuple[Span, ...], scaling: float
    ) -> torch.Tensor:
        _one, heads, length, width = query.shape
        ctx.dtype = query.dtype
        query, key, value = map(at_least_float32, (query, key, value))  # the kernel is slower in 16 bit
        output = query.new_empty(1, length, heads, width)
        lse = query.new_empty(1, heads, length)
        for block in attention_blocks(spans):
            q, inputs = block.queries, (query[:, :, block.queries], key[:, :, block.keys], value[:, :, block.keys])
            if block.causal:  # these come first and cover every query
                block_output, lse[:, :, q] = flash_attention(*inputs, 0.0, True, scale=scaling)
                output[:, q] = block_output.transpose(1, 2)
            else:
                block_output, block_lse = unmasked_attention(*inputs, scaling)
                merged = torch.logaddexp(lse[:, :, q], block_lse)
                output[:, q].mul_(merge_weight(lse[:, :, q], merged))
                output[:, q].add_(block_output.transpose(1, 2).mul_(merge_weight(block_lse, merged)))
                lse[:, :, q] = merged
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return output.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        grad_output, output = at_least_float32(output_gradients[0]).transpose(1, 2), output.transpose(1, 2)
        gradients = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        for block in attention_blocks(ctx.spans):
            q, k = block.queries, block.keys
            inputs = (grad_output[:, :, q], query[:, :, q], key[:, :, k], value[:, :, k], output[:, :, q], lse[:, :, q])
            if block.causal:
                block_gradients = flash_attention_backward(*inputs, 0.0, True, scale=ctx.scaling)
            else:
                block_gradients = unmasked_attention_backward(*inputs, ctx.scaling)
            for total, where, gradient in zip(gradients, (q, k, k), block_gradients, strict=True):
                if block.causal:
                    total[:, :, where] = gradient
                else:
                    total[:, :, where] += gradient
        return (*(gradient.to(ctx.dtype) for gradient in gradients), None, None)


def unmasked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scaling Q K^T) V and the log-sum-exp of the scores, as `flash_attention` returns them: [1, H, T, D] and
    [1, H, T].

    All query heads of a key head are the rows of one product, faster than the flash kernel's many small ones.
    """
    output, lse = torch.empty_like(query), query.new_empty(query.shape[:3])
    for n, tile in score_tiles(query, key):
        scores = matmul(heads_to_rows(query[tile]), key[0, n] * scaling)
        row_max = scores.amax(dim=1, keepdim=True)
        exp_sum = scores.sub_(row_max).exp_().sum(dim=1, keepdim=True)
        output[tile] = rows_to_heads(matmul(scores, value[0, n].contiguous().T).div_(exp_sum), output[tile])
        lse[tile] = rows_to_heads(exp_sum.log_().add_(row_max), lse[tile])
    return output, lse


def unmasked_attention_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, as `flash_attention_backward` returns them.

    P = exp(scaling Q K^T - L)     delta = rowsum(dO * O)     dS = P * (dO V^T - delta)
    dQ = scaling dS K              dK = scaling dS^T Q        dV = P^T dO
    """
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    delta = torch.linalg.vecdot(grad_output, output)
    for n, tile in score_tiles(query, key):
        q, d_o, scaled_key = heads_to_rows(query[tile]), heads_to_rows(grad_output[tile]), key[0, n] * scaling
        p = matmul(q, scaled_key).sub_(heads_to_rows(lse[tile])).exp_()
        grad_value[0, n] += matmul(d_o.T, p.T).T
        d_s = matmul(d_o, value[0, n].contiguous()).sub_(heads_to_rows(delta[tile])).mul_(p)
        grad_key[0, n] += matmul(q.T, d_s.T).T.mul_(scaling)
        grad_query[tile] = rows_to_heads(matmul(d_s, scaled_key.T), grad_query[tile])
    return grad_query, grad_key, grad_value


def score_tiles(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[int, tuple[int, slice, slice]]]:
    """The index of each key head with the index into `query` of its query heads, cut into stretches of queries whose
    scores make up SCORE_ELEMENTS."""
    heads, length = query.shape[1] // key.shape[1], query.shape[2]
    stretch = max(1, SCORE_ELEMENTS // (heads * key.shape[2]))
    for n in range(key.shape[1]):
        for start in range(0, length, stretch):
            yield n, (0, slice(n * heads, (n + 1) * heads), slice(start, start + stretch))


def heads_to_rows(states: torch.Tensor) -> torch.Tensor:
    """[heads, T, D] as a dense matrix [T * heads, D]: a token's heads lie together in memory. [heads, T]: D is 1."""
    return states.transpose(0, 1).reshape(states.shape[0] * states.shape[1], -1).contiguous()


def rows_to_heads(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `heads_to_rows`: a view of the shape of `like`."""
    return rows.view(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)


def merge_weight(block_lse: torch.Tensor, merged_lse: torch.Tensor) -> torch.Tensor:
    """exp(L_block - L) [1, T, H, 1]: the share of a query's softmax that lies in one block; arguments are [1, H, T]."""
    return (block_lse - merged_lse).exp().transpose(1, 2)[..., None]


def dense_mask(spans: Sequence[Span], length: int) -> torch.Tensor:
    """The layout as a plain mask [1, 1, T, T], true where query (row) attends to key (column); for the tests."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for span in spans:
        for q in range(span.start, span.prefix_end):
            mask[q, span.start : q + 1] = True
        for begin, end in span.suffixes:
            for q in range(begin, end):
                mask[q, span.start : span.prefix_end] = True
                mask[q, begin : q + 1] = True
    return mask[None, None]


def loss(hidden: torch.Tensor, head: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of a row's supervised tokens, and how many of them were ranked first.

    hidden [1, T, C] are the states after the final norm, head [V, C] the frozen output embedding. Divide by the step's
    supervised tokens before backward: then rows add up to the step's mean, however it was cut (E1).
    """
    states = hidden[0].index_select(0, batch.label_positions)
    return SupervisedCrossEntropy.apply(states, head, batch.labels)
