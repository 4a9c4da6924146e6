"""Where a base is found: built in, in a folder, on a hub; and what is said where it is not."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

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
    assert finding.code == code and finding.where == "model.base" and finding.fix


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


@pytest.mark.parametrize(
    ("config", "fix"),
    [
        ('{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}', 'base = "Qwen/Qwen2.5-0.5B"'),
        ("[1]", "name the base it was trained on"),
        ("{" * 9999, "name the base it was trained on"),
    ],
)
def test_an_adapter_in_place_of_a_base_names_its_base(tmp_path: Path, config: str, fix: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base=str(tmp_path)))
    (finding,) = caught.value.findings
    assert finding.code == "base-is-adapter" and fix in finding.fix


def test_an_adapter_beside_a_base_is_refused(tmp_path: Path) -> None:
    """transformers would load whatever base the adapter names, in place of the model that was checked."""
    base = shutil.copytree(hub.TINY, tmp_path / "base")
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}', encoding="utf-8")
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base=str(base)))
    (finding,) = caught.value.findings
    assert finding.code == "base-is-adapter" and finding.fix == "move adapter_config.json away"


class Hostile:
    """Pickled, an object that writes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


def test_a_pickle_among_the_files_of_a_base_is_never_read(tmp_path: Path) -> None:
    """Weights are safetensors only: a pickle may run anything when it is loaded."""
    base, proof = shutil.copytree(hub.TINY, tmp_path / "base"), tmp_path / "executed"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pth"):
        (base / name).write_bytes(pickle.dumps(Hostile(proof)))
    recipe = ModelRecipe(base=str(base))
    models.load_base(hub.locate(recipe), recipe)
    (base / "model.safetensors").unlink()
    with pytest.raises(FasttuneError) as caught:
        hub.locate(recipe)
    assert caught.value.findings[0].code == "base-incomplete" and not proof.exists()
    pickle.loads((base / "model.pth").read_bytes())
    assert proof.exists()  # the trap works


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
