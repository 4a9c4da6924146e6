"""Attention over a packed row in two calls of a variable-length kernel. Pure torch, the same on every device.

    a row              [P P P | Q Q | a a | b b b | c | d | e e e e]     a, b share P; c, d share Q; e shares nothing
    call 1, `own`       every prefix, every suffix and e: causally over itself
    call 2, `shared`    the suffixes a b over P, and c d over Q, without a mask

The shared prefixes lie at the head of the row and their suffixes behind them, so both calls take views: nothing is
copied, no mask is built and nothing is compiled. What a suffix's query found in the two calls is merged by log-sum-exp.

Shapes: T tokens of a row, H query heads, H_kv key heads, D width of a head.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fasttune.training import attention_kernels
from fasttune.training.attention_kernels import Segments
from fasttune.training.cpu_layers import at_least_float32


@dataclass(frozen=True)
class Layout:
    """How a row is packed: the segments of both calls (`shared` is None where no prefix is shared), the tokens of all
    shared prefixes, and those of the prefixes and their suffixes together (`sharing_tokens`)."""

    own: Segments
    shared: Segments | None = None
    prefix_tokens: int = 0
    sharing_tokens: int = 0

    @property
    def queries(self) -> slice:
        """The tokens whose queries take part in the second call: the suffixes behind shared prefixes."""
        return slice(self.prefix_tokens, self.sharing_tokens)

    @property
    def keys(self) -> slice:
        """The tokens whose keys do: the shared prefixes."""
        return slice(0, self.prefix_tokens)

    @property
    def is_single(self) -> bool:
        """Whether the row is one sample: nothing is packed."""
        return len(self.own.query_starts) == 2

    def tensors(self) -> list[torch.Tensor]:
        """The starts of all segments; `with_tensors` takes them back."""
        calls = [self.own] if self.shared is None else [self.own, self.shared]
        return [tensor for call in calls for tensor in (call.query_starts, call.key_starts)]

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Layout:
        """The layout with the tensors of `tensors()` on another device."""
        own = replace(self.own, query_starts=tensors[0], key_starts=tensors[1])
        shared = self.shared and replace(self.shared, query_starts=tensors[2], key_starts=tensors[3])
        return replace(self, own=own, shared=shared)

    def padded(self, missing: int) -> Layout:
        """The layout of the row with `missing` tokens more, which attend to themselves."""
        own, starts = self.own, self.own.query_starts
        starts, longest = torch.cat((starts, starts[-1:] + missing)), max(own.longest_query, missing)
        return replace(self, own=Segments(starts, starts, own.queries + missing, longest, longest))


def layout(groups: Sequence[tuple[int, Sequence[int]]], alone: Sequence[int]) -> Layout:
    """The layout of a row of prefix groups, each a prefix's tokens and those of its suffixes, and of samples alone.

    Their order in the row is that of the arguments: all prefixes, the suffixes group by group, the samples alone.
    """
    prefixes = [prefix for prefix, _suffixes in groups]
    suffixes = [sum(lengths) for _prefix, lengths in groups]
    own = segments([*prefixes, *(length for _prefix, lengths in groups for length in lengths), *alone])
    if not groups:
        return Layout(own)
    return Layout(own, segments(suffixes, prefixes), sum(prefixes), sum(prefixes) + sum(suffixes))


def segments(queries: Sequence[int], keys: Sequence[int] | None = None) -> Segments:
    """Segments of so many queries and keys, one behind the other; without `keys` the queries' own."""
    query_starts = starts(queries)
    key_starts = query_starts if keys is None else starts(keys)
    return Segments(query_starts, key_starts, sum(queries), max(queries), max(queries if keys is None else keys))


def starts(lengths: Sequence[int]) -> torch.Tensor:
    """Where stretches of these lengths begin, and where the last one ends, [n + 1] in int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> torch.Tensor:
    """Attention over one row: query [T, H, D], key and value [T, H_kv, D] with H a multiple of H_kv; returns
    [T, H, D]."""
    return PackedAttention.apply(query, key, value, layout, scaling)


class PackedAttention(torch.autograd.Function):
    """Both calls, merged exactly.

    Let o_1, o_2 be a query's outputs over two disjoint sets of keys and L_1, L_2 the log-sum-exps of its scores. Over
    the union:

        L = logaddexp(L_1, L_2)        o = o_1 + sigmoid(L_2 - L_1) (o_2 - o_1)

    In the backward pass both calls take the merged o and L, since a call's probabilities are P = exp(scores - L)
    (FlashAttention-2, arXiv 2307.08691, section 3.1).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
    ) -> torch.Tensor:
        ctx.dtype, ctx.layout, ctx.scaling = query.dtype, layout, scaling
        ctx.kernel = kernel = attention_kernels.kernel_for(query)
        if kernel is attention_kernels.CPU:  # it is slower in 16 bit
            query, key, value = map(at_least_float32, (query, key, value))
        output, lse = kernel.forward(query, key, value, layout.own, True, scaling)
        if layout.shared is not None:
            q, k = layout.queries, layout.keys
            part, part_lse = kernel.forward(query[q], key[k], value[k], layout.shared, False, scaling)
            merge(output[q], lse[:, q], part, part_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        return output.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, backward = ctx.layout, functools.partial(ctx.kernel.backward, scaling=ctx.scaling)
        grad_output = output_gradients[0].to(output.dtype).contiguous()
        gradients = backward(grad_output, query, key, value, output, lse, layout.own, True)
        if layout.shared is not None:
            q, k = layout.queries, layout.keys
            inputs = grad_output[q], query[q], key[k], value[k], output[q], lse[:, q].contiguous()
            parts = backward(*inputs, layout.shared, False)
            for total, where, part in zip(gradients, (q, k, k), parts, strict=True):
                total[where].add_(part)  # `+=` would copy the sum onto itself
        return (*(gradient.to(ctx.dtype) for gradient in gradients), None, None)


def merge(output: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Add to output [n, H, D] and lse [H, n] of one set of keys those of another one, in place; `part` is used up.

    The sum is taken in float32 and rounded once, whatever type the outputs have.
    """
    share = torch.sigmoid(part_lse - lse).T[..., None]  # of the softmax that lies in the second set
    output.add_(at_least_float32(part).sub_(output).mul_(share))
    torch.logaddexp(lse, part_lse, out=lse)


def dense_mask(layout: Layout) -> torch.Tensor:
    """The layout as a plain mask [1, 1, T, T], true where query (row) attends to key (column); for the tests."""
    mask = torch.zeros(layout.own.queries, layout.own.queries, dtype=torch.bool)
    for q, k in layout.own.slices():
        mask[q, k] = torch.ones(q.stop - q.start, k.stop - k.start, dtype=torch.bool).tril()
    for q, k in layout.shared.slices() if layout.shared else ():
        mask[q.start + layout.prefix_tokens : q.stop + layout.prefix_tokens, k] = True
    return mask[None, None]
