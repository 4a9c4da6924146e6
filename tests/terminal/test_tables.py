"""`fasttune show`: the tokens of a sample, learned ones marked with and without colour."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import REPOSITORY, Cli

SAMPLE = "data/quickstart/train.jsonl:1"


def first_answer() -> str:
    with open(REPOSITORY / "data/quickstart/train.jsonl", encoding="utf-8") as file:
        return str(json.loads(file.readline())["messages"][-1]["content"])


def test_learned_tokens_are_marked_without_colour(fasttune: Cli) -> None:
    done = fasttune("show", SAMPLE, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    marked = done.stdout.split("⟦")[1].split("⟧")[0].replace("│", "")
    assert marked == first_answer() + "<|im_end|>"


def test_learned_tokens_in_json(fasttune: Cli) -> None:
    shown = json.loads(fasttune("show", SAMPLE, "--json").stdout)
    learned = "".join(piece["text"] for piece in shown["pieces"] if piece["supervised"])
    assert learned == first_answer() + "<|im_end|>"
    assert sum(len(piece["ids"]) for piece in shown["pieces"]) == shown["tokens"]
    assert sum(len(piece["ids"]) for piece in shown["pieces"] if piece["supervised"]) == shown["supervised"]


def test_a_recipe_decides_the_system_prompt_and_what_is_learned(fasttune: Cli, tmp_path: Path) -> None:
    data = tmp_path / "bare.jsonl"
    data.write_text('{"prompt": "hello", "completion": "hi"}\n')
    recipe = tmp_path / "bare.toml"
    recipe.write_text(
        f'name = "bare"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{data}"\nsystem = "Be brief."\n'
    )
    text = "".join(piece["text"] for piece in json.loads(
        fasttune("show", f"{data}:1", "--recipe", recipe, "--set", "data.learn=all", "--json").stdout)["pieces"])  # fmt: skip
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    everything = json.loads(
        fasttune("show", f"{data}:1", "--recipe", recipe, "--set", "data.learn=all", "--json").stdout
    )
    assert everything["supervised"] == everything["tokens"] - 1


def test_a_broken_line_is_shown_as_its_problem(fasttune: Cli, tmp_path: Path) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text('{"prompt": "hello", "completion": "hi"}\n{"prompt": "hello"}\n')
    done = fasttune("show", f"{data}:2")
    assert done.returncode == 1
    assert f"{data}:2" in done.stderr
