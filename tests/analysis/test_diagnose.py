"""Every illness by formula with the verdict it must get, healthy trainings that must get none, and the users' story."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trainings
from run_folders import write_recipe, write_run
from trainings import HEALTHY, Rows, write_factory, write_state, write_swift

from fasttune.analysis.diagnose import Diagnosis, diagnose
from fasttune.console import UsageError
from fasttune.runs import documents
from fasttune.runs.documents import Probe, Scores

SEEDS = range(6)
# What may stand beside a healthy verdict, and nothing else.
NEUTRAL = {"healthy", "no-held-out-data", "resumed-cleanly"}
ILL: dict[Callable[[int], Rows], tuple[list[str], set[str]]] = {  # what it must get, the first one first; what it may
    trainings.over_fitting: (["over-fitting", "best-checkpoint-was-earlier"], set()),
    trainings.memorised: (["memorised", "no-held-out-data"], set()),
    trainings.under_trained: (["under-trained"], set()),
    trainings.under_trained_by_bands: (["under-trained", "no-held-out-data"], set()),
    trainings.diverged: (["diverged", "learning-rate-too-high", "no-held-out-data"], set()),
    trainings.not_a_number: (["not-a-number", "no-held-out-data"], set()),
    trainings.zero_gradient: (["zero-gradient", "no-held-out-data"], set()),
    trainings.spikes: (["healthy", "gradient-spikes"], set()),
    trainings.plateau: (["plateau"], set()),
    trainings.too_low: (["learning-rate-too-low", "under-trained", "no-held-out-data"], {"plateau"}),
    trainings.too_high: (["diverged", "learning-rate-too-high", "no-held-out-data"], set()),
    trainings.lengthened: (["schedule-jump", "resumed-cleanly", "no-held-out-data"], set()),
    trainings.continued: (["resumed-cleanly", "no-held-out-data"], set()),
}


def codes(found: Diagnosis) -> list[str]:
    return [one.code for one in found.findings]


def diagnosed(folder: Path, rows: Sequence[dict[str, Any]], **fields: Any) -> Diagnosis:
    """The diagnosis of rows in a trainer_state.json."""
    write_state(folder, rows, **fields)
    return diagnose(folder / "runs", str(folder))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("made", ILL, ids=lambda made: made.__name__)
def test_an_illness_gets_its_codes_and_no_others(tmp_path: Path, made: Callable[[int], Rows], seed: int) -> None:
    required, allowed = ILL[made]
    found = codes(diagnosed(tmp_path, made(seed)))
    assert set(required) <= set(found) <= {*required, *allowed}
    if made is not trainings.too_low:
        assert found[0] == required[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("made", HEALTHY, ids=lambda made: made.__name__)
def test_a_healthy_training_is_called_so_and_nothing_else(
    tmp_path: Path, made: Callable[[int], Rows], seed: int
) -> None:
    found = diagnosed(tmp_path, made(seed))
    assert codes(found) == ["healthy"]
    assert found.command == "" and found.verdict.startswith("healthy: the held-out loss fell from ")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("floor", [0.01, 0.08, 0.25])
def test_a_low_loss_with_a_rising_held_out_loss_is_never_good(tmp_path: Path, floor: float, seed: int) -> None:
    rows = trainings.rows(trainings.decay(3.0, floor, 0.3), seed, held_out=lambda epoch: 1.0 + 0.3 * (epoch - 1) ** 2)
    found = codes(diagnosed(tmp_path, rows))
    assert found[0] == "over-fitting" and "healthy" not in found


@pytest.mark.parametrize("step_counter_falls", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_users_story(tmp_path: Path, seed: int, step_counter_falls: bool) -> None:
    """450 samples, rank 16, restarted at 3.69 three times, loss 0.5, accuracy 0.73."""
    (tmp_path / "checkpoint-84").mkdir()
    (tmp_path / "checkpoint-84" / "adapter_config.json").write_text(json.dumps({"r": 16}), encoding="utf-8")
    found = diagnosed(tmp_path, trainings.restarted(seed, step_counter_falls=step_counter_falls))
    restarted, under_trained = found.findings[:2]
    assert (restarted.code, under_trained.code) == ("restarted-instead-of-continued", "under-trained")
    assert "2 times" in restarted.what and "back to 3." in restarted.what
    resume = f"resume_from_checkpoint='{tmp_path}/checkpoint-84'"
    assert restarted.fix == f"`{resume}`" and found.command == resume
    assert under_trained.fix.startswith("`num_train_epochs=")
    assert "accuracy 73.0%" in under_trained.what
    assert [fact.value for fact in found.evidence if fact.name == "lora.r"] == [16]
    assert {item.name: item.answer for item in found.checklist if item.stage == "during"}["continued"] == "no"


def test_the_users_story_in_a_series_of_ours(tmp_path: Path) -> None:
    """A second run of a recipe is there because it was asked for: that it began again is said, and is no fault."""
    losses = [3.6947, 2.1, 1.3, 1.0, 0.8, 0.7, 0.6, 0.55, 0.5, 0.52]
    for _time in range(3):
        run = write_run(tmp_path, losses=losses, samples=450, lora__r=16)
        write_recipe(run)
    lines = [json.loads(line) for line in run.history.read_text(encoding="utf-8").splitlines()]
    run.history.write_text("".join(json.dumps(line | {"mean_token_accuracy": 0.73}) + "\n" for line in lines), "utf-8")
    found = diagnose(tmp_path, "persona")
    under_trained = found.findings[0]
    (again,) = [one for one in found.findings if one.code == "begins-again"]
    assert under_trained.code == "under-trained" and "restarted-instead-of-continued" not in codes(found)
    assert again.level == "info" and "persona/002-fresh had ended at loss 0.520" in again.what and not again.fix
    longer = f"fasttune run {run.recipe} --runs {tmp_path} --continue retune --allow-overfit --set train.epochs=11.5"
    assert found.command == longer, "its data are others by now, so it can't be continued from its checkpoint"
    assert under_trained.fix == f"`{found.command}`"


def test_training_again_after_over_fitting_is_no_restart(tmp_path: Path) -> None:
    """It is what the diagnosis of the first one says."""
    losses = [3.6947, 2.1, 1.3, 1.0, 0.8, 0.7, 0.6, 0.55, 0.5, 0.52]
    write_run(tmp_path, losses=losses, held_out=[3.0, 2.0, 1.8, 1.9, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    write_run(tmp_path, losses=losses[:5], held_out=[3.0, 2.0, 1.8, 1.7, 1.69])
    assert "restarted-instead-of-continued" not in codes(diagnose(tmp_path, "persona"))


def test_a_retuned_series_is_no_restart(tmp_path: Path) -> None:
    """Other settings from the base are meant so."""
    losses = [3.6947, 2.1, 1.3, 1.0, 0.8, 0.7, 0.6, 0.55, 0.5, 0.52]
    write_run(tmp_path, losses=losses)
    write_run(tmp_path, losses=losses, train__learning_rate=1e-4)
    assert "restarted-instead-of-continued" not in codes(diagnose(tmp_path, "persona"))


@pytest.mark.parametrize("held_out", [8, 19])
def test_few_held_out_samples_are_not_enough_evidence(tmp_path: Path, held_out: int) -> None:
    """However far their loss rises; at twenty it counts."""
    rows = trainings.over_fitting(1)
    few = [
        line | ({"eval_runtime": 2.0, "eval_samples_per_second": held_out / 2} if "eval_loss" in line else {})
        for line in rows
    ]
    found = diagnosed(tmp_path, few)
    assert "not-enough-evidence" in codes(found) and not {"over-fitting", "healthy"} & set(codes(found))
    assert f"{held_out} held-out samples" in next(
        one.what for one in found.findings if one.code == "not-enough-evidence"
    )
    enough = [line | ({"eval_samples_per_second": 10.0} if "eval_loss" in line else {}) for line in few]
    assert codes(diagnosed(tmp_path, enough))[0] == "over-fitting"


@pytest.mark.parametrize("write", [write_factory, write_swift])
@pytest.mark.parametrize("made", [trainings.good, trainings.over_fitting, trainings.memorised, trainings.not_a_number])
def test_the_trainer_makes_no_difference(
    tmp_path: Path, write: Callable[[Path, Rows], Path], made: Callable[[int], Rows]
) -> None:
    expected = codes(diagnosed(tmp_path / "hf", made(3)))
    path = write(tmp_path / "other", made(3))
    assert codes(diagnose(tmp_path / "runs", str(path.parent))) == expected
    assert codes(diagnose(tmp_path / "runs", str(path))) == expected, "the file itself may be named"


def test_the_verdict_is_that_of_runs(tmp_path: Path) -> None:
    losses = [3.0, 1.5, 0.9, 0.5, 0.3, 0.2, 0.1, 0.08, 0.06, 0.05]
    held_out = [2.0, 1.8, 1.7, 1.75, 1.8, 1.9, 2.0, 2.1, 2.2, 2.3]
    run = write_run(tmp_path, losses=losses, held_out=held_out)
    write_recipe(run)
    found = diagnose(tmp_path, "persona")
    assert codes(found)[0] == "over-fitting"
    assert found.command == (f"fasttune run {run.recipe} --runs {tmp_path} --continue retune --set train.epochs=3"), (
        "the epoch that was best"
    )


def test_template_and_system_prompt_go_before_everything(tmp_path: Path) -> None:
    """The sequence of advice: what was served is mended before how long it trained."""
    run = write_run(tmp_path, losses=[3.0 - 0.05 * n for n in range(12)], system="你是林栀。")
    plan = documents.read_plan(run)
    documents.write(run.plan, plan.__class__(**{**plan.__dict__, "system": "你是林栀。"}))
    (run.exports / "Modelfile").write_text('FROM ./x.gguf\nSYSTEM """You are Qwen."""\n', encoding="utf-8")
    found = diagnose(tmp_path, "persona")
    assert codes(found)[:2] == ["template-mismatch", "system-prompt-mismatch"]
    assert found.command == f"fasttune export {run.id} --runs {tmp_path}"


def test_answers_are_compared_with_the_data(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=[3.0, 0.9, 0.5])
    probes = (
        Probe("什么是爱？", "", "我是由阿里云开发的通义千问。"),
        Probe("说个故事", "", "月亮很圆很圆很圆很圆很圆很圆很圆很圆很圆很圆很圆"),
    )
    documents.write(run.scores, Scores(probes, "adapter"))
    found = codes(diagnose(tmp_path, "persona"))
    assert {"babble", "out-of-character"} <= set(found)


def test_a_folder_without_a_log_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        diagnose(tmp_path / "runs", str(tmp_path))
    (finding,) = refused.value.findings
    assert (finding.code, finding.where) == ("no-training-log", str(tmp_path))
    with pytest.raises(UsageError) as refused:
        diagnose(tmp_path / "runs", "nobody")
    assert refused.value.findings[0].code == "unknown-run"


def test_fewer_epochs_are_no_remedy_for_babble_where_the_held_out_loss_is_best_at_the_end(tmp_path: Path) -> None:
    """It once advised to train the same epochs again."""
    probes = (Probe("说个故事", "", "月亮很圆很圆很圆很圆很圆很圆很圆很圆很圆很圆很圆"),)
    remedies = {}
    for series, held_out in (("good", [3.2, 2.9, 2.7, 2.69]), ("over", [3.2, 2.6, 2.9, 3.4])):
        run = write_run(tmp_path / series, losses=[3.0, 2.0, 1.2, 0.5], held_out=held_out, samples=100)
        documents.write(run.scores, Scores(probes, "adapter"))
        write_recipe(run)
        (babble,) = [one for one in diagnose(tmp_path / series, "persona").findings if one.code == "babble"]
        remedies[series] = babble.fix
    assert "model.base=" in remedies["good"] and "train.epochs=2" in remedies["over"]
