"""Where a base is found: built in, in a folder, on a hub; and what is said where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fasttune.console import FasttuneError
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import hub
from fasttune.training import model as models


def test_the_builtin_base_is_a_complete_checkpoint() -> None:
    folder = hub.locate(ModelRecipe(base="builtin:tiny"))
    assert hub.require_model_folder(folder) == folder
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000


@pytest.mark.parametrize(
    ("base", "code"),
    [
        ("./nowhere", "base-not-found"),
        ("D:\\models\\qwen", "base-not-found"),
        ("no-such-owner/no-such-model", "hub-unreachable"),
    ],
)
def test_a_base_that_is_not_there(base: str, code: str) -> None:
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base=base))
    (finding,) = caught.value.findings
    assert finding.code == code and finding.where == "model.base"


def test_an_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FasttuneError, match=r"tokenizer.json, \*.safetensors missing"):
        hub.locate(ModelRecipe(base=str(tmp_path)))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_base_with_code_of_its_own_is_refused_before_anything_is_loaded(tmp_path: Path, name: str) -> None:
    base = shutil.copytree(hub.TINY, tmp_path / "base")
    known = json.loads((base / name).read_text(encoding="utf-8"))
    (base / name).write_text(json.dumps(known | {"auto_map": {"AutoConfig": "own.Config"}}), encoding="utf-8")
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base=str(base)))
    (finding,) = caught.value.findings
    assert (finding.code, finding.where) == ("base-needs-remote-code", str(base / name))


def test_modelscope_without_its_package_says_how_to_get_it() -> None:
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base="Qwen/Qwen2.5-0.5B-Instruct", mirror="modelscope"))
    assert "pip install modelscope" in caught.value.findings[0].fix


def test_a_base_that_is_no_instruct_model_is_called_one(tmp_path: Path) -> None:
    """Its own end token is another than the one that ends a turn, which it was never trained on."""
    assert hub.no_instruct_model(models.load_tokenizer(hub.TINY), "builtin:tiny") == []
    base = shutil.copytree(hub.TINY, tmp_path / "Qwen2.5-0.5B")
    known = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    changed = known | {"eos_token": "<|endoftext|>"}
    (base / "tokenizer_config.json").write_text(json.dumps(changed), encoding="utf-8")
    (finding,) = hub.no_instruct_model(models.load_tokenizer(base), "Qwen/Qwen2.5-0.5B")
    assert (finding.code, finding.level, finding.where) == ("base-not-instruct", "warning", "model.base")
    assert "Qwen/Qwen2.5-0.5B is no Instruct model: its own end token is <|endoftext|>" in finding.what
