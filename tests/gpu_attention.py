"""torch's attention operators of a GPU, stood in for on a CPU: the same arguments and results, and what they ask of their
arguments (ATen's flash_api.cpp, attention.cu and attention_backward.cu). What they leave undefined is not-a-number."""

from __future__ import annotations

from typing import Any

import torch


class Operators:
    """In place of `torch.ops.aten` in attention_kernels.py; counts the calls of each operator."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def _flash_attention_forward(
        self, q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int,
        dropout: float, causal: bool, debug_mask: bool, *, scale: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        self.note("_flash_attention_forward", q, k, v, starts_q, starts_k, longest_q, longest_k)
        assert longest_q > 1 and dropout == 0 and not debug_mask  # of 1: one token a segment is taken for granted
        out, lse = forward(q, k, v, starts_q, starts_k, causal, scale)
        return out, lse, None, None, None

    def _flash_attention_backward(
        self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, starts_q: Any, starts_k: Any,
        longest_q: int, longest_k: int, dropout: float, causal: bool, seed: Any, unused: Any, *, scale: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        self.note("_flash_attention_backward", q, k, v, starts_q, starts_k, longest_q, longest_k)
        assert lse.shape == (q.shape[1], len(q)) and lse.is_contiguous()  # read without strides
        assert grad.is_contiguous() and out.is_contiguous()
        return backward(grad, q, k, v, out, lse, starts_q, starts_k, causal, scale)

    def _efficient_attention_forward(
        self, q: Any, k: Any, v: Any, bias: None, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int,
        dropout: float, mask: int, *, compute_log_sumexp: bool, scale: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        self.note("_efficient_attention_forward", q[0], k[0], v[0], starts_q, starts_k, longest_q, longest_k)
        assert q.shape[2] == k.shape[2] == v.shape[2] and compute_log_sumexp and mask in (0, 1)
        out, lse = forward(q[0], k[0], v[0], starts_q, starts_k, mask == 1, scale)
        whole = lse.new_full((len(starts_q) - 1, q.shape[2], -(-longest_q // 32) * 32), torch.nan)
        for number, (a, b, _c, _d) in enumerate(places(starts_q, starts_k)):
            whole[number, :, : b - a] = lse[:, a:b]
        return out[None], whole, None, None, longest_q, longest_k

    def _efficient_attention_backward(
        self, grad: Any, q: Any, k: Any, v: Any, bias: None, out: Any, starts_q: Any, starts_k: Any,
        longest_q: int, longest_k: int, lse: Any, dropout: float, seed: Any, offset: Any, mask: int,
        bias_gradient: bool, *, scale: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        self.note("_efficient_attention_backward", q[0], k[0], v[0], starts_q, starts_k, longest_q, longest_k)
        assert q.shape[2] == k.shape[2] == v.shape[2] and out.is_contiguous() and grad.is_contiguous()
        assert lse.shape == (len(starts_q) - 1, q.shape[2], -(-longest_q // 32) * 32) and lse.stride(2) == 1
        flat = lse.new_empty(q.shape[2], q.shape[1])
        for number, (a, b, _c, _d) in enumerate(places(starts_q, starts_k)):
            flat[:, a:b] = lse[number, :, : b - a]
            assert (lse[number, :, b - a :] == torch.inf).all()  # else their probabilities are not 0
        found = backward(grad[0], q[0], k[0], v[0], out[0], flat, starts_q, starts_k, mask == 1, scale)
        return *(one[None] for one in found), None

    def note(
        self, name: str, q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int
    ) -> None:
        """Count a call whose arguments are as the operator asks for."""
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 and q.dtype == k.dtype == v.dtype
        assert starts_q.dtype == starts_k.dtype == torch.int32 and len(starts_q) == len(starts_k) > 1
        sizes_q, sizes_k = starts_q.diff(), starts_k.diff()
        assert sizes_q.max() <= longest_q <= max(2, len(q)) and sizes_k.max() <= longest_k <= len(k)
        self.calls[name] = self.calls.get(name, 0) + 1


def forward(
    q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [n, H, D] and log-sum-exp [H, n]; sums in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    lse = torch.full((q.shape[1], len(q)), torch.nan, dtype=wide)
    for a, b, c, d in places(starts_q, starts_k):
        scores, values = score_matrix(q[a:b], k[c:d], causal, scale), heads(v[c:d], q, wide)
        lse[:, a:b] = scores.logsumexp(-1)
        out[a:b] = torch.einsum("hqk,khd->qhd", (scores - lse[:, a:b, None]).exp(), values).to(q.dtype)
    return out, lse


def backward(
    grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, starts_q: Any, starts_k: Any, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three gradients, the probabilities taken from the given log-sum-exp."""
    wide = lse.dtype
    gradients = [torch.full_like(one, torch.nan, memory_format=torch.contiguous_format) for one in (q, k, v)]
    delta = (grad.to(wide) * out.to(wide)).sum(-1).T
    for a, b, c, d in places(starts_q, starts_k):
        p = (score_matrix(q[a:b], k[c:d], causal, scale) - lse[:, a:b, None]).exp()
        above = grad[a:b].to(wide)
        d_s = p * (torch.einsum("qhd,khd->hqk", above, heads(v[c:d], q, wide)) - delta[:, a:b, None])
        gradients[0][a:b] = (torch.einsum("hqk,khd->qhd", d_s, heads(k[c:d], q, wide)) * scale).to(q.dtype)
        d_k = torch.einsum("hqk,qhd->khd", d_s, q[a:b].to(wide)) * scale
        d_v = torch.einsum("hqk,qhd->khd", p, above)
        for whole, part in ((gradients[1], d_k), (gradients[2], d_v)):
            whole[c:d] = part.unflatten(1, (k.shape[1], -1)).sum(2).to(k.dtype)
    return gradients[0], gradients[1], gradients[2]


def score_matrix(q: Any, k: Any, causal: bool, scale: float) -> torch.Tensor:
    """[H, queries, keys], minus infinity above the diagonal where it is causal."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("qhd,khd->hqk", q.to(wide), heads(k, q, wide)) * scale
    above = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(above, -torch.inf) if causal else scores


def heads(states: Any, q: Any, wide: torch.dtype) -> torch.Tensor:
    """Keys or values once for each query head."""
    return states.to(wide).repeat_interleave(q.shape[1] // states.shape[1], 1)


def places(starts_q: Any, starts_k: Any) -> list[tuple[int, int, int, int]]:
    """Of each segment: first query, end, first key, end."""
    q, k = starts_q.tolist(), starts_k.tolist()
    return list(zip(q, q[1:], k, k[1:], strict=False))
