"""Attention without a mask on a CPU, forward and backward, faster than torch's flash kernel where many queries share
their keys. Pure torch.

Shapes as the flash kernel has them: query [1, H, T, D], key and value [1, H_kv, S, D], with H a multiple of H_kv.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fasttune.training.cpu_layers import matmul

TILE_ELEMENTS = 2**20  # attention scores at a time: what stays in a processor's cache while softmax passes over it


def unmasked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scaling Q K^T) V and the log-sum-exp of the scores, as the flash kernel returns them: [1, H, T, D] and
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


def unmasked_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, as the flash kernel's backward pass returns them.

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
    scores make up TILE_ELEMENTS."""
    heads, length = query.shape[1] // key.shape[1], query.shape[2]
    stretch = max(1, TILE_ELEMENTS // (heads * key.shape[2]))
    for n in range(key.shape[1]):
        for start in range(0, length, stretch):
            yield n, (0, slice(n * heads, (n + 1) * heads), slice(start, start + stretch))


def heads_to_rows(states: torch.Tensor) -> torch.Tensor:
    """[heads, T, D] as a dense matrix [T * heads, D]: a token's heads lie together in memory. [heads, T]: D is 1."""
    return states.transpose(0, 1).reshape(states.shape[0] * states.shape[1], -1).contiguous()


def rows_to_heads(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `heads_to_rows`: a view of the shape of `like`."""
    return rows.view(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)
