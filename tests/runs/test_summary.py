"""Figures and verdicts of runs, and what changed from parent to child."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.runs import documents, epochs, store, summary
from fasttune.runs.documents import ArtifactDocument
from fasttune.runs.history import EpochMeans
from fasttune.runs.summary import Change


def test_the_verdict_is_that_of_the_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, "fresh", losses=[2.0, 0.05], held_out=[0.4, 0.9])
    figures = summary.read_figures(run)
    assert (figures.verdict, figures.verdict_reason, figures.loss_band) == ("over-fitting", "past-best", "excellent")
    assert (figures.eval_loss, figures.best_eval_loss, figures.best_step) == (0.9, 0.4, 1)


def test_the_figures_are_means_over_the_last_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path, "fresh", losses=[3.0, 0.6, 0.05])
    documents.write(run.plan, replace(documents.read_plan(run), steps_per_epoch=2))
    figures = summary.read_figures(run)
    assert (figures.loss, figures.loss_band) == (0.05, "fair")
    means = summary.final_means(run)
    assert means.loss == pytest.approx(0.325)
    assert means.accuracy == pytest.approx(0.925)  # 0.9 and 0.95
    assert (figures.epoch_loss, figures.mean_token_accuracy) == (means.loss, means.accuracy)


def test_a_child_that_continues_from_a_checkpoint_is_judged_by_the_best_of_both(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh", held_out=[0.5, 0.4])
    child = write_run(tmp_path, "incremental", parent=first, start="checkpoint", held_out=[0.43, 0.43])
    assert (summary.read_figures(child).best_eval_loss, summary.read_figures(child).verdict) == (0.4, "over-fitting")
    assert summary.read_figures(child).best_step == 2
    other = write_run(tmp_path, "custom", parent=first, start="checkpoint", held_out=[0.43, 0.43], samples=11)
    assert summary.read_figures(other).verdict == "good"  # other samples: not comparable
    base = write_run(tmp_path, "retune", parent=first, held_out=[0.43, 0.43])
    assert summary.read_figures(base).verdict == "good"
    early = write_run(tmp_path, "fresh", held_out=[0.4, 0.5], train__early_stopping_patience=1)
    assert (summary.read_figures(early).eval_loss, summary.read_figures(early).verdict) == (0.4, "good")


def test_what_changed(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh")
    child = write_run(
        tmp_path, "retune", parent=first, losses=[1.0] * 3, lora__r=16, lora__alpha=32, train__learning_rate=1e-4,
        samples=12, train__epochs=3.0,
    )  # fmt: skip
    assert summary.read_figures(child).changes == (
        Change("epochs", 2.0, 3.0), Change("lora.r", 8, 16), Change("train.learning_rate", 2e-4, 1e-4),
        Change("samples", "10+20 (00000000)", "12+20 (00000000)"),
    )  # fmt: skip
    same = write_run(tmp_path, "custom", parent=first)
    assert summary.read_figures(same).changes == ()


def test_a_parent_that_was_overwritten_is_none(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh", created="2026-03-01T10:00:00+00:00")
    child = write_run(tmp_path, "retune", parent=first, created="2026-03-02T10:00:00+00:00")
    assert summary.read_figures(child).parent == first.id
    documents.update_provenance(first, created="2026-03-03T10:00:00+00:00")  # another run of the same number
    assert summary.read_figures(child).parent is None
    store.delete(first)
    assert summary.read_figures(child).parent is None


def test_the_figures_of_a_picked_epoch_and_of_the_runs_own_adapter(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=[3.0, 2.0, 1.0], held_out=[2.0, 1.5, 1.9])
    write_epochs(run, (1, 2, 3), (2.0, 1.5, 1.9), steps_per_epoch=1)
    before = summary.read_figures(run)
    assert (before.eval_loss, before.own_eval_loss, before.verdict) == (1.9, 1.9, "over-fitting")
    epochs.pick(run, epochs.find_epoch(run, "2"))
    picked = summary.read_figures(run)
    assert (picked.picked_epoch, picked.eval_loss, picked.own_eval_loss, picked.verdict) == (2.0, 1.5, 1.9, "good")
    assert [one["of_picked"] for one in picked.exports] == [False], "its file was made of the run's own adapter"


def test_files_that_are_missing(tmp_path: Path) -> None:
    """A run that was killed while they were made; one that is still to be trained lacks none."""
    run = write_run(tmp_path, export__gguf=["q8_0", "q4_k_m"])
    assert summary.read_figures(run).missing_exports == ("q8_0", "q4_k_m"), "a file without a document is none"
    document = ArtifactDocument("persona-Q8_0.gguf", "q8_0", "", 1, run.id, None, {}, "", "", {})
    documents.write(run.exports / "persona-Q8_0.json", document)
    assert summary.read_figures(run).missing_exports == ("q4_k_m",)
    smallest = write_run(tmp_path, export__gguf=["auto"])
    assert summary.read_figures(smallest).missing_exports == ("auto",)
    documents.write(smallest.exports / "persona-Q8_0.json", document)
    assert summary.read_figures(smallest).missing_exports == ()
    assert summary.read_figures(write_run(tmp_path, export__gguf=["q8_0"], finished=False)).missing_exports == ()


def test_a_continued_run_is_judged_with_its_parents_first_loss(tmp_path: Path) -> None:
    """The loss of a run that continues a learned one may stand still: it learned before."""
    first = write_run(tmp_path, losses=[3.0, 1.0], held_out=[2.0, 1.5])
    child = write_run(
        tmp_path, "incremental", parent=first, start="checkpoint", losses=[1.0, 1.0], held_out=[1.49, 1.48]
    )
    assert summary.read_figures(child).verdict == "good"
    again = write_run(tmp_path, "retune", parent=first, losses=[3.0, 2.99], held_out=[2.9, 2.89])
    assert summary.read_figures(again).verdict == "nothing-learned"


def test_a_run_without_a_logged_step_has_no_verdict(tmp_path: Path) -> None:
    run = store.create(tmp_path, "persona", "fresh")
    figures = summary.read_figures(run)
    assert (figures.strategy, figures.status, figures.steps, figures.epochs) == ("fresh", "stopped", 0, 0.0)
    assert (figures.loss, figures.epoch_loss, figures.mean_token_accuracy, figures.verdict) == (None, None, None, None)
    planned = write_run(tmp_path, losses=[], finished=False)
    assert summary.final_means(planned) == EpochMeans(0.0, 1.0) and summary.read_figures(planned).verdict is None


def test_a_series_oldest_first_with_the_current_run(tmp_path: Path) -> None:
    first = write_run(tmp_path)
    write_run(tmp_path, finished=False)
    assert [(one.id, one.current) for one in summary.read_series(tmp_path, "persona", [])] == [
        (first.id, True), ("persona/002-fresh", False),
    ]  # fmt: skip
