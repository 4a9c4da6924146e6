"""The base that several runs of one process share: the same weights, and nothing of one run in the next."""

from __future__ import annotations

import weakref
from pathlib import Path
from unittest.mock import patch

import pytest

from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import model as models
from fasttune.training import watch

RECIPE = ModelRecipe(base="builtin:tiny")


def test_a_run_gets_modules_of_its_own_with_the_same_weights(small_base: Path) -> None:
    shared = watch.SharedBase()
    with patch.object(models, "load_base", wraps=models.load_base) as loading:
        first, second = shared.load(small_base, RECIPE), shared.load(small_base, RECIPE)
    assert loading.call_count == 1
    assert first is not second
    names = dict(second.named_parameters())
    assert names and all(names[name] is weight for name, weight in first.named_parameters())
    assert second.get_output_embeddings().weight is second.get_input_embeddings().weight  # tied as they were
    models.add_lora(first, LoraRecipe(r=4), 1, checkpointing=False)
    assert any("lora_" in name for name, _module in first.named_modules())
    third = shared.load(small_base, RECIPE)
    for model in (second, third):
        assert not [name for name, _module in model.named_modules() if "lora_" in name]
        layers = model.model.layers.modules()
        assert not [layer for layer in layers if "forward" in vars(layer)]  # none is computed by cpu_layers.py


def test_another_base_or_another_number_type_is_loaded(small_base: Path) -> None:
    shared = watch.SharedBase()
    with patch.object(
        models, "load_base", side_effect=lambda _base, recipe: models.import_unsloth() and Plain()
    ) as load:
        shared.load(small_base, RECIPE)
        shared.load(small_base, ModelRecipe(base="builtin:tiny", max_seq_length=64))
        shared.load(small_base / "..", RECIPE)
        assert load.call_count == 3


@pytest.mark.parametrize("split", [False, True])
def test_what_may_not_be_shared_is_loaded_anew(small_base: Path, split: bool) -> None:
    """A base in 4 bits, and one that accelerate has spread over several GPUs."""
    shared, recipe = watch.SharedBase(), ModelRecipe(base="x/y", load_in_4bit=not split)
    loaded = [Plain(), Plain()]
    for one in loaded if split else []:
        vars(one)["_hf_hook"] = "accelerate's"
    with patch.object(models, "load_base", side_effect=loaded):
        assert [shared.load(small_base, recipe), shared.load(small_base, recipe)] == loaded
    assert shared.model is None


@pytest.mark.parametrize("other", [ModelRecipe(base="builtin:tiny", load_in_4bit=True), ModelRecipe(base="x/y")])
def test_never_two_bases_are_in_memory(small_base: Path, other: ModelRecipe) -> None:
    """Neither the base that was shared nor the modules of the run before are there when another one is loaded."""
    made: list[weakref.ref[Plain]] = []

    def load(_base: Path, _recipe: ModelRecipe) -> Plain:
        assert [one() for one in made if one() is not None] == []
        made.append(weakref.ref(loaded := Plain()))
        return loaded

    models.import_unsloth()
    shared = watch.SharedBase()
    with patch.object(models, "load_base", side_effect=load):
        for recipe in (RECIPE, other, RECIPE):
            made.append(weakref.ref(shared.load(small_base, recipe)))
    assert len(made) == 6


def test_there_is_room_for_the_base_that_is_there(small_base: Path) -> None:
    shared = watch.SharedBase()
    assert not shared.make_room(small_base, RECIPE)
    shared.load(small_base, RECIPE)
    assert shared.make_room(small_base, RECIPE)
    assert not shared.make_room(small_base, ModelRecipe(base="builtin:tiny", load_in_4bit=True))
    assert not shared.make_room(small_base, RECIPE)  # it was freed for the other one


class Plain:
    """A model without parameters, in a cycle as every model."""

    def __init__(self) -> None:
        self.itself = self

    def parameters(self) -> list[object]:
        return []
