"""What a run and a download will write, against the space that is free."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from written_runs import planned, write_parent

from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs.store import Run
from fasttune.training import hub, space


def leave(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, free, free))


def test_a_disk_without_room_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    assert space.lacking_space(10, folder, "free some") == []
    leave(0, monkeypatch)
    (finding,) = space.lacking_space(10, folder, "free some", "it is large")
    assert (finding.code, finding.where, finding.fix) == ("disk-full", str(tmp_path), "free some")
    assert finding.level == "error" and finding.why == "it is large"


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return write_parent(tmp_path)


@pytest.fixture
def plan(parent: Run) -> Plan:
    """A run of 3 epochs, each of which is kept."""
    return planned("train.epochs=3", "data.val=val.jsonl", on_existing="new")


def test_a_run_needs_a_checkpoint_its_adapter_and_those_of_the_kept_epochs(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = space.read_size(plan.recipe.model, hub.TINY)
    assert size is not None and plan.kept_epochs == 3
    adapter = 4 * size.adapter_weights(plan.recipe.lora)
    least = 3 * adapter + 2**20 + (1 + 3) * (adapter + space.SMALL_FILES)
    leave(least, monkeypatch)
    assert space.space_for_run(plan, hub.TINY, Path("runs"), None) == []
    leave(least - 1, monkeypatch)
    (finding,) = space.space_for_run(plan, hub.TINY, Path("runs"), None)
    assert finding.code == "disk-full" and "--runs FOLDER" in finding.fix


def test_a_run_that_lacks_its_files_alone_and_a_base_of_unknown_size_need_nothing_that_is_known(
    plan: Plan, parent: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(0, monkeypatch)
    assert space.space_for_run(plan, hub.TINY, Path("runs"), parent) == []
    other = replace(plan, recipe=replace(plan.recipe, model=ModelRecipe(base="owner/name")))
    assert space.space_for_run(other, None, Path("runs"), None) == []
    assert space.space_for_download(ModelRecipe(base="owner/name")) == []


@pytest.mark.parametrize(("name", "gigabytes"), [("0.5B", 1.0), ("1.5B", 3.1), ("3B", 6.2)])
def test_the_download_is_what_the_readme_says(name: str, gigabytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelRecipe(base=f"Qwen/Qwen2.5-{name}-Instruct")
    assert round((space.download_bytes(model) or 0) / 1e9, 1) == gigabytes
    leave(9 * 10**8, monkeypatch)
    (finding,) = space.space_for_download(model)
    assert finding.code == "disk-full" and model.base in finding.why and "HF_HOME" in finding.fix
