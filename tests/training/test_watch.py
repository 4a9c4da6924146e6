"""The base that several runs of one process share: the same weights, and nothing of one run in the next."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import device, watch
from fasttune.training import model as models

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


@pytest.mark.parametrize(("where", "in_4bit"), [("cuda", False), ("cpu", True)])
def test_what_may_be_changed_in_place_is_not_shared(
    small_base: Path, monkeypatch: pytest.MonkeyPatch, where: str, in_4bit: bool
) -> None:
    monkeypatch.setattr(device, "device_type", lambda: where)
    monkeypatch.setattr(device, "release_memory", lambda: None)
    shared, recipe = watch.SharedBase(), ModelRecipe(base="x/y", load_in_4bit=in_4bit)
    with patch.object(models, "load_base", side_effect=[1, 2]):
        assert [shared.load(small_base, recipe), shared.load(small_base, recipe)] == [1, 2]


class Plain:
    """A model without parameters."""

    def parameters(self) -> list[object]:
        return []
