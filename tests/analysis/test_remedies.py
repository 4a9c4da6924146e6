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
from run_folders import write_recipe, write_run
from series import RECIPE, Series
from trainings import write_factory, write_state, write_swift
from typed_commands import carried_out, planned

from fasttune.analysis import log_remedies
from fasttune.analysis.diagnose import Diagnosis, diagnose, of_run
from fasttune.analysis.remedies import RunRemedies
from fasttune.analysis.trainer_logs import read_log
from fasttune.console import Finding
from fasttune.pipeline import Planner, RunRequest
from fasttune.recipe.schema import Setting
from fasttune.runs import bands, documents, epochs, store
from fasttune.runs.store import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    Series.new(tmp_path / "series", RECIPE)
    monkeypatch.chdir(tmp_path / "series")
    return written_runs.write_run(written_runs.request("train.epochs=2", "data.val=val.jsonl"))


def test_no_remedy_is_the_very_training_that_it_had(run: Run) -> None:
    plan = documents.read_plan(run)
    assert RunRemedies(run, plan, 2.0).fewer_epochs == "", "it was at its best at the end of its two epochs"
    assert RunRemedies(run, plan, 1.5).fewer_epochs.endswith("--set train.epochs=1.5")


def test_a_sweeps_trial_passes_on_no_setting_that_forbids_files(run: Run) -> None:
    without_files = ("export.gguf=[]", 'export.ollama=""', "export.keep_merged=false")
    trial = written_runs.write_run(written_runs.request("train.epochs=2", *without_files, on_existing="new"))
    assert "export." not in RunRemedies(trial, documents.read_plan(trial)).more_epochs
    own = written_runs.write_run(written_runs.request("train.epochs=2", "export.gguf=[]", on_existing="new"))
    assert "export.gguf=[]" in RunRemedies(own, documents.read_plan(own)).more_epochs, "the user's own word"


def test_every_command_for_a_run_can_be_carried_out(run: Run) -> None:
    given = RunRemedies(run, documents.read_plan(run), 1.0)
    names = [field.name for field in fields(log_remedies.LogRemedies)]
    commands = {name: getattr(given, name) for name in [*names, "resume", "make_files", "check"]}
    assert commands["look_at_mask"] == "fasttune show train.jsonl:1 --recipe runs/persona/001-fresh/recipe.toml"
    assert commands.pop("pick_best") == ""  # no epoch was kept
    assert commands.pop("hold_out") == "", "of twelve samples not enough can be held out"
    for command in commands.values():
        carried_out(command)
    assert 'data.val="val.jsonl"' in commands["more_epochs"], "what it began with is kept"
    assert commands["fewer_epochs"].endswith("--set train.epochs=1")


def test_an_older_run_is_named_as_the_parent(run: Run) -> None:
    later = written_runs.write_run(written_runs.request("train.epochs=2", on_existing="new"))
    assert store.current(run.root, run.series) == later
    command = RunRemedies(run, documents.read_plan(run), 1.0).more_epochs
    assert f"--set continue.parent={run.id}" in command
    planned(command)


def test_a_stopped_run_is_not_continued_from(run: Run) -> None:
    run.adapter.rmdir()
    given = RunRemedies(run, documents.read_plan(run), 1.0)
    assert "--on-existing new" in given.fewer_epochs and "--on-existing resume" in given.more_epochs
    planned(given.fewer_epochs)


def test_more_than_ten_epochs_are_allowed_where_they_are_meant(run: Run) -> None:
    plan = replace(documents.read_plan(run), epochs=9.0)
    assert "--allow-overfit" in RunRemedies(run, plan, 1.0).more_epochs
    assert "--allow-overfit" not in RunRemedies(run, plan, 1.0).fewer_epochs


def test_each_trainer_has_its_own_spelling(tmp_path: Path) -> None:
    for write, shorter, resumed in (
        (write_state, "num_train_epochs=2", "resume_from_checkpoint='{folder}/checkpoint-200'"),
        (write_factory, "num_train_epochs: 2", "resume_from_checkpoint: {folder}/checkpoint-200"),
        (write_swift, "--num_train_epochs 2", "--resume_from_checkpoint {folder}/checkpoint-200"),
    ):
        folder = tmp_path / write.__name__
        (folder / "checkpoint-200").mkdir(parents=True)
        given = log_remedies.of_log(read_log(write(folder, trainings.good(1))), 2e-4, 2.0)
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
        for command in one.fix.split("`")[1::2]:
            carried_out(command)
    if code not in ("resumed-cleanly", "gradient-spikes", "no-held-out-data", "not-enough-evidence"):
        assert of_code.fix  # there is something to mend, and samples enough for it


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


@pytest.mark.parametrize("rows", [trainings.under_trained, trainings.over_fitting])
def test_little_data_is_mended_by_more_conversations(run: Run, rows: Callable[[int], trainings.Rows]) -> None:
    """No strategy of continuing writes any; what the curves say to type comes first."""
    found = trained(run, rows(1), samples=40)
    fix = little_data(found).fix
    check = "fasttune check runs/persona/001-fresh/recipe.toml --set 'data.val=\"val.jsonl\"'"
    assert fix.startswith("write more conversations") and "--continue" not in fix and f"`{check}`" in fix
    carried_out(check)
    assert "--continue " in found.command


def test_little_data_with_a_fact_sheet_is_added_to(run: Run) -> None:
    """Until its samples are trained on."""
    Path("facts.toml").write_text(SHEET, encoding="utf-8")
    plan = documents.read_plan(run)
    values = [
        Setting("facts.file", "facts.toml", "recipe") if one.key == "facts.file" else one for one in plan.settings
    ]
    documents.write(run.plan, replace(plan, settings=tuple(values)))
    with open(run.recipe, "a", encoding="utf-8") as recipe:
        recipe.write('[facts]\nfile = "facts.toml"\n')
    assert f"`fasttune augment {run.recipe}`" in little_data(diagnose(run.root, run.id)).fix
    carried_out(f"fasttune augment {run.recipe}")
    trained_on = [replace(one, value=["facts-train.jsonl"]) if one.key == "data.train" else one for one in values]
    documents.write(run.plan, replace(plan, settings=tuple(trained_on)))
    assert "augment" not in little_data(diagnose(run.root, run.id)).fix


def test_after_a_change_of_its_data_a_run_is_not_continued_from(run: Run) -> None:
    """Its checkpoint is of the samples of then, so that `incremental` is refused."""
    with open("train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"instruction": "还有呢？", "output": "没有了。"}\n')
    given = RunRemedies(run, documents.read_plan(run), 1.0)
    assert given.more_epochs.endswith("--continue retune --set 'data.val=\"val.jsonl\"' --set train.epochs=3.5")
    planned(given.more_epochs)


def test_nothing_is_typed_where_nothing_can_be_read(run: Run) -> None:
    Path("train.jsonl").unlink()
    given = RunRemedies(run, documents.read_plan(run), 1.0)
    assert not any((given.more_epochs, given.fewer_epochs, given.other_numbers, given.higher_rank))


def test_epochs_count_where_the_length_was_given_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.max_steps would count before train.epochs."""
    Series.new(tmp_path / "series", RECIPE.replace("[train]", "[train]\nmax_steps = 6"))
    monkeypatch.chdir(tmp_path / "series")
    one = written_runs.write_run(written_runs.request("data.val=val.jsonl"))
    command = RunRemedies(one, documents.read_plan(one), 1.0).fewer_epochs
    words = shlex.split(command)
    given = tuple(words[n + 1] for n, word in enumerate(words) if word == "--set")
    assert Planner().plan(RunRequest(one.recipe, given, strategy="retune")).total_steps == 3, "an epoch"


SHEET = """
[[fact]]
id = "cat"
text = "小灯是一只猫。"
questions = ["小灯是什么？", "小灯是谁？", "什么是小灯？"]
accept = ["猫"]
ask = ["灯塔上住的是哪种动物？"]
say = ["一只猫。"]
"""


def turned(root: Path) -> Run:
    """A run of 40 epochs of one step whose held-out loss turned after epoch 20."""
    held_out = [2.0 + 0.003 * (step - 20) ** 2 for step in range(1, 41)]
    run = write_run(root, losses=[3.0 * 0.95**step for step in range(40)], held_out=held_out, samples=100)
    write_recipe(run)
    return run


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
