"""Unsloth's GPU model on a CPU, in one child process (gpu_rows.py): rows as fasttune computes them on a GPU equal plain
transformers and PEFT with one sample a row, and what a layer launches. Its kernels are stood in for; the rest is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["gpu_child"]
ROUNDING = 1e-6  # of float32; a mask that is off by one token changes the gradient by more than 1e-2

pytest.importorskip("triton", reason="Unsloth's GPU model imports triton")


@pytest.fixture(scope="module")
def found(gpu_model_found: Path) -> dict[str, Any]:
    """What the child process found."""
    return json.loads((gpu_model_found / "found.json").read_text(encoding="utf-8"))


WAYS = {
    "shared": ("flash", 1), "shared, efficient": ("efficient", 1), "cut": ("flash", 4), "packed": ("flash", 1),
    "single": ("", 9), "after out of memory": ("flash", 1), "after out of memory, packed": ("flash", 1),
    "offloading": ("flash", 1), "offloading, single": ("", 9), "NF4, shared": ("flash", 1), "NF4, packed": ("flash", 1),
    "NF4, single": ("", 9), "NF4, after out of memory": ("flash", 1),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_computing_a_step_is_plain_peft_s(found: dict[str, Any], way: str) -> None:
    one, (kernel, rows) = found[way], WAYS[way]
    assert one["loss"] < ROUNDING and one["gradient"] < ROUNDING and one["float32"]
    assert one["rows"] == rows or (way == "cut" and one["rows"] > 1)
    assert all(kernel and kernel in name for name in one["calls"]) and bool(one["calls"]) == bool(kernel)


def test_each_layer_attends_in_two_calls(found: dict[str, Any]) -> None:
    """Two layers, a row that shares prefixes: two calls forward and two backward each; without sharing one; a forward
    pass more with gradient checkpointing."""
    forward, backward = "_flash_attention_forward", "_flash_attention_backward"
    assert found["shared"]["calls"] == {forward: 4, backward: 4}
    assert found["packed"]["calls"] == {forward: 2, backward: 2}
    for way in ("after out of memory", "offloading"):
        assert found[way]["calls"] == {forward: 8, backward: 4}


def test_offloading_is_unsloth_s(found: dict[str, Any]) -> None:
    plain, offloading = found["offloaded by"]
    assert plain == "checkpoint" and offloading.startswith("unsloth")


def test_float16_where_there_is_no_bfloat16(found: dict[str, Any]) -> None:
    """The base in float16, what is trained in float32, as GradScaler wants it, and the gradient right to rounding."""
    one = found["float16"]
    assert one["base"] == one["copies"] == "torch.float16" and one["trained"] == ["torch.float32"]
    assert 0 < one["gradient"] < 1e-2


def test_triton_s_kernels_compute_what_torch_computes(found: dict[str, Any]) -> None:
    """In Triton's interpreter, against float64; NF4 bit for bit."""
    errors = found["kernels"]
    assert len(errors) == 6 and max(errors.values()) < 1e-6 and errors["NF4"] == 0


def test_four_bits_are_dequantized_by_unsloth_s_functions(found: dict[str, Any]) -> None:
    """All linear layers of two layers stand for what bitsandbytes makes of their weights. Each is dequantized once in a
    row's forward pass, into the one scratch buffer of all, which the next row repeats, and once in its backward pass."""
    one = found["NF4"]
    assert one["linears"] == 2 * 7 and one["rounded"] > 1e-4
    assert one["launches"]["scratch"] == 2 * 7 and sum(one["launches"].values()) == 2 * 2 * 7
    assert one["repeated"] > 9 * 2 * 7


def test_a_disabled_adapter_is_the_base(found: dict[str, Any]) -> None:
    assert found["base alone"]["changed"]


def test_what_a_layer_launches(found: dict[str, Any]) -> None:
    """Unsloth's own way: 54 forward and 87 backward, attention counted as one launch and three, as here. 14 of these are
    the second call of a row that shares prefixes and its merging."""
    forward, backward = found["launches of forward"], found["launches of backward"]
    assert forward["layer"] <= 39 and backward["layer"] <= 61
    casts = forward["kinds"].get("_to_copy", 0) + backward["kinds"].get("_to_copy", 0)
    assert casts <= 1  # of a part of the attention; no LoRA weight is cast in a layer, and no gradient


def test_gradients_are_collected_in_a_few_launches_whatever_the_layers(found: dict[str, Any]) -> None:
    collected = found["launches of collect"]
    assert collected["layer"] == 0 and 0 < collected["beside"] <= 2


def test_a_row_waits_for_nothing(found: dict[str, Any]) -> None:
    assert found["launches of waits"]["beside"] == found["launches of waits"]["layer"] == 0
    assert found["waits"] == {"several prefixes": {}, "cut": {}, "packed": {}, "single": {}}


def test_copies_follow_the_weights(found: dict[str, Any]) -> None:
    one = found["update"]
    assert one["begun"] > 0  # a backward pass was broken off first: what it had left would be in "twice"
    assert one["with a gradient"] == one["weights"] == 2 * 2 * 7
    assert one["twice"] and one["fresh"] and one["left"] == 0


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2), ("NF4", 1e-4)])
def test_the_check_before_the_first_step(found: dict[str, Any], kind: str, tolerance: float) -> None:
    """Over Unsloth's model, whose gradients are collected row by row: it passes what is right, and finds suffixes that
    see one wrong token. Rows that share nothing don't have that fault."""
    one = found[f"check: {kind}"]
    assert all(0 < max(one[name]) < tolerance for name in ("shared", "packed", "packed, wrong"))
    found_by = (
        tolerance if kind != "bfloat16" else 2 * one["shared"][1]
    )  # one token of 20, in a model of random weights
    assert one["shared, wrong"][1] > found_by


def test_the_first_questions_to_a_gpu_see_every_gradient(found: dict[str, Any]) -> None:
    one = found["first questions"]
    assert one["values"] == one["weights"] and one["loss"] < 2e-2 and 0 < one["gradient"] < 5e-2


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_prompts_are_read_with_the_weights_as_they_are(found: dict[str, Any], dtype: str, rounding: float) -> None:
    """Also before the first row, and outside of fasttune's own call of the model: an answer begins in `generate`."""
    one = found[f"answers: {dtype}"]
    assert set(one) == {"fresh", "changed", "base alone"} and max(one.values()) < rounding


def test_trials_on_a_shared_base_compute_what_they_do_on_their_own(found: dict[str, Any]) -> None:
    """Bit for bit: loss, gradients before and after a step of the optimizer, and answers with the adapter as it is then;
    two trials of other ranks, the second with gradient checkpointing. The base is loaded once, its bytes stay."""
    one = found["shared base"]
    assert one["loads"] == 1 and one["equal"] == [True, True] and one["tensors"] == [2 * 29 + 4] * 2
    assert min(one["adapter"]) > 0.1  # of the logits: what the adapter changes in an answer
    assert one["unchanged"] and one["copied"] == []


def test_nothing_of_a_trial_is_left_on_a_shared_base(found: dict[str, Any]) -> None:
    """Modules, adapter, copies and hooks when the next trial begins, and the base too when another base does; nor does
    a trial's model refer to the modules of the base, which have no adapter."""
    one = found["shared base"]
    assert one["left"] == [0, 0, 0] and one["foreign"] == []


@pytest.mark.parametrize(
    ("kind", "rounding"), [("flash", 1e-6), ("efficient", 1e-6), ("bfloat16", 5e-2), ("NF4", 1e-6)]
)
def test_rows_as_cuda_graphs_are_the_rows(found: dict[str, Any], kind: str, rounding: float) -> None:
    """Unsloth's model recorded on a row of padding, with nothing in it that waits for the GPU, and replayed for rows
    that are packed otherwise; the second one of these after the weights were changed."""
    one = found[f"graphs: {kind}"]
    assert (one["state"], one["graphs"], one["rows"]) == ("on", 2, 5)
    for difference in one["differences"]:
        assert difference["loss"] < rounding and difference["gradient"] < rounding
