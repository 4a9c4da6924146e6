"""`fasttune pick`: what it lists, what it says, and that everything else follows it forth and back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.cli import use
from fasttune.runs import documents, epochs, store, summary
from fasttune.runs.store import Run
from fasttune.terminal import command_line, epoch_table


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """persona/001-fresh below runs/: three epochs, the second one best, the last one its own adapter."""
    run = write_run(tmp_path / "runs", losses=(2.0, 1.0, 0.2), held_out=(3.0, 1.0, 2.0))
    write_epochs(run, (1, 2, 3), (3.0, 1.0, 2.0), steps_per_epoch=1)
    return run


def test_the_epochs_are_listed_with_their_loss_and_first_answer(run: Run, fasttune: Cli) -> None:
    listed = fasttune("pick", "persona").stdout
    rows = [line.split() for line in listed.splitlines() if "answer after" in line]
    assert [row[:3] for row in rows] == [["1", "1", "3.000"], ["2", "2", "1.000"], ["3", "3", "2.000"]]
    assert "best" in rows[1] and "use" in rows[2] and "use" not in rows[1]
    document = json.loads(fasttune("pick", "persona", "--json").stdout)
    assert (document["picked"], document["best"], document["own"]) == (None, 2.0, 3.0)
    assert [one["answers"] for one in document["epochs"]] == [
        ["answer after 1"],
        ["answer after 2"],
        ["answer after 3"],
    ]
    assert document["adapter"] == str(run.adapter) and document["picks"] == []


def test_picking_says_what_changed_and_how_to_undo_it(run: Run, fasttune: Cli) -> None:
    done = fasttune("pick", "persona", "--epoch", "best")
    assert done.returncode == 0 and done.stdout == ""
    assert "serves the adapter of epoch 2 now, of step 2" in done.stderr
    assert "pick persona/001-fresh --own" in done.stderr and "export persona/001-fresh" in done.stderr
    again = fasttune("pick", "persona", "--epoch", "2", "--json")
    assert "nothing was changed" in again.stderr and json.loads(again.stdout)["picked"] == 2.0
    other = fasttune("pick", "persona", "--epoch", "1")
    assert "pick persona/001-fresh --epoch 2" in other.stderr
    back = fasttune("pick", "persona", "--own")
    assert "serves its own adapter again, of step 3" in back.stderr and "chat persona/001-fresh" in back.stderr
    picks = json.loads(fasttune("pick", "persona", "--json").stdout)["picks"]
    assert [(one["from"], one["to"]) for one in picks] == [(None, 2.0), (2.0, 1.0), (1.0, None)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epoch", "7"], "the kept epochs are 1, 2, 3"),
        (["--epoch", "2", "--own"], "give --epoch or --own, not both"),
    ],
)
def test_what_can_not_be_picked_is_one_message(run: Run, fasttune: Cli, arguments: list[str], says: str) -> None:
    done = fasttune("pick", "persona", *arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert not run.picked.exists()


def test_a_run_that_is_not_finished_is_listed_and_nothing_of_it_picked(tmp_path: Path, fasttune: Cli) -> None:
    run = write_run(tmp_path / "runs", finished=False)
    write_epochs(run, (1,), (3.0,))
    shutil.rmtree(run.adapter)
    assert "answer after 1" in fasttune("pick", "persona").stdout
    done = fasttune("pick", "persona", "--epoch", "1")
    assert done.returncode == 1 and "this run has no adapter yet" in done.stderr and "resume it first" in done.stderr


def test_a_run_that_kept_none_says_how_to_keep_them(tmp_path: Path, fasttune: Cli) -> None:
    write_run(tmp_path / "runs")
    done = fasttune("pick", "persona")
    assert done.returncode == 0 and "train.keep_epochs = true" in done.stderr


def test_an_own_adapter_that_is_no_epochs_has_a_row(tmp_path: Path, fasttune: Cli) -> None:
    """Early stopping has made a checkpoint between two epochs the run's adapter."""
    run = write_run(tmp_path / "runs")
    write_epochs(run, (1, 2), (3.0, 2.0), own=1.5)
    last = fasttune("pick", "persona").stdout.splitlines()[-1].split()
    assert last[:2] == ["own", "15"] and "use" in last


def test_answers_steer_no_terminal(run: Run, fasttune: Cli) -> None:
    scores = epochs.epoch_scores(run)[0]
    hostile = type(scores)(scores.step, scores.sha256, 3.0, ("Who?",), ("\x1b[2J[bold]x",), 32)
    epochs.keep_scores(run, hostile)
    listed = fasttune("pick", "persona").stdout
    assert "\x1b[2J" not in listed and "[bold]x" in listed


def test_the_end_of_a_training_offers_the_better_epoch(run: Run) -> None:
    assert "pick persona/001-fresh --epoch 2" in epoch_table.kept_line(run)
    epochs.pick(run, epochs.find_epoch(run, "2"))
    assert "--epoch" not in epoch_table.kept_line(run)


def test_no_epoch_is_offered_that_is_better_by_chance(tmp_path: Path) -> None:
    """The verdict is `fair`, and nothing is to be mended."""
    run = write_run(tmp_path / "runs", losses=(2.0, 1.0, 0.2), held_out=(3.0, 1.0, 1.005))
    write_epochs(run, (1, 2, 3), (3.0, 1.0, 1.005), steps_per_epoch=1)
    assert summary.read_figures(run).verdict == "fair"
    assert "--epoch" not in epoch_table.kept_line(run) and "epochs kept" in epoch_table.kept_line(run)


def test_one_held_out_sample_offers_no_epoch(run: Run) -> None:
    documents.write(run.plan, replace(documents.read_plan(run), val_samples=1))
    assert "--epoch" not in epoch_table.kept_line(run) and "epochs kept" in epoch_table.kept_line(run)


def test_runs_show_what_is_picked_and_judge_it(run: Run, fasttune: Cli) -> None:
    before = summary.read_figures(run)
    assert (before.picked_epoch, before.eval_loss, before.verdict) == (None, 2.0, "over-fitting")
    epochs.pick(run, epochs.find_epoch(run, "2"))
    after = summary.read_figures(run)
    assert (after.picked_epoch, after.eval_loss, after.verdict) == (2.0, 1.0, "good")
    assert "epoch 2 picked" in " ".join(fasttune("runs", "persona").stdout.split())
    epochs.pick(run, epochs.find_epoch(run, "1"))
    third = summary.read_figures(run)
    assert (third.eval_loss, third.verdict, third.verdict_reason) == (3.0, "not-enough", "before-best")
    epochs.pick(run, None)
    assert summary.read_figures(run) == before


def test_a_shell_completes_the_kept_epochs(run: Run) -> None:
    line = use.pick.make_context("pick", ["persona", "--runs", str(run.root), "--epoch"], resilient_parsing=True)
    parameter = use.pick.params[1]
    assert [one.value for one in command_line.complete_epoch(line, parameter, "")] == ["1", "2", "3", "best"]
    assert [one.value for one in command_line.complete_epoch(line, parameter, "b")] == ["best"]
    nothing = use.pick.make_context("pick", ["other", "--runs", str(run.root), "--epoch"], resilient_parsing=True)
    assert command_line.complete_epoch(nothing, parameter, "") == []


def test_the_series_name_stands_for_its_current_run(run: Run, fasttune: Cli, tmp_path: Path) -> None:
    other = write_run(tmp_path / "runs", losses=(2.0,))
    write_epochs(other, (1, 2), (2.0, 3.0))
    fasttune("pick", "persona", "--epoch", "1")
    assert epochs.picked_epoch(other) and not epochs.picked_epoch(run)
    assert store.current(tmp_path / "runs", "persona") == other
