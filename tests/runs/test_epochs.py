"""Kept epochs by what lies on disk: which there are, which one is served, and picking one forth and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.console import FasttuneError, UsageError
from fasttune.files import locked
from fasttune.runs import documents, epochs
from fasttune.runs.documents import Probe, Scores
from fasttune.runs.outcomes import EpochScores


def test_kept_epochs_have_their_loss_and_their_answers(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert epochs.kept_epochs(run) == ()
    write_epochs(run, (10, 1, 2.5), (1.0, 3.0, None))
    kept = epochs.kept_epochs(run)
    assert [(one.epoch, one.step, one.eval_loss) for one in kept] == [(1, 10, 3.0), (2.5, 25, None), (10, 100, 1.0)]
    assert [one.answers for one in kept] == [("answer after 1",), ("answer after 2.5",), ("answer after 10",)]
    assert [one.folder.name for one in kept] == ["epoch-1", "epoch-2.5", "epoch-10"]


def test_what_is_half_written_or_of_another_name_is_no_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_epochs(run, (1,))
    (run.epochs / "epoch-2.partial").mkdir()
    (run.epochs / ".epoch-3.deleted").mkdir()
    (run.epochs / "epoch-best").mkdir()
    assert [one.epoch for one in epochs.kept_epochs(run)] == [1]


def test_answers_of_other_weights_are_not_those_of_the_epoch(tmp_path: Path) -> None:
    """A process was killed between the adapter of a second attempt and its answers."""
    run = write_run(tmp_path)
    write_epochs(run, (1,), (3.0,))
    documents.write(run.scores, Scores((), epochs=(EpochScores(10, "f" * 64, 3.0, ("Who?",), ("no",), 32),)))
    (kept,) = epochs.kept_epochs(run)
    assert kept.answers == () and kept.eval_loss is None


def test_a_second_attempt_replaces_what_an_epoch_came_to_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    documents.write(run.scores, Scores((Probe("Who?", "A model."),)))
    for one in (EpochScores(20, "b" * 64, 2.0), EpochScores(10, "a" * 64, 3.0), EpochScores(20, "c" * 64, 2.5)):
        epochs.keep_scores(run, one)
    scores = documents.read_scores(run)
    assert [(one.step, one.sha256[0]) for one in scores.epochs] == [(10, "a"), (20, "c")]
    assert scores.probes == (Probe("Who?", "A model."),) and scores.answered_by == documents.NOT_ASKED


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_epochs(run, (1,))
    (run.epochs / "epoch-1" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(FasttuneError) as damaged:
        epochs.kept_epochs(run)
    assert damaged.value.findings[0].where.endswith("epochs/epoch-1/manifest.json")


def test_picking_forth_and_back_leaves_every_byte(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, _second = write_epochs(run, (1, 2), (1.0, 2.0))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert epochs.picked_epoch(run) is None and epochs.served_adapter(run) == run.adapter
    there = epochs.pick(run, epochs.find_epoch(run, "1"))
    assert there and (there.from_, there.to, there.step) == (None, 1.0, 10)
    assert epochs.picked_epoch(run) == first and epochs.served_adapter(run) == run.epochs / "epoch-1"
    back = epochs.pick(run, None)
    assert back and (back.from_, back.to, back.step) == (1.0, None, 20)
    assert epochs.picked_epoch(run) is None and epochs.served_adapter(run) == run.adapter
    assert epochs.read_picks(run) == (there, back)
    after = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path in before} == before
    assert {path.name for path in after if path not in before} == {"picked.json", ".lock"}


def test_picking_what_is_served_records_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, second = write_epochs(run, (1, 2))
    assert epochs.pick(run, second) is None and not run.picked.exists()  # the run's own weights
    epochs.pick(run, first)
    assert epochs.pick(run, first) is None and len(epochs.read_picks(run)) == 1
    assert epochs.pick(run, second) is not None and epochs.picked_epoch(run) is None


def test_an_epoch_of_other_weights_than_the_own_adapter_can_be_the_last(tmp_path: Path) -> None:
    """Early stopping made the best checkpoint the run's own adapter."""
    run = write_run(tmp_path)
    _first, _second, third = write_epochs(run, (1, 2, 3), own=2)
    epochs.pick(run, third)
    assert epochs.picked_epoch(run) == third


@pytest.mark.parametrize(("name", "epoch"), [("1", 1), ("2.33", 2.333), ("2.333", 2.333), ("best", 2.333), ("1.0", 1)])
def test_an_epoch_is_found_by_its_number_or_as_the_best(tmp_path: Path, name: str, epoch: float) -> None:
    run = write_run(tmp_path)
    write_epochs(run, (1, 2.333, 3), (3.0, 1.0, 2.0))
    assert epochs.find_epoch(run, name).epoch == epoch


@pytest.mark.parametrize("name", ["2", "nan", "-1", "two", "1e999"])
def test_what_is_no_kept_epoch_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path)
    write_epochs(run, (1, 3))
    with pytest.raises(UsageError) as refused:
        epochs.find_epoch(run, name)
    assert "1, 3" in refused.value.findings[0].fix


def test_without_epochs_or_held_out_losses_the_refusal_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with pytest.raises(UsageError, match="has kept the adapter of no epoch"):
        epochs.find_epoch(run, "1")
    write_epochs(run, (1,))
    with pytest.raises(UsageError, match=r"no epoch of .* has a held-out loss"):
        epochs.find_epoch(run, "best")


def test_the_best_epoch_is_the_first_of_equal_ones_and_never_one_that_is_not_finite(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    kept = write_epochs(run, (1, 2, 3, 4), (float("nan"), 2.0, 2.0, None))
    best = epochs.best_epoch(kept)
    assert best is not None and best.epoch == 2


def test_a_damaged_adapter_is_not_picked(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, _second = write_epochs(run, (1, 2))
    (first.folder / "adapter_model.safetensors").write_text("other", encoding="utf-8")
    with pytest.raises(FasttuneError, match="checksum mismatch"):
        epochs.pick(run, first)
    assert not run.picked.exists()


def test_a_picked_epoch_that_is_gone_is_one_message_with_the_way_back(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, _second = write_epochs(run, (1, 2))
    epochs.pick(run, first)
    for file in first.folder.iterdir():
        file.unlink()
    first.folder.rmdir()
    with pytest.raises(FasttuneError) as gone:
        epochs.served_adapter(run)
    assert f"pick {run.id} --own" in gone.value.findings[0].fix
    epochs.pick(run, None)
    assert epochs.served_adapter(run) == run.adapter


def test_nothing_is_picked_while_another_process_uses_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, _second = write_epochs(run, (1, 2))
    with locked(run.lock, "", seconds=1), pytest.raises(FasttuneError, match="another process"):
        epochs.pick(run, first)
    assert not run.picked.exists()


def test_a_pick_in_a_newer_format_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    run.picked.write_text(json.dumps({"format": documents.FORMAT + 1, "picks": []}), encoding="utf-8")
    with pytest.raises(FasttuneError, match="newer fasttune"):
        epochs.served_adapter(run)
