"""Continuing, through the command line: every cell of the continuation table that trains, where a run starts, what goes
on bit for bit and what begins anew. What is refused, without torch: planning/test_continuation_*.py."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Shared
from continuations import EPOCHS, SETTINGS, TRAININGS, TRAINS, Cell
from series import (
    PAIRS,
    Series,
    adapter,
    assert_same_run,
    contents,
    copied,
    document,
    history,
    largest_difference,
    losses,
    rates,
    state,
    steps,
    trained_parent,
    write_samples,
)

from fasttune.runs import documents, store
from fasttune.runs.documents import CheckBatch, PlanDocument, Provenance, Scores
from fasttune.runs.store import Run
from fasttune.training.hub import TINY

# The continuation table ----------------------------------------------------------------------------------------------------


def unanswered(series: Series, number: int) -> None:
    """As a run is when its process dies before its files are made."""
    documents.write(series.run(number) / "scores.json", Scores((), documents.NOT_ASKED))


def plan(run: Path) -> PlanDocument:
    return documents.read(run / "plan.json", PlanDocument)


def provenance(run: Path) -> Provenance:
    return documents.read(run / "provenance.json", Provenance)


@pytest.fixture(scope="session")
def states(shared: Shared) -> dict[str, Series]:
    """A series in each state of the table; copied before it is used."""

    def make(root: Path) -> None:
        nothing = Series.new(root / "nothing", EPOCHS)
        finished = copied(nothing, root / "finished")
        finished.train(*SETTINGS["fresh"])
        copied(nothing, root / "stopped").stop(*SETTINGS["fresh"])
        unanswered(copied(finished, root / "trained"), 1)
        copied(finished, root / "second-stopped").stop(*SETTINGS["incremental"], flags="--continue incremental")
        second_trained = copied(finished, root / "second-trained")
        second_trained.train(*SETTINGS["incremental"], flags="--continue incremental")
        unanswered(second_trained, 2)

    return {folder.name: Series(folder) for folder in shared("states of a series", make).iterdir()}


def is_slow(number: int, cell: Cell) -> bool:
    """A training that is decided alike in an earlier cell (the decision is tested in each, in planning/), or differs
    little from others of the table."""
    alike = [(one.state, one.strategy, one.outcome) for one in TRAININGS[:number]]
    return (cell.state, cell.strategy, cell.outcome) in alike or (
        cell.state.endswith("trained") and cell.strategy == "retune"
    )


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=cell.name, marks=[pytest.mark.slow] * is_slow(number, cell))
        for number, cell in enumerate(TRAININGS)
    ],
)
def test_trained(states: dict[str, Series], tmp_path: Path, cell: Cell) -> None:
    """The run that results, where it starts and which steps it trains; no other run is touched."""
    series = copied(states[cell.state], tmp_path / "series")
    before = {run.name: contents(run) for run in series.runs()}
    series.train(*SETTINGS[cell.strategy], flags=cell.command)
    after = {run.name: contents(run) for run in series.runs()}
    if cell.outcome == "files":
        newest = series.runs()[-1]
        assert documents.read(newest / "scores.json", Scores) == Scores((), None)
        written_again = {"scores.json": b"", "report.html": b""}
        assert after[newest.name] | written_again == before[newest.name] | written_again
    elif cell.outcome == "resume":
        assert list(after) == list(before)
        assert steps(series.runs()[-1]) == TRAINS[cell.strategy]
        assert TRAINS[cell.strategy][0] <= (provenance(series.runs()[-1]).continuations[-1].step or 0)
        assert {name: after[name] for name in list(after)[:-1]} == {name: before[name] for name in list(before)[:-1]}
    else:
        kept = {name: files for name, files in before.items() if cell.outcome == "new" or name != "001-fresh"}
        new = f"{max((int(name[:3]) for name in before), default=0) + 1:03d}-{cell.strategy}"
        assert {name: files for name, files in after.items() if name != new} == kept
        check_new_run(series.folder / "runs" / "persona" / new, cell)


def check_new_run(run: Path, cell: Cell) -> None:
    """A run that was begun and finished: its plan and its steps."""
    written = plan(run)
    assert (written.strategy, written.parent, written.start_step) == (cell.strategy, cell.parent, cell.start_step)
    assert written.start == ("checkpoint" if cell.start_step else "base")
    assert steps(run) == cell.steps and written.total_steps == cell.steps[-1]
    assert (run.parent / "current").read_text() == f"persona/{run.name}\n"


def test_files_are_made_where_another_run_would_be_too_long(tmp_path: Path) -> None:
    series, more = Series.new(tmp_path, EPOCHS), ("continue.add_epochs=4",)
    series.train("train.epochs=4")
    series.train(*more, flags="--continue incremental")
    unanswered(series, 2)
    series.train(*more, flags="--continue incremental")
    assert series.names() == ["001-fresh", "002-incremental"]
    assert documents.read(series.run(2) / "scores.json", Scores) == Scores((), None)
    assert "12.0 epochs in total" in series.train(*more, flags="--continue incremental", code=2).stderr


def test_the_strategy_may_stand_in_the_recipe(states: dict[str, Series], tmp_path: Path) -> None:
    series = copied(states["finished"], tmp_path / "series")
    series.train(*SETTINGS["custom"], flags="--continue custom")
    (series.folder / "persona.toml").write_text(EPOCHS.replace("[model]", 'strategy = "custom"\n[model]'))
    series.train(*SETTINGS["custom"], "continue.parent=persona/001")
    one, other = (plan(series.run(number)) for number in (2, 3))
    assert replace(one, settings=()) == replace(other, settings=())
    assert adapter(series.run(2)) == adapter(series.run(3))


# Parents ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parent(shared: Shared, tmp_path: Path) -> Series:
    """A copy of the trained parent of series.py."""
    return copied(trained_parent(shared), tmp_path / "series")


def test_two_epochs_and_one_and_a_half_more(parent: Series, tmp_path: Path) -> None:
    """With a constant learning rate, 2.0 + 1.5 epochs are bit for bit the run that trained them in one go: weights,
    optimizer, random state and data order all go on."""
    constant = ("train.lr_scheduler_type=constant", "lora.dropout=0.1")
    series, whole = Series.new(tmp_path / "two"), Series.new(tmp_path / "one")
    series.train("train.epochs=2", *constant)
    done = series.train("continue.add_epochs=1.5", flags="--continue incremental --json")
    whole.train("train.max_steps=11", *constant)
    assert steps(series.run(2)) == [7, 8, 9, 10, 11]
    assert losses(series.run(1)) + losses(series.run(2)) == losses(whole.run(1))
    assert adapter(series.run(2)) == adapter(whole.run(1))
    last = "checkpoints/checkpoint-11"
    for name in ("optimizer.pt", "rng_state.pth"):
        assert (series.run(2) / last / name).read_bytes() == (whole.run(1) / last / name).read_bytes()

    # Final figures are those of both halves.
    result = json.loads(done.stdout)
    assert result["steps"] == 11
    assert result["first"]["loss"] == losses(series.run(1))[0] and result["last"]["loss"] == losses(series.run(2))[-1]
    assert state(series.run(2) / "trainer_state.json") == state(whole.run(1) / "trainer_state.json")
    assert history(series.run(2))[-1]["num_tokens"] == history(whole.run(1))[-1]["num_tokens"]


def test_incremental_shows_that_it_starts_where_its_parent_ended(parent: Series) -> None:
    """The check batch's loss and the learning rate, before and now, on the terminal and in provenance.json."""
    done = parent.train("continue.add_epochs=1.5", flags="--continue incremental")
    (shown,) = provenance(parent.run(2)).continuations
    saved = documents.read(parent.run(1) / "checkpoints" / "checkpoint-6" / "proof.json", CheckBatch).loss
    assert (shown.step, shown.loss_when_saved) == (6, saved) and shown.loss == pytest.approx(saved)
    assert (shown.learning_rate_before, shown.learning_rate) == (rates(parent.run(1))[-1], rates(parent.run(2))[0])
    (line,) = (line for line in done.stderr.splitlines() if "step 6:" in line and "learning rate" in line)
    assert f"{saved:.4f}" in line
    assert f"{shown.learning_rate_before:.3g}" in line and f"{shown.learning_rate:.3g}" in line
    assert losses(parent.run(2))[0] < losses(parent.run(1))[0] - 0.1
    assert [one["step"] for one in history(parent.run(2)) if "eval_loss" in one] == [9, 11]


def test_a_killed_continuation_goes_on(parent: Series, tmp_path: Path) -> None:
    """From its own checkpoint, or from its parent's where it has none yet."""
    whole = copied(parent, tmp_path / "whole")
    more = ("continue.add_epochs=2", "train.save_steps=2")
    whole.train(*more, flags="--continue incremental")
    for lines in (1, 4):
        series = copied(parent, tmp_path / str(lines))
        series.stop(*more, lines=lines, number=signal.SIGKILL, flags="--continue incremental")
        series.train(*more, flags="--continue incremental")
        assert_same_run(series.run(2), whole.run(2))


def test_the_same_total_from_the_base(parent: Series, tmp_path: Path) -> None:
    parent.train("continue.add_epochs=1.5", "continue.start=base", flags="--continue incremental")
    written = plan(parent.run(2))
    assert (written.start, written.start_step, written.total_steps) == ("base", 0, 11)
    fresh = Series.new(tmp_path / "fresh")
    fresh.train("train.max_steps=11", "data.val=val.jsonl")
    assert_same_run(parent.run(2), fresh.run(1))


def test_incremental_after_incremental(parent: Series) -> None:
    parent.train("continue.add_epochs=0.5", flags="--continue incremental")
    parent.train("continue.add_epochs=0.5", flags="--continue incremental")
    assert [plan(run).parent for run in parent.runs()[1:]] == ["persona/001-fresh", "persona/002-incremental"]
    assert [steps(run) for run in parent.runs()[1:]] == [[7, 8], [9, 10]]


def test_retune_keeps_the_weights_of_an_adapter_of_the_same_shape(parent: Series) -> None:
    weights = ("continue.start=adapter", "train.learning_rate=1e-9", "train.epochs=0.5")
    parent.train(*weights, flags="--continue retune")
    (shown,) = provenance(parent.run(2)).continuations
    assert shown.from_ == "runs/persona/001-fresh/adapter" and shown.loss == pytest.approx(shown.loss_when_saved)
    assert steps(parent.run(2)) == [1, 2] and largest_difference(parent.run(1), parent.run(2)) < 1e-7
    parent.train("lora.r=4", "train.epochs=0.5", "continue.parent=persona/001", flags="--continue retune")
    assert provenance(parent.run(3)).continuations == ()  # another rank begins anew
    assert document(parent.run(3) / "adapter" / "adapter_config.json")["lora_alpha"] == 8


def test_custom_continues_with_other_data(parent: Series) -> None:
    """From the adapter, whose epochs are added to none; losses on other data can't be compared, and it says so."""
    write_samples(parent.folder / "train.jsonl", [(f"{question} 真的吗？", answer) for question, answer in PAIRS[:10]])
    done = parent.train("continue.add_epochs=1", "continue.start=adapter", flags="--continue custom")
    assert "losses can't be compared" in done.stderr
    (shown,) = provenance(parent.run(2)).continuations
    assert shown.loss_when_saved is None and shown.loss is None
    assert steps(parent.run(2)) == [1, 2, 3]


def test_data_that_only_moved_is_the_same(parent: Series) -> None:
    (parent.folder / "train.jsonl").rename(parent.folder / "moved.jsonl")
    parent.train("data.train=moved.jsonl", "train.max_steps=1", "continue.start=adapter", flags="--continue custom")
    (shown,) = provenance(parent.run(2)).continuations
    assert shown.loss == pytest.approx(shown.loss_when_saved)
    more = ("continue.add_epochs=0.3", "continue.parent=persona/001")
    parent.train("data.train=moved.jsonl", *more, flags="--continue incremental")
    assert steps(parent.run(3)) == [7]


def test_retune_with_another_base(parent: Series) -> None:
    """A larger base, for example, with new LoRA weights; the parent's adapter fits no other weights."""
    shutil.copytree(TINY, parent.folder / "other")
    weights = bytearray((parent.folder / "other" / "model.safetensors").read_bytes())
    weights[-40:] = bytes(40)  # some of the last norm's: all of it would leave no gradient to train by
    (parent.folder / "other" / "model.safetensors").write_bytes(weights)
    parent.train("model.base=./other", "train.max_steps=1", flags="--continue retune")
    assert provenance(parent.run(2)).base.name == "./other"


def test_overwriting_removes_the_run_that_is_named(parent: Series) -> None:
    for number in (2, 3):
        shutil.copytree(parent.run(1), parent.run(1).with_name(f"{number:03d}-fresh"))
    kept = {number: contents(parent.run(number)) for number in (1, 3)}
    parent.train("train.max_steps=2", flags="--overwrite persona/002-fresh")
    assert parent.names() == ["001-fresh", "003-fresh", "004-fresh"]
    assert {number: contents(parent.run(number)) for number in (1, 3)} == kept
    beside = sorted(path.name for path in parent.run(1).parent.iterdir() if not path.name[0].isdigit())
    assert beside == [".current.lock", ".lock", "current"]


def test_a_run_is_removed_only_when_the_one_in_its_place_is_complete(
    parent: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the new one fails before or in its training, nor where it is stopped; then the same command resumes it."""
    before, flags = contents(parent.run(1)), "--overwrite persona/001-fresh"
    parent.train("model.max_seq_length=16", flags=flags, code=1)
    assert parent.names() == ["001-fresh"] and contents(parent.run(1)) == before
    parent.stop("train.max_steps=6", "train.save_steps=1", flags=flags)
    assert parent.names() == ["001-fresh", "002-fresh"] and contents(parent.run(1)) == before
    assert (parent.run(1).parent / "current").read_text() == "persona/001-fresh\n"
    done = parent.train("train.max_steps=6", "train.save_steps=1", flags=flags)
    assert "resuming at step" in done.stderr and "removed persona/001-fresh" in done.stderr
    assert parent.names() == ["002-fresh"] and steps(parent.run(2)) == [1, 2, 3, 4, 5, 6]
    assert (parent.run(2).parent / "current").read_text() == "persona/002-fresh\n"
    assert not (parent.run(2) / "replaces").exists()


def test_a_damaged_adapter_is_not_continued_from(parent: Series) -> None:
    weights = bytearray((parent.run(1) / "adapter" / "adapter_model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 0x10
    (parent.run(1) / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    done = parent.train("train.max_steps=1", "continue.start=adapter", flags="--continue retune", code=1)
    assert "adapter_model.safetensors: checksum mismatch" in done.stderr and parent.names() == ["001-fresh"]
    done = parent("export", "persona", "--gguf", "q8_0", code=1)
    assert "adapter_model.safetensors: checksum mismatch" in done.stderr
    assert not list((parent.run(1) / "exports").glob("*.gguf"))


def test_one_export_at_a_time(parent: Series) -> None:
    """Two at once would publish each other's partial files; nor is a run overwritten while it is exported."""
    run = Run(parent.folder / "runs", "persona/001-fresh")
    with store.exclusive(run):
        for words in (("export", "persona", "--gguf", "q8_0"), ("run", "persona.toml", "--overwrite", run.id)):
            done = parent(*words, code=1)
            assert "another process is exporting persona/001-fresh" in done.stderr
    assert parent.names() == ["001-fresh"] and not run.exports.exists()


def test_advice_is_shown_before_a_training_too(parent: Series) -> None:
    done = parent.train("lora.r=4", "train.learning_rate=1e-3", flags="--continue retune")
    assert "all differ from persona/001-fresh" in done.stderr
    assert store.current(parent.folder / "runs", "persona").id == "persona/002-retune"  # type: ignore[union-attr]
