"""Variable-length attention kernels behind one interface: torch's own for a CPU, and for a GPU its flash kernels or,
where those don't run, its memory-efficient ones.

    forward(query, key, value, segments, causal, scaling) -> output, lse
    backward(grad_output, query, key, value, output, lse, segments, causal, scaling) -> three gradients

A segment's queries attend to its keys, causally (as many of both) or to all of them. query, output and their gradients
are [n, H, D], key and value [m, H_kv, D], lse [H, n] in float32 at least: the log-sum-exp of a query's scaled scores.
In the backward pass output and lse may be those over more keys than the segment's (attention.PackedAttention).

The operators of a GPU are called as torch's own functions call them (ATen's flash_api.cpp and attention_backward.cu).
Queries that no segment covers are left undefined by all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fasttune.training import cpu_attention

aten = torch.ops.aten

LSE_ALIGNMENT = 32  # the memory-efficient kernels read the log-sum-exps of so many queries at a time
NO_MASK, CAUSAL = 0, 1  # of the memory-efficient kernels: sdp::CustomMaskType

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Segments:
    """Segment i has the queries [query_starts[i], query_starts[i + 1]) and the keys [key_starts[i], key_starts[i + 1]).

    The starts are [segments + 1] in int32. There are `queries` queries in all; no segment has more of them than
    `longest_query`, or more keys than `longest_key`. These are integers, so that no kernel waits for the GPU to tell.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    queries: int
    longest_query: int
    longest_key: int

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Queries and keys of each segment; the starts must lie on the host."""
        q, k = self.query_starts.tolist(), self.key_starts.tolist()
        for *query, key, key_end in zip(q, q[1:], k, k[1:], strict=False):
            yield slice(*query), slice(key, key_end)

    @functools.cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The segment of each query and its index in it, [queries] both; found once a row, on the device."""
        place = torch.arange(self.queries, device=self.query_starts.device, dtype=torch.int32)
        segment = torch.bucketize(place, self.query_starts[1:], right=True)
        return segment, (place - self.query_starts[segment]).long()


class Kernel(NamedTuple):
    """A forward and a backward pass of the interface above."""

    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[..., Gradients]


def kernel_for(query: torch.Tensor) -> Kernel:
    """The fastest kernel that takes these queries: flash kernels are for 16 bit on compute capability 8.0 and above."""
    if query.device.type == "cpu":
        return CPU
    is_short = query.dtype in (torch.float16, torch.bfloat16)
    return FLASH if is_short and torch.cuda.get_device_capability(query.device) >= (8, 0) else EFFICIENT


# A CPU ----------------------------------------------------------------------------------------------------------------


def cpu_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Segment by segment: torch's flash kernel where it is causal, else products of all query heads of a key head."""
    output, lse = torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0])
    for q, k in segments.slices():
        inputs = heads_first(query[q]), heads_first(key[k]), heads_first(value[k])
        if causal:
            part, part_lse = aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0.0, True, scale=scaling)
        else:
            part, part_lse = cpu_attention.unmasked(*inputs, scaling)
        output[q], lse[:, q] = part[0].transpose(0, 1), part_lse[0]
    return output, lse


def cpu_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    segments: Segments,
    causal: bool,
    scaling: float,
) -> Gradients:
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for q, k in segments.slices():
        inputs = (
            heads_first(grad_output[q]), heads_first(query[q]), heads_first(key[k]), heads_first(value[k]),
            heads_first(output[q]), lse[None, :, q],
        )  # fmt: skip
        if causal:
            parts = aten._scaled_dot_product_flash_attention_for_cpu_backward(*inputs, 0.0, True, scale=scaling)
        else:
            parts = cpu_attention.unmasked_backward(*inputs, scaling)
        for whole, where, part in zip(gradients, (q, k, k), parts, strict=True):
            whole[where] = part[0].transpose(0, 1)
    return gradients


def heads_first(states: torch.Tensor) -> torch.Tensor:
    """[n, H, D] as [1, H, n, D], a view."""
    return states.transpose(0, 1)[None]


# A GPU of compute capability 8.0 and above ----------------------------------------------------------------------------


def flash_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's flash kernels (FlashAttention-2)."""
    output, lse, *_unused = aten._flash_attention_forward(
        query, key, value, *flash_segments(segments), 0.0, causal, False, scale=scaling
    )
    return output, lse


def flash_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    segments: Segments,
    causal: bool,
    scaling: float,
) -> Gradients:
    seed, unused = query.new_empty(2, dtype=torch.uint64), query.new_empty((), dtype=torch.uint64)  # of dropout: none
    return aten._flash_attention_backward(
        grad_output, query, key, value, output, lse, *flash_segments(segments), 0.0, causal, seed, unused, scale=scaling
    )


def flash_segments(segments: Segments) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """The segments as arguments. Of one query each, the kernel would take one token a segment for granted."""
    return segments.query_starts, segments.key_starts, max(2, segments.longest_query), segments.longest_key


# Other GPUs, and float32 ----------------------------------------------------------------------------------------------


def efficient_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's memory-efficient kernels (xFormers'), which want as many key heads as query heads."""
    key, value = (expand_heads(states, query.shape[1]) for states in (key, value))
    output, lse, *_unused = aten._efficient_attention_forward(
        query[None], key[None], value[None], None, *efficient_segments(segments), 0.0, CAUSAL if causal else NO_MASK,
        compute_log_sumexp=True, scale=scaling,
    )  # fmt: skip
    segment, index = segments.places
    return output[0], lse.transpose(1, 2)[segment, index].T


def efficient_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    segments: Segments,
    causal: bool,
    scaling: float,
) -> Gradients:
    keys, values = (expand_heads(states, query.shape[1]) for states in (key, value))
    seed, offset = (torch.empty((), dtype=torch.int64, device=query.device) for _of_dropout in range(2))
    grad_query, grad_key, grad_value, _bias = aten._efficient_attention_backward(
        grad_output[None], query[None], keys[None], values[None], None, output[None], *efficient_segments(segments),
        by_segment(lse, segments), 0.0, seed, offset, CAUSAL if causal else NO_MASK, False, scale=scaling,
    )  # fmt: skip
    return grad_query[0], reduce_heads(grad_key[0], key), reduce_heads(grad_value[0], value)


def efficient_segments(segments: Segments) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """The segments as arguments."""
    return segments.query_starts, segments.key_starts, segments.longest_query, segments.longest_key


def by_segment(lse: torch.Tensor, segments: Segments) -> torch.Tensor:
    """lse [H, n] as [segments, H, longest_query rounded up], infinite where a segment has no query: there every
    probability is 0."""
    count, stretch = len(segments.query_starts) - 1, -(-segments.longest_query // LSE_ALIGNMENT) * LSE_ALIGNMENT
    whole = lse.new_full((count, lse.shape[0], stretch), torch.inf)
    whole.transpose(1, 2)[segments.places] = lse.T
    return whole


def expand_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, H_kv, D] with each key head repeated for its query heads, [n, H, D]."""
    return states.repeat_interleave(heads // states.shape[1], dim=1)


def reduce_heads(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The gradient of what `expand_heads` was given."""
    return gradient.unflatten(1, (like.shape[1], -1)).sum(2)


CPU = Kernel(cpu_forward, cpu_backward)
FLASH = Kernel(flash_forward, flash_backward)
EFFICIENT = Kernel(efficient_forward, efficient_backward)
