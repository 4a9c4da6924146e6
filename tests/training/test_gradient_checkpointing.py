"""Gradient checkpointing turned on and off in a loaded model, and when the layers' inputs are worth a copy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import random_examples

from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import engine, gradient_checkpointing, hub, memory, packing
from fasttune.training import model as models
from fasttune.training.memory import GIB

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit on a CPU alone")


def gradients(model: Any) -> tuple[int, list[torch.Tensor]]:
    """How many layers a step computes, those that are computed again included, and the gradients it leaves."""
    examples = random_examples(0, count=4)
    (row,) = packing.plan_step(examples, range(4), 4096).rows
    batch = engine.collate(row, examples)
    computed = 0

    def count(*_anything: Any) -> None:
        nonlocal computed
        computed += 1

    hooks = [layer.register_forward_pre_hook(count) for layer in model.get_base_model().model.layers]
    model.zero_grad()
    loss, _hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
    loss.backward()
    for hook in hooks:
        hook.remove()
    return computed, [one.grad.clone() for one in model.parameters() if one.grad is not None]


@on_cpu
def test_on_and_off_again_changes_the_work_alone() -> None:
    model = models.load_base(hub.TINY, ModelRecipe(base="builtin:tiny"))
    layers = model.config.num_hidden_layers
    model = models.add_lora(model, LoraRecipe(r=4, alpha=8), 1, checkpointing=False)
    model.train()
    calls, expected = gradients(model)
    assert calls == layers
    gradient_checkpointing.enable(model)
    calls, found = gradients(model)
    assert calls == 2 * layers and all(map(torch.equal, found, expected))
    gradient_checkpointing.disable(model)
    calls, found = gradients(model)
    assert calls == layers and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_answers_during_training_leave_it_as_it_is(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """Unsloth's for_training without an argument puts back on a GPU what LoRA was added with, whatever was turned on
    since."""
    layer = torch.nn.Linear(1, 1)
    layer.gradient_checkpointing = checkpointing
    calls: list[object] = []
    unsloth = SimpleNamespace(
        for_inference=lambda _model: setattr(layer, "gradient_checkpointing", False),
        for_training=lambda _model, use_gradient_checkpointing=None: calls.append(use_gradient_checkpointing),
    )
    monkeypatch.setattr(models, "import_unsloth", lambda: unsloth)
    with models.inference(torch.nn.Sequential(layer)):
        pass
    assert calls == [checkpointing]


@pytest.mark.parametrize(
    ("name", "tokens", "gib", "pays"),
    [
        ("Qwen2.5-0.5B", 4096, 6, False),  # 0.16 GiB
        ("Qwen2.5-0.5B", 32768, 8, True),
        ("Qwen2.5-3B", 2048, 6, False),  # 0.28 GiB
        ("Qwen2.5-3B", 8192, 8, True),
        ("Qwen2.5-3B", 8192, 0, False),  # a CPU
    ],
)
def test_inputs_are_copied_where_they_are_a_tenth_of_the_gpu(name: str, tokens: int, gib: int, pays: bool) -> None:
    size = memory.public_size(name)
    assert size is not None
    shape = memory.activation_shape("cuda", size.hidden, size.intermediate, size.layers)
    assert gradient_checkpointing.pays_to_offload(shape, tokens, gib * GIB) is pays
