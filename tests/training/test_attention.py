"""Packed attention equals masked attention in float64: output and all three gradients, by each kernel, for several
layouts and the heads of Qwen2.5. A GPU's operators are stood in for by gpu_attention.py, and called on fake tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import gpu_attention
import pytest
import torch

from fasttune.training import attention, attention_kernels, cpu_attention
from fasttune.training.attention import Layout, layout

LAYOUTS = {
    "one group": layout([(37, [11, 23, 1, 40])], []),
    "several groups": layout([(20, [11, 19]), (7, [13, 5, 2])], []),
    "groups and alone": layout([(21, [11, 19]), (13, [5, 3])], [9, 17]),
    "alone": layout([], [11, 29, 2]),
    "one sample": layout([], [40]),
    "a prefix of one token": layout([(1, [2, 3]), (1, [4, 2])], [2]),
    "padded": layout([(30, [9, 12])], [5]).padded(8),
}
HEADS = {"0.5B": (14, 2, 64), "1.5B": (12, 2, 128), "3B": (16, 2, 128), "as many": (3, 3, 16)}  # H, H_kv, D
KERNELS = {"cpu": attention_kernels.CPU, "flash": attention_kernels.FLASH, "efficient": attention_kernels.EFFICIENT}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Packed attention by one kernel, whatever the device."""
    operators = gpu_attention.Operators()
    if request.param != "cpu":
        monkeypatch.setattr(attention_kernels, "aten", operators)
    monkeypatch.setattr(attention_kernels, "kernel_for", lambda query: KERNELS[request.param])
    yield request.param
    assert bool(operators.calls) == (request.param != "cpu")


def inputs(where: Layout, heads: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Query, key and value, laid out as Unsloth hands them over ([1, H, T, D] seen as [T, H, D]), and the gradient of
    the output."""
    torch.manual_seed(0)
    count, key_count, width = HEADS[heads]
    shapes = [(number, where.own.queries, width) for number in (count, key_count, key_count)]
    states = [torch.randn(shape, dtype=dtype).transpose(0, 1).requires_grad_() for shape in shapes]
    return states, torch.randn(where.own.queries, count, width, dtype=dtype)


def masked(states: list[torch.Tensor], where: Layout, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of torch's attention with a mask, in float64."""
    exact = [one.detach().double().requires_grad_() for one in states]
    q, k, v = (one.transpose(0, 1)[None] for one in exact)
    mask = attention.dense_mask(where)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.25, enable_gqa=True)[0].transpose(
        0, 1
    )
    return [out, *torch.autograd.grad(out, exact, upstream.double())]


def packed(states: list[torch.Tensor], where: Layout, upstream: torch.Tensor) -> list[torch.Tensor]:
    out = attention.packed_attention(states[0], states[1], states[2], where, 0.25)
    return [out, *torch.autograd.grad(out, states, upstream)]


def errors(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """|a - b| / |b| of each pair."""
    return [
        float((a.detach().double() - b.detach()).norm() / b.detach().norm())
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
def test_packed_attention_equals_the_masked_one(kernel: str, heads: str, name: str) -> None:
    where = LAYOUTS[name]
    states, upstream = inputs(where, heads, torch.float64)
    assert max(errors(packed(states, where, upstream), masked(states, where, upstream))) < 1e-14


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision_adds_its_own_rounding_only(kernel: str, dtype: torch.dtype, tolerance: float) -> None:
    """bfloat16 rounds by 2^-9 = 2e-3; a row that shares nothing differs by as much from the exact one."""
    for name in ("groups and alone", "alone"):
        states, upstream = inputs(LAYOUTS[name], "0.5B", dtype)
        found = packed(states, LAYOUTS[name], upstream)
        assert all(one.dtype == dtype for one in found)
        assert max(errors(found, masked(states, LAYOUTS[name], upstream))) < tolerance, name


@pytest.mark.parametrize("tile", [1, 2 * 7 * 5, 2**20])  # scores of one query, of five with a rest, of all
def test_a_tile_may_hold_any_number_of_scores(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(cpu_attention, "TILE_ELEMENTS", tile)
    where = LAYOUTS["groups and alone"]
    states, upstream = inputs(where, "as many", torch.float64)
    assert max(errors(packed(states, where, upstream), masked(states, where, upstream))) < 1e-13


def test_the_mask_says_who_attends_to_what() -> None:
    """Written out for a prefix of two tokens, its suffixes of one and two, and a sample alone."""
    assert attention.dense_mask(layout([(2, [1, 2])], [2]))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_the_kernel_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bit by flash kernels where there are some, else by the memory-efficient ones."""
    for capability, dtype in itertools.product(((7, 5), (8, 0), (12, 0)), (torch.float16, torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, has=capability: has)
        query: Any = type("Query", (), {"device": torch.device("cuda"), "dtype": dtype})
        expected = "flash" if capability >= (8, 0) and dtype == torch.float16 else "efficient"
        assert attention_kernels.kernel_for(query) is KERNELS[expected]


class Checked:
    """torch's operators; one whose function for tensors without contents torch 2.13 has wrong is held to its schema."""

    def __getattr__(self, name: str) -> Any:
        return self.backward if name == "_efficient_attention_backward" else getattr(torch.ops.aten, name)

    def backward(self, *given: Any, **named: Any) -> tuple[Any, ...]:
        arguments = torch.ops.aten._efficient_attention_backward.default._schema.arguments
        positional = [argument for argument in arguments if not argument.kwarg_only]
        assert len(given) == len(positional) and set(named) <= {one.name for one in arguments if one.kwarg_only}
        for value, argument in zip(given, positional, strict=True):
            kind = str(argument.type)
            assert isinstance(value, KINDS[kind.removeprefix("Optional[").removesuffix("]")]) or (
                value is None and kind.startswith("Optional")
            ), argument
        return *(torch.empty_like(one) for one in given[1:4]), None


KINDS: dict[str, Any] = {"Tensor": torch.Tensor, "int": int, "SymInt": int, "float": float, "bool": bool}


@pytest.mark.parametrize("name", ["flash", "efficient"])
def test_torch_s_own_operators_accept_the_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, arguments and shapes of the real ones, on tensors without contents."""
    monkeypatch.setattr(attention_kernels, "kernel_for", lambda query: KERNELS[name])
    monkeypatch.setattr(attention_kernels, "aten", Checked())
    for where, (heads, key_heads, width) in itertools.product(LAYOUTS.values(), HEADS.values()):
        shapes = [(where.own.queries, count, width) for count in (heads, key_heads, key_heads)]
        states = [torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        moved = where.with_tensors([tensor.to("meta") for tensor in where.tensors()])
        out, *gradients = packed(states, moved, torch.empty(shapes[0], device="meta", dtype=torch.bfloat16))
        assert out.shape == states[0].shape and out.dtype == torch.bfloat16
        assert [one.shape for one in gradients] == [one.shape for one in states]
