"""Data files for tests: records written as JSONL, the shipped formats, and the findings that a data set is refused with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fasttune.console import FasttuneError, Finding
from fasttune.data.dataset import Sample, load_dataset
from fasttune.recipe.schema import DataRecipe

SHEET = """\
[[fact]]
id = "cat"
text = "猫叫定影"
questions = ["猫叫啥？", "猫咪大名？", "怎么喊猫？"]
accept = ["定影"]
"""
FORMATS = Path(__file__).parents[1] / "data" / "formats"


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def pair(prompt: str, completion: str = "答") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def turns(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.messages]


def refusal(*train: str, **settings: Any) -> list[Finding]:
    """The findings of the error that loading these files raises."""
    with pytest.raises(FasttuneError) as caught:
        load_dataset(DataRecipe(train=train, **settings), seed=0)
    return list(caught.value.findings)
