"""The loss of supervised tokens: cross-entropy that goes through the vocabulary in tiles. Pure torch, on every device.

The backward pass is written by hand, so that the full logits [N, V] never exist. Shapes: N supervised tokens of a row,
C width of the hidden states, V words of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from fasttune.training.cpu_layers import at_least_float32, matmul

# Elements of a tile of logits. A CPU wants what stays in its cache while softmax passes over it; a GPU wants few, large
# kernel launches.
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
ROWS, COLUMNS = 8, 64  # matrix products of multiples of these have no remainder loop (a tenth of the loss's time)


class SupervisedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(label) over N positions, and the number of labels ranked first, without ever holding all logits.

    With z = hidden head^T, the loss of a position is log sum_v exp(z_v) - z_label, and its gradient with respect to the
    hidden state is sum_v softmax(z)_v head_v - head_label. The head is frozen in LoRA training, so this gradient is
    formed in the forward pass and only scaled in the backward pass. Both sums go over tiles of the vocabulary under a
    running maximum (online softmax, arXiv 1805.02867), so that every logit is computed once.

    z_label is taken out of the same tile as all other logits. In 16 bit on a CPU these are rounded, by up to 1/16 at
    20; where the model is sure of a label, the loss is the small difference of two logits that have to be rounded
    alike, or it is off by a hundred times its value and falls below zero.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(hidden)
        hidden, labels = pad_rows(hidden, ROWS), pad_rows(labels, ROWS)[:, None]
        row_max = at_least_float32(hidden.new_full((len(hidden), 1), -torch.inf))
        exp_sum, label_logits, argmax = torch.zeros_like(row_max), torch.zeros_like(row_max), torch.zeros_like(labels)
        gradient = at_least_float32(torch.zeros_like(hidden)) if ctx.needs_input_grad[0] else None
        columns = max(COLUMNS, TILE_ELEMENTS[hidden.device.type] // max(1, len(hidden)) // COLUMNS * COLUMNS)
        for start in range(0, len(head), columns):
            tile = head[start : start + columns]
            logits = tile_logits(hidden, tile)
            index = labels - start
            is_here = (index >= 0) & (index < len(tile))
            label_logits = torch.where(is_here, logits.gather(1, index.clamp(0, len(tile) - 1)), label_logits)
            tile_max, where = logits.max(dim=1, keepdim=True)
            argmax = torch.where(tile_max > row_max, where + start, argmax)
            previous_max, row_max = row_max, torch.maximum(row_max, tile_max)
            rescale = (previous_max - row_max).exp_()
            exps = logits.sub_(row_max).exp_()
            exp_sum = exp_sum * rescale + exps.sum(dim=1, keepdim=True)
            if gradient is not None:
                gradient = gradient.mul_(rescale).add_(matmul(exps.to(hidden.dtype), tile.T))
        total = (row_max - label_logits + exp_sum.log())[:count].sum()
        hits = (argmax == labels)[:count].sum()
        if gradient is not None:
            gradient = gradient.div_(exp_sum).sub_(head[labels[:, 0]])[:count]
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        """The gradient is kept in float32 and rounded once, after it was scaled: 1 / N in bfloat16 is off by up to
        0.4 %, for the whole step alike, and float16 does not hold the 65536 that a loss scale may be."""
        (gradient,) = ctx.saved_tensors
        return (gradient * output_gradients[0]).to(ctx.dtype), None, None


def tile_logits(hidden: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    """The logits [N, v] of a tile of the head [v, C], in at least float32.

    In 16 bit a GPU gives the product's own float32 sums, unrounded; a CPU has no such product.
    """
    if hidden.device.type == "cuda" and hidden.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, tile.T, out_dtype=torch.float32)
    return at_least_float32(matmul(hidden, tile))


def pad_rows(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    """A tensor [n, ...] with zeros appended until n is a multiple of `multiple`."""
    missing = -len(rows) % multiple
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows
