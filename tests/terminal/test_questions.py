"""The settings that the answers to a strategy's questions come to; the answers are given without a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import Recipe
from fasttune.terminal import prompts, questions
from fasttune.terminal.questions import Parent


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    """A run of 2 epochs over 10 samples with rank 8, alpha 16 and learning rate 2e-4."""
    return questions.read_parent(write_run(tmp_path / "runs"))


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "persona.toml"
    path.write_text('name = "persona"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "a.jsonl"\n')
    return load_recipe(path, overrides)


def answering(monkeypatch: pytest.MonkeyPatch, *given: str | float | None) -> dict[str, float]:
    """Give these answers in turn, None being what Enter alone says; the defaults of the numbers asked for."""
    answers: Iterator[Any] = iter(given)
    defaults: dict[str, float] = {}

    def choose(_question: str, choices: Mapping[str, str], first: str | None = None) -> str:
        picked = next(answers)
        picked = first if picked is None else picked
        assert picked in choices
        return str(picked)

    def number(question: str, default: float, *, most: float | None = None, whole: bool = False) -> float:
        defaults[question] = default
        picked = next(answers)
        return default if picked is None else float(picked)

    monkeypatch.setattr(prompts, "choose", choose)
    monkeypatch.setattr(prompts, "number", number)
    return defaults


@pytest.mark.parametrize(
    ("strategy", "given", "settings"),
    [
        ("incremental", [None], {"continue.add_epochs": 1.5}),
        ("retune", ["epochs", 3], {"train.epochs": 3.0}),
        ("retune", ["learning_rate", "1e-05"], {"train.epochs": 2.0, "train.learning_rate": 1e-5}),
        ("retune", ["learning_rate", None], {"train.epochs": 2.0, "train.learning_rate": 2e-4}),
        ("retune", ["rank", "32"], {"train.epochs": 2.0, "lora.r": 32, "lora.alpha": 64}),
        ("retune", ["rank", "other", 12], {"train.epochs": 2.0, "lora.r": 12, "lora.alpha": 24}),
        ("retune", ["quick"], {"train.learning_rate": 3e-4, "lora.r": 8, "lora.alpha": 16, "train.epochs": 2.0}),
        ("augment", [None], {"train.epochs": 6.5}),
        (
            "custom",
            ["adapter", 1, None],
            {"continue.start": "adapter", "train.epochs": 1.0, "train.learning_rate": 2e-4},
        ),
    ],
)
def test_settings_of_the_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parent: Parent,
    strategy: str,
    given: list[Any],
    settings: dict[str, Any],
) -> None:
    answering(monkeypatch, *given)
    assert questions.answers(strategy, parent, recipe(tmp_path)) == settings


def test_augment_proposes_more_epochs_than_the_parent_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = questions.read_parent(write_run(tmp_path / "runs", losses=[0.3] * 8))
    defaults = answering(monkeypatch, None)
    assert questions.augment(trained) == {"train.epochs": 9.0}
    assert list(defaults) == ["How many epochs in total? It has trained 8; 5 to 8 suit 10 samples"]


def test_an_alpha_of_its_own_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = questions.read_parent(write_run(tmp_path / "runs", lora__alpha=20))
    answering(monkeypatch, "rank", "16")
    assert questions.retune(own) == {"train.epochs": 2.0, "lora.r": 16}


def test_a_recipe_that_differs_yields_to_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: Parent
) -> None:
    answering(monkeypatch, 1, 1)
    other = recipe(
        tmp_path, "train.learning_rate=1e-3", "train.max_steps=9", "continue.add_epochs=7", "continue.start=base"
    )
    assert questions.answers("incremental", parent, other) == {
        "train.learning_rate": 2e-4, "train.max_steps": 0, "continue.add_epochs": 1.0, "continue.start": "checkpoint",
    }  # fmt: skip
    assert questions.answers("incremental", parent, recipe(tmp_path, "train.learning_rate=2e-4")) == {
        "continue.add_epochs": 1.0
    }


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(8 / 3, 3), (7 / 6, 6), (2.0, 3)])
def test_epochs_that_are_proposed_come_to_no_step_more(epochs: float, steps_per_epoch: int) -> None:
    from fasttune.planning.lengths import steps_in

    proposed = questions.not_above(epochs)
    assert steps_in(proposed, steps_per_epoch) == round(epochs * steps_per_epoch)
