"""What a name stands for: runs, checkpoints, the base, files, models in Ollama; and names that stand for nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Quickstart

from fasttune.analysis import sources
from fasttune.analysis.answers import GgufSource, OllamaSource, TorchSource
from fasttune.console import FasttuneError, Finding
from fasttune.runs import epochs, store
from fasttune.training import hub


@pytest.fixture
def root(quickstart: Quickstart) -> Path:
    return quickstart.folder.parent.parent


def refusal(name: str, root: Path) -> Finding:
    with pytest.raises(FasttuneError) as refused:
        sources.find(name, root)
    return refused.value.findings[0]


@pytest.mark.parametrize("name", ["quickstart", "quickstart/001", "quickstart/001-fresh"])
def test_a_run_is_its_adapter(root: Path, name: str) -> None:
    found = sources.find(name, root)
    assert (
        isinstance(found.source, TorchSource) and found.source.adapter and found.source.name == "quickstart/001-fresh"
    )
    assert found.run is not None and found.source.loaded.adapter == found.run.adapter
    assert found.source.loaded.base == hub.TINY and found.system is not None


@pytest.mark.parametrize("name", ["quickstart@290", "quickstart/001-fresh@290", "quickstart/001-fresh/checkpoint-290"])
def test_a_checkpoint(root: Path, name: str) -> None:
    found = sources.find(name, root)
    assert isinstance(found.source, TorchSource) and found.source.name == "quickstart/001-fresh@290"
    assert found.run is not None and found.source.loaded.adapter == found.run.checkpoints / "checkpoint-290"


def test_a_kept_epoch(root: Path) -> None:
    first = epochs.kept_epochs(store.find(root, "quickstart"))[0]
    found = sources.find(f"quickstart@{first.folder.name}", root)
    assert isinstance(found.source, TorchSource) and found.source.loaded.adapter == first.folder
    assert found.source.name == f"quickstart/001-fresh@{first.folder.name}" and found.system is not None


def test_the_base_is_loaded_once_with_the_adapter_beside_it(root: Path) -> None:
    run = sources.find("quickstart", root)
    base = sources.base_of(run)
    assert isinstance(base.source, TorchSource) and isinstance(run.source, TorchSource)
    assert base.source.loaded is run.source.loaded and not base.source.adapter and base.system == run.system


def test_a_file_in_a_runs_exports_has_its_system_prompt(quickstart: Quickstart, root: Path, tmp_path: Path) -> None:
    path = quickstart.folder / "exports" / "quickstart-Q8_0.gguf"
    found = sources.find(str(path), root)
    assert isinstance(found.source, GgufSource) and found.source.tokenizer_of == hub.TINY
    assert found.system == sources.find("quickstart", root).system
    shutil.copy(path, tmp_path / "alone.gguf")
    alone = sources.find(str(tmp_path / "alone.gguf"), root)
    assert (alone.run, alone.system) == (None, None)
    assert sources.asked_with(alone, None, "lent").system == "lent"
    assert sources.asked_with(found, None, "lent").system == found.system
    assert sources.asked_with(found, "given", "lent").system == "given"


def test_a_model_in_ollama_has_its_own_system_prompt(root: Path) -> None:
    found = sources.find("ollama:linzhi:v2", root)
    assert isinstance(found.source, OllamaSource) and found.source.model == "linzhi:v2"
    assert sources.asked_with(found, None, "lent").system is None


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("lumen", "unknown-run", "quickstart"),
        ("quickstart@7", "no-checkpoint", "290"),
        ("quickstart@epoch-77", "no-such-epoch", "1, 2"),
        ("lumen@7", "unknown-run", "quickstart"),
        ("nowhere.gguf", "no-gguf", "nowhere.gguf"),
    ],
)
def test_names_that_stand_for_nothing(root: Path, name: str, code: str, said: str) -> None:
    finding = refusal(name, root)
    assert finding.code == code and said in finding.what + finding.fix


def test_a_damaged_checkpoint_is_not_asked(quickstart: Quickstart, tmp_path: Path) -> None:
    shutil.copytree(quickstart.folder, tmp_path / "quickstart" / "001-fresh", ignore=shutil.ignore_patterns("exports"))
    weights = tmp_path / "quickstart/001-fresh/checkpoints/checkpoint-290/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert refusal("quickstart@290", tmp_path).code == "checkpoint-damaged"


def test_the_base_of_a_file_of_unknown_origin(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(FasttuneError) as refused:
        sources.base_of(sources.find(str(tmp_path / "x.gguf"), tmp_path))
    assert refused.value.findings[0].code == "base-unknown"
