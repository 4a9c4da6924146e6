"""A base that the trials of a sweep hold in turn on a GPU, for the child process of test_gpu_rows.py: what they compute
beside trials with bases of their own, and what is left of one when the next begins."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import model as models
from fasttune.training import watch

TRIALS = ((8, False), (4, True))  # rank, gradient checkpointing
TARGETS: tuple[Any, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Compute = Callable[[Any], Sequence[torch.Tensor]]


def measure(base: Path, prepare: Callable[[Any], None], step: Compute, answers: Compute) -> dict[str, Any]:
    """`prepare` gives an adapter its weights, `step` is loss and gradients, `answers` the logits that begin an
    answer: by `generate`, as the prompt is read, with a larger adapter, and without one."""
    recipe, shared = ModelRecipe(base=str(base), max_seq_length=2048, dtype="bfloat16"), watch.SharedBase()
    watched, left, foreign, copied, found = list[Any](), list[int](), list[str](), list[str](), list[Any]()

    def trial(model: Any, rank: int, checkpointing: bool) -> list[torch.Tensor]:
        lora = LoraRecipe(r=rank, alpha=2 * rank, target_modules=TARGETS)
        model = models.add_lora(model, lora, 0, checkpointing=checkpointing)
        prepare(model)
        made = [*step(model.train())]
        torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1).step()
        made += [*step(model), *answers(model)]
        watched.extend(map(weakref.ref, parts_of(model)))
        return made

    with patch.object(models, "load_base", wraps=models.load_base) as loading:
        for rank, checkpointing in TRIALS:
            shared.make_room(base, recipe)
            left.append(alive(watched))
            model = shared.load(base, recipe)
            foreign += modules_reached(model, shared.model)
            weights = dict(shared.model.named_parameters())
            copied += [name for name, weight in model.named_parameters() if weight is not weights[name]]
            found.append(trial(model, rank, checkpointing))
            del model
    own = models.load_base(base, recipe)
    unchanged = same_weights(shared.model, own)
    watched.extend(map(weakref.ref, [*shared.model.modules(), *weights.values()]))
    del weights
    shared.make_room(base, ModelRecipe(base="x/y"))
    left.append(alive(watched))
    alone = [trial(own, *TRIALS[0]), trial(models.load_base(base, recipe), *TRIALS[1])]
    return {
        "loads": loading.call_count, "left": left, "foreign": foreign, "copied": copied, "unchanged": unchanged,
        "equal": list(map(same, found, alone)),
        "tensors": [len(one) for one in found],
        "adapter": [float((one[-4].double() - one[-1]).norm() / one[-1].norm()) for one in found],
    }  # fmt: skip


def parts_of(model: Any) -> Iterator[Any]:
    """What a trial's model holds of its own: modules, fasttune's hooks (Unsloth's are one function for all models), the
    adapter and its copies."""
    for module in model.modules():
        yield module
        yield from (hook for hook in module._forward_pre_hooks.values() if hook.__module__.startswith("fasttune."))
    yield from (weight for name, weight in model.named_parameters() if "lora_" in name)
    yield from (model.adapter_copies, *model.adapter_copies.copies)


def alive(watched: Sequence[Any]) -> int:
    return sum(one() is not None for one in watched)


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    """Bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def same_weights(one: Any, other: Any) -> bool:
    """Whether parameters and buffers of two models are the same bytes."""

    def held(model: Any) -> dict[str, torch.Tensor]:
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: tensor.detach().contiguous().view(torch.uint8) for name, tensor in named}

    first, second = held(one), held(other)
    return list(first) == list(second) and same([*first.values()], [*second.values()])


def modules_reached(copied: Any, original: Any) -> list[str]:
    """The modules of the model that was copied which a copy still refers to, by whatever it holds."""
    forbidden = {id(module): name or "the model" for name, module in original.named_modules()}
    seen, left, reached = set[int](), [copied], list[str]()
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, torch.Tensor)):
            continue
        seen.add(id(one))
        if id(one) in forbidden:
            reached.append(forbidden[id(one)])
        elif isinstance(one, types.FunctionType):  # without its globals, which is all there is
            left += [vars(one), *(cell.cell_contents for cell in one.__closure__ or ())]
        else:
            left += gc.get_referents(one)
    return reached
