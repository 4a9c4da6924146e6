"""The declarations of settings: names, types, defaults and bounds that fit together."""

from __future__ import annotations

from dataclasses import MISSING

import pytest

from fasttune.recipe.schema import KEYS, LEAVES, TABLES, Key
from fasttune.recipe.toml_file import REFUSED
from fasttune.recipe.values import BOUNDS, convert


def test_last_names_of_settings_are_unique() -> None:
    """`learning_rate` in the wrong table is led to its own: that needs every last name to be one setting's."""
    assert len({key.leaf for key in KEYS.values()}) == len(KEYS)


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_a_default_is_valid_for_its_setting(key: Key) -> None:
    assert key.help and key.name.count(".") <= 2
    assert key.required == (key.default is MISSING)
    value = key.example if key.required else key.default
    if value is not None:
        converted = convert(key.hint, value)
        assert converted is not REFUSED
        if isinstance(converted, (int, float)):
            assert all(BOUNDS[sign](converted, bound) for sign, bound in key.bounds.items())


def test_tables_and_keys_follow_the_declarations() -> None:
    assert set(TABLES) == {"model", "data", "lora", "train", "train.until", "continue", "export", "probe", "facts"}
    assert {key.table for key in KEYS.values()} == {"", *TABLES}
    assert LEAVES["r"] == "lora.r" and KEYS["lora.r"].leaf == "r" and KEYS["name"].table == ""


def test_every_upper_bound_has_its_reason() -> None:
    bounded = {key.name for key in KEYS.values() if {"≤", "<"} & key.bounds.keys()}
    assert len(bounded) > 15 and bounded == {key.name for key in KEYS.values() if key.most}
