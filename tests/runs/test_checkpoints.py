"""Checkpoints: whole with a manifest, rotated, their damage named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from fasttune.console import FasttuneError
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.store import Run


def write_checkpoint(run: Run, step: int) -> Path:
    with checkpoints.writing_checkpoint(run, step) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights" * step)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return run.checkpoints / f"checkpoint-{step}"


def test_checkpoints_are_whole_and_rotate(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    for step in (5, 10, 15, 100):
        write_checkpoint(run, step)
    assert [checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(run)] == [5, 10, 15, 100]
    checkpoints.rotate(run, keep=2, best_step=5)
    assert [checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(run)] == [5, 15, 100]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"weightsweighty"), "checksum mismatch"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "checksum mismatch"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"step": 2, "sha256": {}}'), "lists no files"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b""), "does not list optimizer.pt"),
    ],
)
def test_damage_is_named(tmp_path: Path, harm: Callable[[Path], Any], words: str) -> None:
    checkpoint = write_checkpoint(store.create(tmp_path, "linzhi", "fresh"), 2)
    assert checkpoints.find_damage(checkpoint) == ""
    harm(checkpoint)
    assert words in checkpoints.find_damage(checkpoint)


def test_a_file_that_training_does_not_read_may_lie_beside_the_others(tmp_path: Path) -> None:
    """Windows and file managers leave some."""
    checkpoint = write_checkpoint(store.create(tmp_path, "linzhi", "fresh"), 2)
    (checkpoint / "desktop.ini").write_text("")
    assert checkpoints.find_damage(checkpoint) == ""


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    (run.checkpoints / "checkpoint-7.partial").mkdir(parents=True)
    assert checkpoints.list_checkpoints(run) == []
    write_checkpoint(run, 7)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-7"]


def test_a_checkpoint_of_another_step_or_of_a_newer_fasttune_is_not_used(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    write_checkpoint(run, 2).rename(run.checkpoints / "checkpoint-3")
    assert checkpoints.find_damage(run.checkpoints / "checkpoint-3") == "it holds step 2"
    manifest = run.checkpoints / "checkpoint-3" / documents.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 3, "format": 99}))
    assert "manifest.json is missing or unreadable" in checkpoints.find_damage(run.checkpoints / "checkpoint-3")


def test_the_newest_whole_checkpoint_with_a_sentence_about_each_newer_one(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    assert checkpoints.newest_whole_checkpoint(run) == (None, [])
    first, second = write_checkpoint(run, 2), write_checkpoint(run, 4)
    (second / "trainer_state.json").unlink()
    used, flaws = checkpoints.newest_whole_checkpoint(run)
    assert used == first
    assert flaws == [f"{second} is damaged and is not used: trainer_state.json is missing"]
    (finding,) = checkpoints.damage_findings(run, used, flaws)
    assert (finding.code, finding.level, finding.where) == ("checkpoint-damaged", "warning", run.id)
    assert finding.why == "checkpoint-2 is used instead"
    (first / "trainer_state.json").unlink()
    used, flaws = checkpoints.newest_whole_checkpoint(run)
    assert used is None and len(flaws) == 2
    assert checkpoints.damage_findings(run, used, flaws)[0].why == "no complete checkpoint is left"


def test_damaged_checkpoints_beyond_the_newest_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    for step in (2, 4, 6, 8):
        write_checkpoint(run, step)
    checkpoints.rotate(run, keep=1, best_step=None, newest=6)
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["checkpoint-6", "checkpoint-8"]


def test_a_run_that_never_trained_a_step_leaves_no_folder(tmp_path: Path) -> None:
    empty, begun = store.create(tmp_path, "linzhi", "fresh"), store.create(tmp_path, "linzhi", "fresh")
    begun.history.write_text("")
    for run in (empty, begun):
        with pytest.raises(RuntimeError), checkpoints.unless_begun(run):
            raise RuntimeError
    assert store.list_runs(tmp_path, "linzhi") == [begun]


@pytest.mark.parametrize(("patience", "best", "warns"), [(2, 5, True), (2, 10, False), (0, 5, False), (2, None, False)])
def test_a_continuation_that_leaves_the_best_behind(
    patience: int, best: int | None, warns: bool, tmp_path: Path
) -> None:
    """Early stopping made step 5 the adapter; the last checkpoint, of step 10, is the one that it rejected."""
    run = write_run(tmp_path, train__early_stopping_patience=patience)
    state = {"global_step": 10, "log_history": [], "best_metric": 0.5, "best_global_step": best}
    run.trainer_state.write_text(json.dumps(state))
    found = checkpoints.best_left_behind(run, write_checkpoint(run, 10), "fasttune run x.toml")
    assert [finding.code for finding in found] == ["best-left-behind"] * warns
    assert not checkpoints.best_left_behind(run, None, "")


def test_an_adapter_is_compared_with_its_manifest(tmp_path: Path) -> None:
    for name in checkpoints.ADAPTER_FILES:
        (tmp_path / name).write_text(name)
    checkpoints.require_whole_adapter(tmp_path)  # written before there were manifests of adapters
    checkpoints.write_manifest(tmp_path, 3, checkpoints.ADAPTER_FILES)
    (tmp_path / "README.md").write_text("the user's own")
    checkpoints.require_whole_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text("flipped")
    with pytest.raises(FasttuneError, match=r"adapter_model\.safetensors: checksum mismatch") as caught:
        checkpoints.require_whole_adapter(tmp_path)
    assert [finding.code for finding in caught.value.findings] == ["adapter-damaged"]
    checkpoints.write_manifest(tmp_path, 3, ["adapter_config.json"])
    with pytest.raises(FasttuneError, match=r"does not list adapter_model\.safetensors"):
        checkpoints.require_whole_adapter(tmp_path)
    checkpoints.write_manifest(tmp_path, 3, checkpoints.ADAPTER_FILES)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FasttuneError, match=r"adapter_model\.safetensors is missing"):
        checkpoints.require_whole_adapter(tmp_path)
