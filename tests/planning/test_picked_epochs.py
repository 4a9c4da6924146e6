"""What a continuation begins with where an earlier epoch of its parent is picked; decided on written run folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_epochs import write_epochs
from written_runs import planned, refusal, request, write_history, write_parent, write_run

from fasttune.console import FasttuneError
from fasttune.files import remove_folder
from fasttune.planning import parents
from fasttune.runs import checkpoints, documents, epochs, summary
from fasttune.runs.store import Run


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 2 epochs of 3 steps in the working directory; epoch 1 is kept and picked."""
    monkeypatch.chdir(tmp_path)
    run = write_parent(tmp_path)
    write_epochs(run, (1, 2), (4.0, 4.2), steps_per_epoch=3)
    epochs.pick(run, epochs.find_epoch(run, "1"))
    return run


def write_checkpoint(run: Run, step: int) -> Path:
    with checkpoints.writing_checkpoint(run, step) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return run.checkpoints / f"checkpoint-{step}"


def test_it_continues_from_the_checkpoint_of_the_picked_epoch(parent: Run) -> None:
    checkpoint = write_checkpoint(parent, 3)
    plan = planned("continue.add_epochs=1", strategy="incremental")
    assert (plan.start.kind, plan.start.checkpoint, plan.start.step, plan.start.picked) == (
        "checkpoint",
        checkpoint,
        3,
        1,
    )
    assert plan.total_steps == 6 and plan.document().start_epoch == 1.0
    (said,) = (one for one in plan.findings if one.code == "begins-with-picked")
    assert "epoch 1 of persona/001-fresh" in said.what and "pick persona/001-fresh --own" in said.fix
    epochs.pick(parent, None)
    after = planned("continue.add_epochs=1", strategy="incremental")
    assert (after.start.step, after.start.picked, after.total_steps) == (6, None, 9)
    assert not [one for one in after.findings if one.code == "begins-with-picked"]


def test_without_that_checkpoint_the_refusal_names_both_ways(parent: Run) -> None:
    (finding,) = refusal("continue.add_epochs=1", strategy="incremental")
    assert finding.code == "picked-without-checkpoint" and "epoch 1 of persona/001-fresh" in finding.what
    assert "continue.start=adapter" in finding.fix and "continue.add_epochs=1" in finding.fix
    assert "pick persona/001-fresh --own" in finding.fix


def test_a_damaged_checkpoint_of_that_step_is_not_begun_with(parent: Run) -> None:
    (write_checkpoint(parent, 3) / "adapter_model.safetensors").write_bytes(b"other")
    (finding,) = refusal("continue.add_epochs=1", strategy="incremental")
    assert finding.code == "picked-without-checkpoint" and "checksum mismatch" in finding.why


def test_a_start_from_the_adapter_takes_the_picked_one(parent: Run) -> None:
    start = planned("continue.start=adapter", "train.epochs=1", strategy="custom").start
    assert (start.adapter, start.picked, start.epochs) == (parent.epochs / "epoch-1", 1.0, 1.0)
    epochs.pick(parent, None)
    start = planned("continue.start=adapter", "train.epochs=1", strategy="custom").start
    assert (start.adapter, start.picked, start.epochs) == (parent.adapter, None, 2.0)


def test_a_damaged_picked_adapter_is_refused_before_training(parent: Run) -> None:
    (parent.epochs / "epoch-1" / "adapter_model.safetensors").write_text("other", encoding="utf-8")
    with pytest.raises(FasttuneError, match="checksum mismatch"):
        planned("continue.start=adapter", "train.epochs=1", strategy="custom")


def test_a_resumed_run_keeps_what_it_began_with(parent: Run) -> None:
    """Whatever is picked in the meantime (E2)."""
    write_checkpoint(parent, 3)
    begun = request("continue.add_epochs=1", strategy="incremental")
    child = write_run(begun, "stopped", steps=4)
    epochs.pick(parent, None)
    plan = planned("continue.add_epochs=1", strategy="incremental")
    assert (plan.start.step, plan.total_steps) == (3, documents.read_plan(child).total_steps) == (3, 6)
    remove_folder(parent.epochs / "epoch-1")
    with pytest.raises(FasttuneError, match="its adapter is no longer there"):
        parents.epoch_to_continue(parent, child)


def test_a_retune_from_the_base_is_not_about_the_pick(parent: Run) -> None:
    start = planned("train.epochs=1", strategy="retune").start
    assert (start.kind, start.picked, start.adapter) == ("base", None, None)


def test_the_history_of_the_parent_ends_where_the_run_began(parent: Run) -> None:
    write_checkpoint(parent, 3)
    child = write_run(request("continue.add_epochs=1", strategy="incremental"))
    write_history(child, range(4, 7), 3, held_out=(3.9,))
    steps = [line["step"] for line in summary.full_history(child) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_how_many_epochs_a_plan_keeps(parent: Run) -> None:
    write_checkpoint(parent, 3)
    assert planned("train.epochs=2.5", "data.val=val.jsonl", on_existing="new").kept_epochs == 3
    assert planned("train.epochs=2.5", "data.val=", on_existing="new").kept_epochs == 0
    assert planned("train.epochs=2.5", "data.val=", "train.keep_epochs=true", on_existing="new").kept_epochs == 3
    assert (
        planned("train.epochs=2", "data.val=val.jsonl", "train.keep_epochs=false", on_existing="new").kept_epochs == 0
    )
    assert planned("continue.add_epochs=1.5", strategy="incremental").kept_epochs == 2  # epochs 2 and 2.667
