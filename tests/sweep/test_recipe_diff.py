"""How a recipe would read with other values."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune.recipe.load import load_recipe
from fasttune.sweep.recipe_diff import as_trained, recipe_diff, with_setting

RECIPE = """name = "cat"   # the series

[model]
base = "builtin:tiny"

[train]
learning_rate = 2e-4  # 1e-4 was too low
lr_scheduler_type = "linear" # "#" is no comment in a text

[data]
train = "cat.jsonl"
"""


def changed(settings: dict[str, str], text: str = RECIPE) -> list[str]:
    """The lines that the diff takes away and adds."""
    path = Path("cat.toml")
    path.write_text(text, encoding="utf-8")
    lines = recipe_diff(path, settings).splitlines()
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_line_gets_its_value_and_keeps_its_comment() -> None:
    assert changed({"train.learning_rate": "4e-4"}) == [
        "-learning_rate = 2e-4  # 1e-4 was too low",
        "+learning_rate = 4e-4  # 1e-4 was too low",
    ]
    assert changed({"train.lr_scheduler_type": "cosine"})[1] == (
        '+lr_scheduler_type = "cosine" # "#" is no comment in a text'
    )


def test_a_setting_that_is_not_there_is_added_to_its_table() -> None:
    assert changed({"train.epochs": "3"}) == ["+epochs = 3"]
    assert changed({"lora.r": "16", "lora.alpha": "32"}) == ["+", "+[lora]", "+r = 16", "+alpha = 32"]


def test_what_the_sweep_was_given_stands_in_it_too() -> None:
    """Without data.val the recipe would hold out nothing, and train on other samples than the chosen run."""
    given = ("data.val=0.2", "train.learning_rate = 1e-3", "export.gguf=[]", "continue.parent=cat/001-fresh")
    found = as_trained(given, {"train.learning_rate": "4e-4"})
    assert found == {"data.val": "0.2", "train.learning_rate": "4e-4"}
    assert changed(found) == [
        "-learning_rate = 2e-4  # 1e-4 was too low", "+learning_rate = 4e-4  # 1e-4 was too low", "+val = 0.2",
    ]  # fmt: skip


def test_a_recipe_that_has_the_values_stays_as_it_is() -> None:
    assert changed({"train.learning_rate": "0.0002"}) == []


def test_what_a_line_alone_cannot_say_is_a_line_below() -> None:
    inline = RECIPE.replace("[data]", "[lora]\ntarget_modules = [\n  'q_proj',\n]\n\n[data]")
    Path("cat.toml").write_text(inline, encoding="utf-8")
    assert recipe_diff(Path("cat.toml"), {"lora.target_modules": '["v_proj"]'}) == 'lora.target_modules = ["v_proj"]'
    assert with_setting("lora = {r = 8}", "lora.r", 16, "16") is None


def test_the_diff_gives_the_recipe_that_was_trained() -> None:
    """Every combination of the three ways to write a value, read again as a recipe."""
    text = RECIPE
    for key, value, line in (("train.learning_rate", 4e-4, "4e-4"), ("train.epochs", 3, "3"), ("lora.r", 32, "32")):
        found = with_setting(text, key, value, line)
        assert found is not None
        text = found
    Path("new.toml").write_text(text, encoding="utf-8")
    recipe = load_recipe(Path("new.toml"))
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.lora.r) == (4e-4, 3, 32)
