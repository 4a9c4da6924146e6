"""Samples that were added behind those of an earlier training are told from its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fasttune.data.additions import Trained, added_since
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.recipe.schema import DataRecipe


def lines(count: int, name: str = "q") -> list[str]:
    return [json.dumps({"prompt": f"{name} {n}?", "completion": f"answer {n}"}) for n in range(count)]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def trained(dataset: Dataset, val: str | float) -> Trained:
    return Trained(dataset.fingerprint, len(dataset.train), len(dataset.held_out), val)


@pytest.mark.parametrize("settings", [{"val": 0.1}, {"val": ""}, {"val": "val"}, {"val": 0.2, "replay": 0.1}])
@pytest.mark.parametrize(
    ("change", "added"),
    [
        (lambda texts: [*texts, *lines(7, "new")], 7),
        (lambda texts: texts, 0),
        (lambda texts: [*lines(1, "new"), *texts], None),
        (lambda texts: texts[:-1], None),
        (lambda texts: [*texts[:-1], *lines(3, "new")], None),
    ],
    ids=["added", "same", "in front", "one gone", "last changed"],
)
def test_what_was_added(
    tmp_path: Path, settings: dict[str, Any], change: Callable[[list[str]], list[str]], added: int | None
) -> None:
    if settings["val"] == "val":
        settings = {"val": write(tmp_path / "val.jsonl", lines(3, "held out"))}
    recipe = DataRecipe(train=(write(tmp_path / "train.jsonl", lines(20)),), **settings)
    then = trained(load_dataset(recipe, 0), recipe.val)
    write(tmp_path / "train.jsonl", change(lines(20)))
    assert added_since(then, load_dataset(recipe, 0), recipe, 0) == added


def test_a_second_file_and_a_json_array(tmp_path: Path) -> None:
    """A share is held out of all files together; samples of one line stand in the order of the array."""
    array = tmp_path / "first.json"
    array.write_text("[" + ", ".join(lines(20)) + "]", encoding="utf-8")
    first = DataRecipe(train=(str(array),), val=0.1)
    then = trained(load_dataset(first, 0), 0.1)
    both = DataRecipe(train=(str(array), write(tmp_path / "second.jsonl", lines(5, "new"))), val=0.3)
    assert added_since(then, load_dataset(both, 0), both, 0) == 5
