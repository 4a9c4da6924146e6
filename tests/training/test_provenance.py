"""Where a run comes from is written down, and a changed base or package shows."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Quickstart
from run_folders import write_run

from fasttune.console import FasttuneError
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import documents
from fasttune.runs.documents import BaseRecord
from fasttune.training import hub, provenance


def test_a_run_says_where_it_comes_from(quickstart: Quickstart) -> None:
    document = json.loads((quickstart.folder / "provenance.json").read_text(encoding="utf-8"))
    assert document["packages"]["unsloth"] == metadata.version("unsloth")
    assert document["base"]["name"] == "builtin:tiny"
    assert document["base"]["fingerprint"] == provenance.fingerprint(hub.TINY)
    assert document["data"]["fingerprint"]
    assert document["device"]["kind"] in ("cpu", "cuda")
    assert document["system"] == json.loads((quickstart.folder / "plan.json").read_text())["system"]


def test_the_fingerprint_changes_with_the_weights(tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(hub.TINY, copy)
    assert provenance.fingerprint(copy) == provenance.fingerprint(hub.TINY)
    with open(copy / "model.safetensors", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x01\x02\x03")
    assert provenance.fingerprint(copy) != provenance.fingerprint(hub.TINY)


def test_a_base_in_a_folder_is_found_from_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is never asked of a hub, though `models/base` could be a name there."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    shutil.copytree(hub.TINY, project / "models" / "base")
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    run = write_run(tmp_path / "runs")
    folder = provenance.local_folder("models/base")
    record = BaseRecord("models/base", "", provenance.fingerprint(Path(folder)), folder)
    documents.update_provenance(run, base=record)
    model = ModelRecipe(base="models/base")
    assert provenance.locate_base(run, model) == Path("models/base")
    monkeypatch.chdir(elsewhere)
    assert provenance.locate_base(run, model) == project / "models" / "base"
    shutil.copytree(project / "models", elsewhere / "models")
    (elsewhere / "models" / "base" / "config.json").write_text("{}")  # another base of the same name
    assert provenance.locate_base(run, model) == project / "models" / "base"
    shutil.rmtree(elsewhere / "models")
    shutil.rmtree(project / "models")
    with pytest.raises(FasttuneError, match="there is no folder"):
        provenance.locate_base(run, model)
    assert provenance.local_folder("builtin:tiny") == "" == provenance.local_folder("Qwen/Qwen2.5-0.5B-Instruct")
