"""The decoder layer's parts against the formulas they stand for, taken by autograd: outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fasttune.training import cpu_layers

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """A leaf of its own in float64."""
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def agree(
    fast: Callable[..., torch.Tensor],
    plain: Callable[..., torch.Tensor],
    tensors: Sequence[torch.Tensor | None],
    tolerance: float,
) -> None:
    """Output and gradients of the fast function are those of the plain one in float64, within a share of the largest."""
    found, copies = fast(*tensors), [None if tensor is None else exact(tensor) for tensor in tensors]
    expected = plain(*copies)
    upstream = torch.randn(found.shape, dtype=found.dtype)
    trained = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    originals = [tensor for tensor in copies if tensor is not None and tensor.requires_grad]
    results = [found, *torch.autograd.grad(found, trained, upstream)]
    exact_results = [expected, *torch.autograd.grad(expected, originals, upstream.double())]
    assert [result.dtype for result in results[1:]] == [tensor.dtype for tensor in trained]
    for one, other in zip(results, exact_results, strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def lora(inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = False) -> list[torch.Tensor | None]:
    """W, bias, A and B; in bfloat16 the adapter itself stays float32, as PEFT keeps it."""
    kept = torch.float32 if dtype == torch.bfloat16 else dtype
    return [
        torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5,
        torch.randn(outputs, dtype=dtype) if bias else None,
        (torch.randn(4, inputs, dtype=kept) / inputs**0.5).requires_grad_(),
        torch.randn(outputs, 4, dtype=kept).requires_grad_(),
    ]


def plain_linear(x: torch.Tensor, scaling: float, *weights: Any) -> torch.Tensor:
    weight, bias, a, b = weights
    return F.linear(x, weight, bias) + scaling * (x @ a.T) @ b.T


@PRECISIONS
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_with_lora(dtype: torch.dtype, tolerance: float, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 32, dtype=dtype, requires_grad=True)
    agree(
        lambda x, *weights: cpu_layers.LoraLinear.apply(x, 0.5, *weights),
        lambda x, *weights: plain_linear(x, 0.5, *weights),
        [x, *lora(32, 24, dtype, bias=bias)],
        tolerance,
    )


@PRECISIONS
@pytest.mark.parametrize("rows", [1, cpu_layers.CACHED_ROWS, cpu_layers.CACHED_ROWS + 3])
def test_the_feed_forward(dtype: torch.dtype, tolerance: float, rows: int) -> None:
    """Three adapters of different scalings; rows that end within, at and behind what is taken at a time."""
    torch.manual_seed(0)
    x = torch.randn(1, rows, 32, dtype=dtype, requires_grad=True)
    weights = lora(32, 24, dtype) + lora(32, 24, dtype, bias=True) + lora(24, 32, dtype)

    def plain(x: torch.Tensor, *weights: Any) -> torch.Tensor:
        gate, up = plain_linear(x, 0.5, *weights[:4]), plain_linear(x, 2.0, *weights[4:8])
        return plain_linear(F.silu(gate) * up, 1.5, *weights[8:])

    agree(lambda x, *weights: cpu_layers.LoraMlp.apply(x, (0.5, 2.0, 1.5), *weights), plain, [x, *weights], tolerance)


@PRECISIONS
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])  # the smallest is below epsilon's square root
def test_the_norm(dtype: torch.dtype, tolerance: float, size: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 9, 32, dtype=dtype) * size).requires_grad_()
    agree(
        lambda x, weight: cpu_layers.RmsNorm.apply(x, weight, 1e-6),
        lambda x, weight: x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight,
        [x, torch.randn(32, dtype=dtype)],
        tolerance,
    )


@pytest.mark.parametrize(("mkl_from", "by_onednn"), [(65, [True, False]), (cpu_layers.NEVER, [True, True])])
def test_products_are_left_to_mkl_where_no_side_is_thin(
    mkl_from: int, by_onednn: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AVX2 alone; with AVX-512 oneDNN computes all of them."""
    if not cpu_layers.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(cpu_layers, "MKL_FROM", mkl_from)
    x, thin, wide, bias = torch.randn(72, 80), torch.randn(16, 80), torch.randn(96, 80), torch.randn(96)
    found = []
    for weight, of_weight in ((thin, bias[:16]), (wide, bias)):
        with Operators() as operators:
            product = cpu_layers.matmul(x, weight, of_weight)
        assert torch.allclose(product, F.linear(x, weight, of_weight), atol=1e-4)
        found.append("mkldnn._linear_pointwise.default" in operators.names)
    assert found == by_onednn


class Operators(TorchDispatchMode):
    """The names of the operators that torch calls in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))
