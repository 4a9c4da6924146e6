"""A kernel that Triton has to compile and run. A module of its own, because importing it imports Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 256


@triton.jit
def scaled_sum(x: Any, y: Any, out: Any, scale: Any, size: Any, BLOCK: tl.constexpr) -> None:
    """out = x + scale * y, one block of elements a program."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    tl.store(out + at, tl.load(x + at, mask=inside) + scale * tl.load(y + at, mask=inside), mask=inside)


def error_of_kernel(device: str) -> float:
    """The largest difference between the kernel and torch on 1,000 numbers, a size that fills no whole block."""
    x, y = torch.arange(1000.0, device=device), torch.ones(1000, device=device)
    out = torch.empty_like(x)
    scaled_sum[(triton.cdiv(len(x), BLOCK),)](x, y, out, 2.0, len(x), BLOCK=BLOCK)
    return float((out - (x + 2 * y)).abs().max())
