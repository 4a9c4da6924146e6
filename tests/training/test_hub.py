"""Where a base is found: built in, in a folder, on a hub; and what is said where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fasttune.console import FasttuneError
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import hub


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


def test_a_base_that_is_here_is_found_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the hub's cache too, whose layout huggingface_hub's own functions read."""
    folder = tmp_path / "base"
    shutil.copytree(hub.TINY, folder)
    assert hub.find_offline(ModelRecipe(base="builtin:tiny")) == hub.TINY
    assert hub.find_offline(ModelRecipe(base=str(folder))) == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    named = ModelRecipe(base="somebody/small")
    assert hub.find_offline(named) is None
    repository = tmp_path / "hub" / "models--somebody--small"
    shutil.copytree(hub.TINY, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert hub.find_offline(named) == repository / "snapshots" / ("a" * 40)
    (repository / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    assert hub.find_offline(named) is None
    with pytest.raises(FasttuneError):
        hub.find_offline(ModelRecipe(base="./nowhere"))
