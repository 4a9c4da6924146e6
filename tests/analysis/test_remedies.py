"""What to type next: complete commands that the command line takes, and settings in each trainer's own spelling."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import trainings
import written_runs
from kept_epochs import write_epochs
from run_folders import write_run
from series import RECIPE, Series
from trainings import write_factory, write_state, write_swift

from fasttune.analysis import remedies, run_findings
from fasttune.analysis.diagnose import Diagnosis, diagnose, of_run, training_of_run
from fasttune.analysis.trainer_logs import read_log
from fasttune.analysis.training_facts import Training
from fasttune.cli import entry
from fasttune.console import Finding
from fasttune.pipeline import Planner, RunRequest
from fasttune.runs import bands, curves, documents, epochs, store, summary
from fasttune.runs.store import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    Series.new(tmp_path / "series", RECIPE)
    monkeypatch.chdir(tmp_path / "series")
    return written_runs.write_run(written_runs.request("train.epochs=2", "data.val=val.jsonl"))


def carried_out(command: str) -> None:
    """Read a printed command line as the command line does, and plan what it trains; raises where it is refused."""
    *removing, last = command.split(" && ")
    assert all(Path(shlex.split(one)[1]).is_file() for one in removing if shlex.split(one)[0] == "rm")
    words = shlex.split(last)
    assert words[0] == "fasttune" and not {"RUN", "RECIPE", "FILE", "OUT", "NAME", "…"} & set(words), command
    with entry.commands.commands[words[1]].make_context(words[1], words[2:]) as context:
        assert not context.args
    if words[1] in ("check", "run"):
        assert Path(words[2]).is_file()
    if words[1] in ("chat", "export"):
        store.find(Path(words[words.index("--runs") + 1] if "--runs" in words else "runs"), words[2])
    if words[1] == "run":
        planned(last)


def planned(command: str) -> None:
    """Plan a printed command; raises where fasttune would refuse it."""
    words = shlex.split(command)
    assert words[:2] == ["fasttune", "run"]
    overrides = tuple(words[n + 1] for n, word in enumerate(words) if word == "--set")
    strategy = words[words.index("--continue") + 1] if "--continue" in words else None
    on_existing = "new" if "--on-existing" in words else None
    allow = "--allow-overfit" in words
    request = RunRequest(Path(words[2]), overrides, strategy=strategy, on_existing=on_existing, allow_overfit=allow)  # type: ignore[arg-type]
    Planner().plan(request)


def test_every_command_for_a_run_can_be_carried_out(run: Run) -> None:
    given = remedies.of_run(run, documents.read_plan(run), 1.0)
    commands = {field.name: getattr(given, field.name) for field in fields(given)}
    assert commands["look_at_mask"] == "fasttune show train.jsonl:1 --recipe runs/persona/001-fresh/recipe.toml"
    assert commands.pop("pick_best") == ""  # no epoch was kept
    for command in commands.values():
        carried_out(command)
    assert 'data.val="val.jsonl"' in commands["more_epochs"], "what it began with is kept"
    assert commands["fewer_epochs"].endswith("--set train.epochs=1")


def test_an_older_run_is_named_as_the_parent(run: Run) -> None:
    later = written_runs.write_run(written_runs.request("train.epochs=2", on_existing="new"))
    assert store.current(run.root, run.series) == later
    command = remedies.of_run(run, documents.read_plan(run), 1.0).more_epochs
    assert f"--set continue.parent={run.id}" in command
    planned(command)


def test_a_stopped_run_is_not_continued_from(run: Run) -> None:
    run.adapter.rmdir()
    given = remedies.of_run(run, documents.read_plan(run), 1.0)
    assert "--on-existing new" in given.fewer_epochs and "--on-existing resume" in given.more_epochs
    planned(given.fewer_epochs)


def test_more_than_ten_epochs_are_allowed_where_they_are_meant(run: Run) -> None:
    plan = replace(documents.read_plan(run), epochs=9.0)
    assert "--allow-overfit" in remedies.of_run(run, plan, 1.0).more_epochs
    assert "--allow-overfit" not in remedies.of_run(run, plan, 1.0).fewer_epochs


def test_each_trainer_has_its_own_spelling(tmp_path: Path) -> None:
    for write, shorter, resumed in (
        (write_state, "num_train_epochs=2", "resume_from_checkpoint='{folder}/checkpoint-200'"),
        (write_factory, "num_train_epochs: 2", "resume_from_checkpoint: {folder}/checkpoint-200"),
        (write_swift, "--num_train_epochs 2", "--resume_from_checkpoint {folder}/checkpoint-200"),
    ):
        folder = tmp_path / write.__name__
        (folder / "checkpoint-200").mkdir(parents=True)
        given = remedies.of_log(read_log(write(folder, trainings.good(1))), 2e-4, 2.0)
        assert given.fewer_epochs == shorter
        assert given.continue_ == resumed.format(folder=folder) and given.continue_ in given.more_epochs
        assert "5e-05" in given.lower_learning_rate


ILLNESSES: dict[str, Callable[[int], trainings.Rows]] = {  # each code of the contract, and a training that gets it
    "healthy": trainings.good,
    "over-fitting": trainings.over_fitting,
    "under-trained": trainings.under_trained,
    "memorised": trainings.memorised,
    "restarted-instead-of-continued": lambda seed: trainings.restarted(seed, step_counter_falls=False),
    "resumed-cleanly": trainings.continued,
    "diverged": trainings.diverged,
    "not-a-number": trainings.not_a_number,
    "zero-gradient": trainings.zero_gradient,
    "gradient-spikes": trainings.spikes,
    "plateau": trainings.plateau,
    "learning-rate-too-high": trainings.too_high,
    "learning-rate-too-low": trainings.too_low,
    "schedule-jump": trainings.lengthened,
    "no-held-out-data": trainings.memorised,
    "not-enough-evidence": trainings.good,
    "best-checkpoint-was-earlier": trainings.over_fitting,
}


def trained(run: Run, rows: trainings.Rows, samples: int = 450, held_out: int = 50) -> Diagnosis:
    """The diagnosis of the run with these rows as its history, as if it had so many samples."""
    evaluated = any("eval_loss" in row for row in rows)
    own = documents.read_plan(run)
    plan = replace(
        own, steps_per_epoch=trainings.PER_EPOCH, total_steps=rows[-1]["step"],
        epochs=rows[-1]["step"] / trainings.PER_EPOCH, train_samples=samples, val_samples=held_out if evaluated else 0,
    )  # fmt: skip
    documents.write(run.plan, plan)
    lines = [row | ({"mean_token_accuracy": 0.6} if "loss" in row else {}) for row in rows]
    run.history.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = diagnose(run.root, run.id)
    documents.write(run.plan, own)  # what is typed next is planned by the samples that there are
    return found


@pytest.mark.parametrize("code", ILLNESSES)
def test_every_verdict_ends_in_one_complete_command(code: str, run: Run) -> None:
    found = trained(run, ILLNESSES[code](1), held_out=8 if code == "not-enough-evidence" else 50)
    (of_code,) = [one for one in found.findings if one.code == code]
    assert found.command and "`" not in found.command
    carried_out(found.command)
    for one in found.findings:
        assert one.fix or one.level == "info", f"{one.code} says what is wrong and not what to type"
        if one.fix:
            carried_out(one.fix.strip("`"))
    if code not in ("resumed-cleanly", "gradient-spikes"):  # nothing to mend
        assert of_code.fix


def test_the_contract_has_seventeen_codes() -> None:
    assert len(ILLNESSES) == 17


@pytest.mark.parametrize(("samples", "proposed"), [(17, "0.0036"), (450, "0.0022")])
def test_a_higher_learning_rate_is_the_one_that_auto_would_take(run: Run, samples: int, proposed: str) -> None:
    """The plan's 2e-3 is below what suits 3 epochs of 17 samples, and twice as much is tried where it is not."""
    rows = trainings.too_low(1)
    found = trained(run, rows, samples=samples)
    (low,) = [one for one in found.findings if one.code == "learning-rate-too-low"]
    count = rows[-1]["step"] / trainings.PER_EPOCH
    suits = f"{bands.suiting_learning_rate(count, samples, 16, 'builtin:tiny'):.2g}"
    assert f"; {suits} suits {count:g} epochs of {samples} samples" in low.what
    assert low.fix.strip("`").endswith(f"train.learning_rate={proposed}")


def little_data(found: Diagnosis) -> Finding:
    return next(one for one in found.findings if one.code == "too-little-data")


@pytest.mark.parametrize("samples", [12, 40])
def test_little_data_is_trained_on_where_it_is_not_learned_yet(run: Run, samples: int) -> None:
    found = trained(run, trainings.under_trained(1), samples=samples)
    command = little_data(found).fix.strip("`")
    assert "--continue augment" in command and "epochs" not in command
    carried_out(command)
    assert "--continue incremental" in found.command, "what the held-out loss says to do comes first"


def test_little_data_that_is_known_by_heart_is_looked_at(run: Run) -> None:
    found = trained(run, trainings.over_fitting(1), samples=40)
    command = little_data(found).fix.strip("`")
    assert command == "fasttune check runs/persona/001-fresh/recipe.toml --set 'data.val=\"val.jsonl\"'"
    carried_out(command)
    assert "--continue retune" in found.command, "what the held-out loss says to do comes first"


def test_more_than_ten_epochs_of_little_data_are_not_lengthened(run: Run) -> None:
    rows = [row | {"epoch": row["epoch"] * 4} for row in trainings.under_trained(1)]
    plan = replace(documents.read_plan(run), epochs=12.0, train_samples=12)
    training = replace(trained_facts(run, rows), samples=12)
    (found,) = run_findings.few_samples(run, plan, training)
    assert found.fix.startswith("`fasttune check ")


def trained_facts(run: Run, rows: trainings.Rows) -> Training:
    """What is known of the run with these rows."""
    trained(run, rows)
    return training_of_run(run, documents.read_plan(run), curves.curve_of(summary.full_history(run)))


def turned(root: Path) -> Run:
    """A run of 40 epochs of one step whose held-out loss turned after epoch 20."""
    held_out = [2.0 + 0.003 * (step - 20) ** 2 for step in range(1, 41)]
    return write_run(root, losses=[3.0 * 0.95**step for step in range(40)], held_out=held_out, samples=100)


def test_the_best_epoch_is_picked_where_it_was_kept(tmp_path: Path) -> None:
    """Nothing need be trained again; once it is picked, nothing is wrong with the run."""
    one = turned(tmp_path)
    before = of_run(one)
    assert before.findings[0].code == "over-fitting" and "train.epochs=20" in before.command
    write_epochs(one, (10, 20, 40), (2.3, 2.0, 3.2), steps_per_epoch=1)
    found = of_run(one)
    assert found.command == epochs.pick_command(one, "--epoch", "20")
    assert [each.code for each in found.findings[:2]] == ["best-checkpoint-was-earlier", "over-fitting"]
    epochs.pick(one, epochs.find_epoch(one, "20"))
    assert not {"over-fitting", "best-checkpoint-was-earlier"} & {each.code for each in of_run(one).findings}
    epochs.pick(one, None)
    assert of_run(one) == found


def test_without_the_epoch_of_the_best_step_it_is_trained_again(tmp_path: Path) -> None:
    one = turned(tmp_path)
    write_epochs(one, (10, 40), (2.3, 3.2), steps_per_epoch=1)
    assert "train.epochs=20" in of_run(one).command
