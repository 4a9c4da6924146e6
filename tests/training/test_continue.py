"""Going on, through the command line: what each strategy does with each state of a series, where it starts, what it
refuses, and which learning rate every step has."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Done
from series import (
    PAIRS,
    RECIPE,
    Series,
    adapter,
    assert_same_run,
    contents,
    document,
    history,
    losses,
    rates,
    state,
    steps,
    write_samples,
)

from fasttune.planning import strategy
from fasttune.runs import store

STRATEGIES = ("incremental", "retune", "augment", "custom")


def copied(series: Series, folder: Path) -> Series:
    return Series(shutil.copytree(series.folder, folder))


def plan_of(series: Series, *settings: str, flags: str = "") -> dict[str, Any]:
    """`fasttune plan --json`; the strategy is a setting here."""
    found: dict[str, Any] = json.loads(series("plan", "persona.toml", "--json", *flagged(settings)).stdout)
    return found


def flagged(settings: tuple[str, ...]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


# The truth table ----------------------------------------------------------------------------------------------------

# One step an epoch. What each strategy says besides, and the steps it then trains after a parent of 3.
EPOCHS = RECIPE.replace("batch_size = 4", "batch_size = 16\nsave_steps = 9")
SAYS = {
    "fresh": ("train.epochs=3",),
    "incremental": ("continue.add_epochs=2.5",),
    "retune": ("train.learning_rate=1e-3",),
    "augment": (),
    "custom": ("continue.add_epochs=2", "train.learning_rate=1e-3"),
}
TRAINS = {
    "fresh": [1, 2, 3], "incremental": [4, 5, 6], "retune": [1, 2, 3], "augment": [4, 5, 6, 7], "custom": [4, 5],
}  # fmt: skip
TABLE = """
    the series has   strategy     no flag     resume      new         stop        overwrite 001
    nothing          fresh        new         new         new         new         unknown
    nothing          incremental  no-runs     no-runs     no-runs     no-runs     no-runs
    nothing          retune       no-runs     no-runs     no-runs     no-runs     no-runs
    nothing          augment      no-runs     no-runs     no-runs     no-runs     no-runs
    nothing          custom       no-runs     no-runs     no-runs     no-runs     no-runs
    finished         fresh        exists      exists      new         exists      instead
    finished         incremental  new         exists      new         exists      its-parent
    finished         retune       new         exists      new         exists      its-parent
    finished         augment      new         exists      new         exists      its-parent
    finished         custom       new         exists      new         exists      its-parent
    stopped          fresh        goes-on     goes-on     new         exists      instead
    stopped          incremental  unfinished  unfinished  unfinished  unfinished  unfinished
    stopped          retune       unfinished  unfinished  unfinished  unfinished  unfinished
    stopped          augment      unfinished  unfinished  unfinished  unfinished  unfinished
    stopped          custom       unfinished  unfinished  unfinished  unfinished  unfinished
    trained          fresh        files       files       new         exists      instead
    trained          incremental  new         exists      new         exists      its-parent
    trained          retune       new         exists      new         exists      its-parent
    second-stopped   fresh        differs     differs     new         exists      instead
    second-stopped   incremental  goes-on     goes-on     new         exists      its-parent
    second-stopped   retune       differs     differs     new         exists      its-parent
    second-trained   fresh        exists      exists      new         exists      instead
    second-trained   incremental  files       files       new         exists      instead
    second-trained   retune       new         exists      new         exists      instead
"""
FLAGS = ("", "--on-existing resume", "--on-existing new", "--on-existing stop", "--overwrite persona/001")
REFUSALS = {
    "unknown": "no run called persona/001",
    "no-runs": "persona has no runs in runs to continue from",
    "exists": "; the newest is persona/00",
    "unfinished": "persona/001-fresh was stopped before its end",
    "differs": "persona/002-incremental: strategy: the stopped run began with incremental, now it is",
    "its-parent": "persona/001-fresh is what this run continues from",
}
ROWS = [line.split() for line in TABLE.strip().splitlines()[1:]]


def is_slow(there: str, chosen: str, flags: str, outcome: str) -> bool:
    """Trainings that differ little from others of the table."""
    twice = there == "finished" and chosen not in ("fresh", "incremental") and "new" in flags
    return outcome in ("new", "instead") and (twice or (there.endswith("trained") and chosen == "retune"))


CELLS = [
    pytest.param(there, chosen, flags, outcome, marks=[pytest.mark.slow] * is_slow(there, chosen, flags, outcome))
    for there, chosen, *outcomes in ROWS
    for flags, outcome in zip(FLAGS, outcomes, strict=True)
]


def unanswered(series: Series, number: int) -> None:
    """As a run is when its process dies before its files are made."""
    scores = series.run(number) / "scores.json"
    scores.write_text(json.dumps({"probes": document(scores)["probes"]}))


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    """A series in each state of the table."""
    root = tmp_path_factory.mktemp("states")
    nothing = Series.new(root / "nothing", EPOCHS)
    finished = copied(nothing, root / "finished")
    finished.train(*SAYS["fresh"])
    stopped = copied(nothing, root / "stopped")
    stopped.stop(*SAYS["fresh"])
    trained = copied(finished, root / "trained")
    unanswered(trained, 1)
    second_stopped = copied(finished, root / "second_stopped")
    second_stopped.stop(*SAYS["incremental"], flags="--continue incremental")
    second_trained = copied(finished, root / "second_trained")
    second_trained.train(*SAYS["incremental"], flags="--continue incremental")
    unanswered(second_trained, 2)
    return {
        "nothing": nothing, "finished": finished, "stopped": stopped, "trained": trained,
        "second-stopped": second_stopped, "second-trained": second_trained,
    }  # fmt: skip


@pytest.mark.parametrize(("there", "chosen", "flags", "outcome"), CELLS)
def test_truth_table(
    states: dict[str, Series], tmp_path: Path, there: str, chosen: str, flags: str, outcome: str
) -> None:
    """Exit code, words, the run that results, where it starts and which steps it trains; no other run is touched."""
    series = copied(states[there], tmp_path / "series")
    before = {run.name: contents(run) for run in series.runs()}
    going = f"--continue {chosen} " if chosen != "fresh" else ""
    done = series.train(*SAYS[chosen], flags=going + flags, code=2 if outcome in REFUSALS else 0)
    after = {run.name: contents(run) for run in series.runs()}

    if outcome in REFUSALS:
        assert REFUSALS[outcome] in done.stderr and "Traceback" not in done.stderr
        assert after == before
    elif outcome == "files":
        newest = series.runs()[-1]
        assert "training is complete; exporting" in done.stderr
        assert document(newest / "scores.json") == {"probes": [], "answered_by": None}
        assert {**after[newest.name], "scores.json": b""} == {**before[newest.name], "scores.json": b""}
    elif outcome == "goes-on":
        assert list(after) == list(before)
        assert "goes on from step" in done.stderr
        assert steps(series.runs()[-1]) == TRAINS[chosen]
        assert {name: after[name] for name in list(after)[:-1]} == {name: before[name] for name in list(before)[:-1]}
    else:
        kept = {name: files for name, files in before.items() if outcome == "new" or name != "001-fresh"}
        new = f"{max((int(name[:3]) for name in kept), default=0) + 1:03d}-{chosen}"
        assert {name: files for name, files in after.items() if name != new} == kept
        check_new_run(series, series.folder / "runs" / "persona" / new, there, chosen)


def check_new_run(series: Series, run: Path, there: str, chosen: str) -> None:
    """A run that was begun and finished: its plan and its steps."""
    plan = document(run / "plan.json")
    parent, trained = ("persona/002-incremental", 6) if there == "second-trained" else ("persona/001-fresh", 3)
    assert plan["strategy"] == chosen
    assert plan["parent"] == (None if chosen == "fresh" else parent)
    begin, expected = 0 if chosen in ("fresh", "retune") else trained, TRAINS[chosen]
    if there == "second-trained" and chosen != "fresh":  # a retuned run trains as long as its parent
        expected = {"incremental": [7, 8, 9], "retune": [1, 2, 3, 4, 5, 6]}[chosen]
    assert (plan["start"], plan["start_step"]) == ("checkpoint" if begin else "base", begin)
    assert steps(run) == expected and plan["total_steps"] == expected[-1]
    assert (run.parent / "current").read_text() == f"persona/{run.name}\n"


def test_files_are_made_where_another_run_would_be_too_long(tmp_path: Path) -> None:
    series, more = Series.new(tmp_path, EPOCHS), ("continue.add_epochs=4",)
    series.train("train.epochs=4")
    series.train(*more, flags="--continue incremental")
    unanswered(series, 2)
    assert "going on with its files" in series.train(*more, flags="--continue incremental").stderr
    assert "12.0 epochs in total" in series.train(*more, flags="--continue incremental", code=2).stderr


def test_the_strategy_may_stand_in_the_recipe(states: dict[str, Series], tmp_path: Path) -> None:
    series = copied(states["finished"], tmp_path / "series")
    series.train(*SAYS["custom"], flags="--continue custom")
    (series.folder / "persona.toml").write_text(EPOCHS.replace("[model]", 'strategy = "custom"\n[model]'))
    series.train(*SAYS["custom"], "continue.parent=persona/001")
    one, other = (document(series.run(number) / "plan.json") for number in (2, 3))
    assert {key: one[key] for key in one if key != "settings"} == {
        key: other[key] for key in other if key != "settings"
    }
    assert adapter(series.run(2)) == adapter(series.run(3))


# Parents ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """001-fresh: 2 epochs of 3 steps, evaluated once an epoch."""
    series = Series.new(tmp_path_factory.mktemp("parent"))
    series.train("train.epochs=2", "data.val=val.jsonl")
    return series


@pytest.fixture
def parent(parents: Series, tmp_path: Path) -> Series:
    return copied(parents, tmp_path / "series")


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


def test_incremental_says_what_goes_on(parent: Series) -> None:
    done = parent.train("continue.add_epochs=1.5", flags="--continue incremental")
    proof = document(parent.run(1) / "checkpoints" / "checkpoint-6" / "proof.json")
    last, first = rates(parent.run(1))[-1], rates(parent.run(2))[0]
    assert (
        f"goes on from step 6: the fixed batch scores {proof['loss']:.4f}, {proof['loss']:.4f} when it was saved; "
        f"learning rate {last:.3g} before, {first:.3g} now" in done.stderr
    )
    assert losses(parent.run(2))[0] < losses(parent.run(1))[0] - 0.1
    assert [line["step"] for line in history(parent.run(2)) if "eval_loss" in line] == [9, 11]


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
    plan = document(parent.run(2) / "plan.json")
    assert (plan["start"], plan["start_step"], plan["total_steps"]) == ("base", 0, 11)
    fresh = Series.new(tmp_path / "fresh")
    fresh.train("train.max_steps=11", "data.val=val.jsonl")
    assert_same_run(parent.run(2), fresh.run(1))


def test_incremental_after_incremental(parent: Series) -> None:
    parent.train("continue.add_epochs=0.5", flags="--continue incremental")
    parent.train("continue.add_epochs=0.5", flags="--continue incremental")
    assert [document(run / "plan.json")["parent"] for run in parent.runs()[1:]] == [
        "persona/001-fresh", "persona/002-incremental",
    ]  # fmt: skip
    assert [steps(run) for run in parent.runs()[1:]] == [[7, 8], [9, 10]]


def test_a_parent_that_ended_early_counts_what_it_trained(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    series.train("train.max_steps=30", "train.until.loss=4.9")
    (*_more, last) = steps(series.run(1))
    assert last < 30
    assert plan_of(series, "strategy=incremental", "continue.add_epochs=1")["total_steps"] == last + 3
    assert plan_of(series, "strategy=custom", "continue.start=base", "continue.add_epochs=1")["total_steps"] == last + 3


def test_retune_keeps_the_weights_of_an_adapter_of_the_same_shape(parent: Series) -> None:
    weights = ("continue.start=adapter", "train.learning_rate=1e-9", "train.epochs=0.5")
    done = parent.train(*weights, flags="--continue retune")
    assert "goes on from the weights of runs/persona/001-fresh/adapter: the fixed batch scores" in done.stderr
    assert steps(parent.run(2)) == [1, 2]
    from safetensors.torch import load_file

    one, other = (load_file(parent.run(number) / "adapter" / "adapter_model.safetensors") for number in (1, 2))
    assert all((one[key] - other[key]).abs().max() < 1e-7 for key in one)

    for changed in ("lora.r=4", 'lora.target_modules=["q_proj"]', "lora.alpha=4"):
        refused = parent.train(*weights, changed, "continue.parent=persona/001", flags="--continue retune", code=2)
        assert f"persona.toml: {changed.split('=')[0]}: the parent had" in refused.stderr
    other_rank = parent.train("lora.r=4", "train.epochs=0.5", "continue.parent=persona/001", flags="--continue retune")
    assert "goes on" not in other_rank.stderr
    assert document(parent.run(3) / "adapter" / "adapter_config.json")["lora_alpha"] == 8


def test_retune_never_takes_the_old_optimizer(parent: Series) -> None:
    refused = parent.train("continue.start=checkpoint", "train.learning_rate=1e-3", flags="--continue retune", code=2)
    assert "retune changes parameters, a checkpoint's optimizer was made with the old ones" in refused.stderr
    assert parent.names() == ["001-fresh"]


def test_custom_changes_the_rate_of_a_checkpoint(parent: Series) -> None:
    done = parent.train("continue.add_epochs=1", "train.learning_rate=1e-4", flags="--continue custom")
    expected = [1e-4 * share(step, 9, "linear", 1) for step in (6, 7, 8)]
    assert rates(parent.run(2)) == pytest.approx(expected, abs=1e-15)
    assert f"learning rate {rates(parent.run(1))[-1]:.3g} before, {expected[0]:.3g} now" in done.stderr


def test_custom_goes_on_with_other_data(parent: Series) -> None:
    """From the adapter, whose epochs are added to none; losses on other data can't be compared, and it says so."""
    write_samples(parent.folder / "train.jsonl", [(f"{question} 真的吗？", answer) for question, answer in PAIRS[:10]])
    refused = parent.train("continue.add_epochs=1", flags="--continue custom", code=2)
    assert "persona.toml: samples: the parent had" in refused.stderr
    done = parent.train("continue.add_epochs=1", "continue.start=adapter", flags="--continue custom")
    assert "its data was another, so losses can't be compared" in done.stderr
    assert steps(parent.run(2)) == [1, 2, 3]


def test_data_that_only_moved_is_the_same(parent: Series) -> None:
    (parent.folder / "train.jsonl").rename(parent.folder / "moved.jsonl")
    moved = ("data.train=moved.jsonl", "train.max_steps=1")
    done = parent.train(*moved, "continue.start=adapter", flags="--continue custom")
    assert "the fixed batch scores" in done.stderr
    parent.train(
        "data.train=moved.jsonl",
        "continue.add_epochs=0.3",
        "continue.parent=persona/001",
        flags="--continue incremental",
    )


def test_another_base_is_for_a_start_from_the_base(parent: Series) -> None:
    """`retune` with a larger base is a way to go; the parent's adapter fits no other weights."""
    from fasttune.training.hub import TINY

    shutil.copytree(TINY, parent.folder / "other")
    weights = bytearray((parent.folder / "other" / "model.safetensors").read_bytes())
    weights[-1000:] = bytes(1000)
    (parent.folder / "other" / "model.safetensors").write_bytes(weights)
    other = ("model.base=./other", "train.max_steps=1")
    refused = parent.train(*other, "continue.start=adapter", flags="--continue retune", code=2)
    assert "persona.toml: model.base: the parent had builtin:tiny, now it is ./other" in refused.stderr
    parent.train(*other, flags="--continue retune")
    assert document(parent.run(2) / "provenance.json")["base"]["name"] == "./other"


def test_a_parent_by_name(parent: Series, tmp_path: Path) -> None:
    parent.train("train.max_steps=1", flags="--on-existing new")
    assert plan_of(parent, "strategy=incremental", "continue.add_epochs=1")["parent"] == "persona/002-fresh"
    first = plan_of(parent, "strategy=incremental", "continue.add_epochs=1", "continue.parent=persona/001")
    assert (first["parent"], first["start_step"]) == ("persona/001-fresh", 6)
    of_another = plan_of(
        parent, "name=other", "strategy=incremental", "continue.add_epochs=1", "continue.parent=persona"
    )
    assert of_another["parent"] == "persona/002-fresh"
    unknown = parent.train("continue.parent=nobody", flags="--continue retune", code=2)
    assert "no run called nobody" in unknown.stderr and "series there: persona" in unknown.stderr


# What is refused ----------------------------------------------------------------------------------------------------

CHANGES = {
    "train.batch_size": "2", "lora.r": "4", "lora.dropout": "0.5", "train.learning_rate": "1e-3",
    "train.lr_scheduler_type": "cosine", "train.warmup_steps": "2", "train.seed": "1", "train.optim": "sgd",
    "train.weight_decay": "0.1", "data.learn": "all", "data.system": "Another.", "model.max_seq_length": "512",
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_incremental_refuses_what_its_checkpoint_is_bound_to(parent: Series, key: str) -> None:
    done = parent.train("continue.add_epochs=1", f"{key}={CHANGES[key]}", flags="--continue incremental", code=2)
    assert f"error: persona.toml: {key}: the parent had" in done.stderr
    assert "incremental goes on from the checkpoint of persona/001-fresh" in done.stderr
    assert 'hint: set it back; new parameters: strategy = "retune"; new data: "custom"' in done.stderr
    assert parent.names() == ["001-fresh"]


def test_every_difference_is_named_at_once(parent: Series) -> None:
    write_samples(parent.folder / "train.jsonl", PAIRS[:9])
    changes = ("train.batch_size=2", "lora.r=4", "model.base=./other", "train.learning_rate=1e-3")
    done = parent.train("continue.add_epochs=1", *changes, flags="--continue incremental", code=2)
    for key in ("model.base", "lora.r", "train.batch_size", "train.learning_rate", "samples"):
        assert f"error: persona.toml: {key}: the parent had" in done.stderr


def test_a_resumed_run_must_be_the_one_that_was_stopped(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    series.stop("train.max_steps=6")
    for key, value in {**CHANGES, "train.max_steps": "9", "model.base": "./other"}.items():
        done = series.train("train.max_steps=6", f"{key}={value}", code=2)
        assert f"error: persona/001-fresh: {key}: the stopped run began with" in done.stderr
        assert "--continue retune" in done.stderr and "--continue custom" in done.stderr
    write_samples(series.folder / "train.jsonl", PAIRS[:9])
    assert "persona/001-fresh: samples: the stopped run began with" in series.train("train.max_steps=6", code=2).stderr
    write_samples(series.folder / "train.jsonl", PAIRS[:10])
    series.train("train.max_steps=6", "train.save_steps=5", "train.logging_steps=1", "export.gguf=[]")
    assert [path.name for path in sorted(series.run(1).glob("checkpoints/*"))][-2:] == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize(
    ("flags", "settings", "words"),
    [
        ("--continue incremental", (), "continue.add_epochs: incremental needs to know how many epochs to add to the parent's 2.0"),
        ("--continue incremental", ("train.epochs=2",), "train.epochs: the parent has trained 6 steps already, this run would end at 6"),
        ("--continue incremental", ("train.max_steps=6",), "the parent has trained 6 steps already"),
        ("--continue custom", (), "the parent has trained 6 steps already"),
        ("--continue augment", ("train.epochs=1.5",), "the parent has trained 6 steps already, this run would end at 5"),
        ("--continue incremental", ("continue.add_epochs=8.5",), "train.epochs: 10.7 epochs in total; more than 10 learn the samples by heart"),
        ("--continue custom", ("continue.start=adapter", "train.epochs=9"), "11.0 epochs in total"),
        ("--continue retune", ("train.epochs=11",), "11.0 epochs in total"),
        ("--on-existing new", ("train.epochs=11",), "11.0 epochs in total"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(parent: Series, flags: str, settings: tuple[str, ...], words: str) -> None:
    done = parent.train(*settings, flags=flags, code=2)
    assert words in done.stderr and "hint: " in done.stderr
    assert parent.names() == ["001-fresh"]


def test_more_than_ten_epochs_where_that_is_meant(parent: Series) -> None:
    parent.train(
        "train.epochs=11", "train.batch_size=16", "train.save_steps=99", flags="--on-existing new --allow-overfit"
    )
    assert steps(parent.run(2)) == list(range(1, 12))


def test_overwriting_removes_the_run_that_is_named(parent: Series) -> None:
    parent.train("train.max_steps=1", flags="--on-existing new")
    parent.train("train.max_steps=1", flags="--on-existing new")
    for named, words in {
        "persona/007": "no run called persona/007", "nobody/001": "no run called nobody/001", "persona": "is not the id of a run",
    }.items():  # fmt: skip
        before = contents(parent.folder / "runs")
        assert words in parent.train("train.max_steps=1", flags=f"--overwrite {named}", code=2).stderr
        assert contents(parent.folder / "runs") == before
    kept = {number: contents(parent.run(number)) for number in (1, 3)}
    parent.train("train.max_steps=2", flags="--overwrite persona/002-fresh")
    assert parent.names() == ["001-fresh", "003-fresh", "004-fresh"]
    assert {number: contents(parent.run(number)) for number in (1, 3)} == kept
    assert sorted(path.name for path in parent.run(1).parent.iterdir() if not path.name[0].isdigit()) == [
        ".current.lock",
        ".lock",
        "current",
    ]


# Inheritance --------------------------------------------------------------------------------------------------------


def sources(plan: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    return {one["key"]: (one["value"], one["source"]) for one in plan["settings"]}


def test_what_is_left_unsaid_comes_from_the_parent(parent: Series) -> None:
    parent.train("lora.r=4", "lora.dropout=0.1", "train.seed=5", "train.max_steps=2", flags="--on-existing new")
    (parent.folder / "persona.toml").write_text(
        RECIPE.replace("batch_size = 4\n", "").replace("learning_rate = 2e-3\n", "")
    )
    found = sources(plan_of(parent, "strategy=retune", "lora.r=16", "train.learning_rate=1e-3"))
    inherited = "parent run persona/002-fresh"
    assert found["train.batch_size"] == (4, inherited)
    assert found["lora.dropout"] == (0.1, inherited)
    assert found["train.seed"] == (5, inherited)
    assert found["train.epochs"] == (2 / 3, inherited)
    assert found["train.learning_rate"] == (1e-3, "override")
    assert (found["lora.r"], found["lora.alpha"]) == ((16, "override"), (32, "default (2 × r)"))
    assert found["data.train"] == (["train.jsonl"], "recipe")
    assert plan_of(parent, "strategy=retune")["total_steps"] == 2
    longer = plan_of(parent, "strategy=incremental", "continue.add_epochs=1")
    assert (longer["total_steps"], sources(longer)["lora.r"]) == (5, (4, inherited))
    assert sources(plan_of(parent))["train.batch_size"] == (16, "default"), "a fresh recipe inherits nothing"


def test_a_schedule_without_warm_up_inherits_none(parent: Series) -> None:
    parent.train("train.warmup_steps=2", "train.max_steps=3", flags="--on-existing new")
    found = sources(plan_of(parent, "strategy=retune", "train.lr_scheduler_type=constant"))
    assert found["train.warmup_steps"] == (0.0, "default (constant has no warmup)")
    assert sources(plan_of(parent, "strategy=retune"))["train.warmup_steps"][0] == 2


@pytest.mark.parametrize(
    ("samples", "epochs"), [(5, 6.5), (19, 6.5), (20, 5.0), (49, 5.0), (50, 3.5), (200, 3.5), (201, 2.5), (5000, 2.5)]
)
def test_the_epochs_that_augment_chooses(samples: int, epochs: float) -> None:
    """The user's bands: below 20 samples 5 to 8, below 50 4 to 6, to 200 3 to 4, above 2 to 3."""
    assert strategy.band_epochs(samples) == epochs
    low, high = strategy.band(samples)
    assert low <= epochs <= high


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "expected"),
    [(1.5, 3, 5), (1.1, 50, 55), (29 / 7, 7, 29), (2.0, 7, 14), (0.01, 3, 1), (8 / 3, 3, 8)],
)
def test_steps_in_epochs(epochs: float, per_epoch: int, expected: int) -> None:
    assert strategy.steps_in(epochs, per_epoch) == expected


# Learning rates -----------------------------------------------------------------------------------------------------


def share(step: int, total: int, kind: str, warmup: int) -> float:
    """The schedule's closed form: the share of the peak rate at a step, counted from 0."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (total - warmup)
    return {
        "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0, "constant_with_warmup": 1.0,
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "warmup"),
    [
        ("linear", 0.3), ("cosine", 3), ("constant_with_warmup", 0.3), ("constant", 0),
        pytest.param("linear", 3, marks=pytest.mark.slow), pytest.param("cosine", 0.3, marks=pytest.mark.slow),
        pytest.param("constant_with_warmup", 3, marks=pytest.mark.slow),
        pytest.param("linear", 0, marks=pytest.mark.slow), pytest.param("cosine", 8, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_step_has_its_rate(tmp_path: Path, kind: str, warmup: float) -> None:
    """The closed form over the total: at first 6 steps, then, over an incremental run that is stopped and resumed, 11."""
    series = Series.new(tmp_path)
    said = () if kind == "constant" else (f"train.warmup_steps={warmup}",)
    series.train("train.epochs=2", f"train.lr_scheduler_type={kind}", *said)
    more = ("continue.add_epochs=1.5",)
    series.stop(*more, flags="--continue incremental")
    stopped_at = steps(series.run(2))[-1]
    done = series.train(*more, flags="--continue incremental")

    def expected(total: int) -> list[float]:
        steps_of_warmup = math.ceil(warmup * total) if warmup < 1 else int(warmup)
        return [2e-3 * share(step, total, kind, steps_of_warmup) for step in range(total)]

    assert rates(series.run(1)) == pytest.approx(expected(6), abs=1e-15)
    assert rates(series.run(2)) == pytest.approx(expected(11)[6:], abs=1e-15)
    at = f"goes on from step {stopped_at}: "
    said_rates = f"learning rate {expected(11)[stopped_at - 1]:.3g} before, {expected(11)[stopped_at]:.3g} now"
    assert at in done.stderr and said_rates in done.stderr
    assert f"learning rate {expected(6)[5]:.3g} before, {expected(11)[6]:.3g} now" in series.log


def moved(series: Series) -> float:
    """The largest change of a weight from run 1 to run 2."""
    from safetensors.torch import load_file

    one, other = (load_file(series.run(number) / "adapter" / "adapter_model.safetensors") for number in (1, 2))
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def test_the_first_new_step_is_taken_at_the_rate_that_is_shown(parent: Series, tmp_path: Path) -> None:
    """Adam moves a weight by about the rate. Where the parent's schedule ended at 0 the first new step moves, and where
    a rate of next to nothing is said it does not: neither is taken at a rate that the checkpoint brought along."""
    still = copied(parent, tmp_path / "still")
    parent.train("continue.add_epochs=0.3", flags="--continue incremental")
    assert steps(parent.run(2)) == [7] and rates(parent.run(2)) == pytest.approx([2e-3 / 6])
    assert 1e-4 < moved(parent) < 1e-3
    still.train("continue.add_epochs=0.3", "train.learning_rate=1e-9", flags="--continue custom")
    assert moved(still) < 1e-8

    quick = Series.new(tmp_path / "quick")
    quick.train("train.epochs=2", "train.lr_scheduler_type=constant")
    quick.train("continue.add_epochs=0.3", "train.learning_rate=1e-9", flags="--continue custom")
    assert moved(quick) < 1e-8


# Advice -------------------------------------------------------------------------------------------------------------


def advice(series: Series, *settings: str) -> Done:
    return series("plan", "persona.toml", *flagged(settings))


def ended_with(series: Series, loss: float, accuracy: float, held_out: list[float]) -> None:
    """Give the parent other figures."""
    lines: list[dict[str, float]] = [
        {"step": step, "epoch": step / 3, "loss": loss, "mean_token_accuracy": accuracy} for step in range(1, 7)
    ]
    lines += [{"step": 6, "epoch": 2.0, "eval_loss": one} for one in held_out]
    (series.run(1) / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_one_change_at_a_time(parent: Series) -> None:
    one = advice(parent, "strategy=retune", "train.learning_rate=1e-3")
    assert "all differ from" not in one.stderr
    three = advice(parent, "strategy=retune", "train.learning_rate=1e-3", "lora.r=16", "train.epochs=5")
    assert (
        "warning: persona.toml: train.epochs, lora.r, train.learning_rate all differ from persona/001-fresh"
        in three.stderr
    )
    assert "hint: one at a time: first epochs, then the learning rate, then the rank" in three.stderr


def test_epochs_for_the_data(parent: Series) -> None:
    few = advice(parent, "name=new", "train.epochs=2")
    assert "2.0 epochs over 10 samples; 5 to 8 usually suit so many" in few.stderr
    assert "usually suit" not in advice(parent, "name=new", "train.epochs=6").stderr
    after = advice(parent, "strategy=custom", "continue.start=adapter", "train.epochs=4")
    assert "usually suit" not in after.stderr, "the adapter's 2 epochs count"


@pytest.mark.parametrize(
    ("figures", "fits", "symptom"),
    [
        ((0.2, 0.95, [2.0, 1.0, 1.2]), "retune", "the samples, word for word"),
        ((0.9, 0.7, [2.0, 1.5]), "augment / incremental", "too short or shallow"),
        ((0.4, 0.75, []), "augment / incremental", "too short or shallow"),
        ((0.3, 0.9, [2.0, 1.5]), "augment", "out of character at times"),
        ((0.3, 0.9, [0.8, 0.6]), "retune", "perhaps not good enough"),
        ((0.3, 0.9, []), "retune", "perhaps not good enough"),
    ],
)
def test_the_strategy_that_fits_the_parents_figures(
    parent: Series, figures: tuple[float, float, list[float]], fits: str, symptom: str
) -> None:
    ended_with(parent, *figures)
    says = {"incremental": ("continue.add_epochs=1",), "retune": ("train.epochs=2",), "augment": ()}
    for chosen, settings in says.items():
        said = advice(parent, f"strategy={chosen}", *settings).stderr
        if chosen in fits.split(" / "):
            assert "fits better" not in said
        elif symptom == "the samples, word for word":
            assert "its held-out loss rose from 1.000 to 1.200 before it ended" in said
            assert "hint: add data, or retune with fewer epochs or a lower learning rate" in said
        else:
            assert f"{fits} fits better than {chosen} where its answers are {symptom}" in said
            assert f"hint: --continue {fits.split(' / ')[0]}" in said
    assert "fits better" not in advice(parent, "strategy=custom", "continue.add_epochs=1").stderr


def test_with_enough_samples_or_epochs_more_epochs_come_first(parent: Series) -> None:
    ended_with(parent, 0.9, 0.7, [])
    plan = parent.run(1) / "plan.json"
    for changed in ({"train_samples": 60}, {"epochs": 7.0}):
        before = plan.read_text()
        plan.write_text(json.dumps(document(plan) | changed))
        assert "incremental / augment fits better than retune" in advice(parent, "strategy=retune").stderr
        plan.write_text(before)


def test_a_fresh_run_beside_a_finished_one_is_told_so(parent: Series) -> None:
    """The loss that starts at 3.69 every time."""
    ended_with(parent, 0.512, 0.9, [])
    said = advice(parent).stderr
    assert "begins with the base again; persona/001-fresh ended at loss 0.512" in said
    assert "--continue incremental goes on from there" in said
    assert "begins with the base again" not in advice(parent, "name=new").stderr


@pytest.mark.parametrize(
    ("base", "system", "answer", "advised"),
    [
        ("builtin:tiny", "你" * 350, "好。", True),
        ("builtin:tiny", "你好。", "好" * 150, True),
        ("builtin:tiny", "你好。", "好。", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "你" * 350, "好。", True),
        ("Qwen/Qwen2.5-1.5B-Instruct", "你" * 350, "好。", False),
        ("./my-model", "你" * 350, "好。", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "You are a cat. " * 60, "Yes.", False),
    ],
)
def test_a_small_base_for_a_complex_persona(tmp_path: Path, base: str, system: str, answer: str, advised: bool) -> None:
    series = Series.new(tmp_path, RECIPE.replace("builtin:tiny", base))
    rows = [{"system": system, "instruction": f"问{n}", "output": answer} for n in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = advice(series).stderr
    assert ("a small base for this persona" in said) == advised
    assert ("Qwen/Qwen2.5-1.5B-Instruct" in said) == advised


def test_advice_is_shown_before_a_training_too(parent: Series) -> None:
    done = parent.train("lora.r=4", "train.learning_rate=1e-3", flags="--continue retune")
    assert "all differ from persona/001-fresh" in done.stderr
    assert store.current(parent.folder / "runs", "persona").id == "persona/002-retune"  # type: ignore[union-attr]
