"""A whole sweep: its trials are ordinary runs, a kill loses nothing, and nothing is trained twice."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import Shared
from series import Series, assert_same_run, copied, document, history, log_call, start_child

from fasttune import files
from fasttune.runs import store
from fasttune.sweep import study
from fasttune.training import model as models
from fasttune.training import oom, watch
from fasttune.training.callbacks import WatchCallback

COMMON = ("--set", "data.val=val.jsonl", "--set", "train.epochs=3", "--set", 'probe.questions=["你叫什么？"]',
          "--set", "probe.max_new_tokens=8")  # fmt: skip
# The second has the highest rate and the lowest loss; the last one learns nothing and is stopped after two epochs.
RATES = ("4e-3", "2e-2", "2e-3", "1e-7")
SWEEP = ("sweep", "persona.toml", "--vary", f"train.learning_rate={','.join(RATES)}", *COMMON)


def dies_after(evaluations: int) -> Callable[..., None]:
    """WatchCallback.on_evaluate in a process that is killed at an evaluation, before anybody has heard of it."""
    left = [evaluations]
    original = WatchCallback.on_evaluate

    def on_evaluate(self: WatchCallback, *arguments: Any, **more: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, *arguments, **more)

    return on_evaluate


def killed_sweep(folder: Path) -> None:
    """What a child process does: the second trial is killed after its second epoch, of which no checkpoint is left."""
    with patch.object(WatchCallback, "on_evaluate", dies_after(5)):
        log_call(folder, list(SWEEP))


@contextlib.contextmanager
def counted_models() -> Iterator[list[int]]:
    """How many models of the trials before were in memory when each trial got its own, and in the end how many are,
    their base included; whoever held it in the sweep is still there."""
    original, models_of_trials, bases, left = watch.SharedBase.load, list[Any](), list[Any](), list[int]()
    holders: list[watch.SharedBase] = []

    def load(self: watch.SharedBase, *what: Any) -> Any:
        left.append(sum(model() is not None for model in models_of_trials))
        model = original(self, *what)
        models_of_trials.append(weakref.ref(model))
        bases.append(weakref.ref(self.model))
        holders.append(self)
        return model

    with patch.object(watch.SharedBase, "load", load):
        yield left
    gc.collect()
    left.append(sum(model() is not None for model in (*models_of_trials, *bases)))


@pytest.fixture(scope="session")
def swept(shared: Shared) -> Series:
    """A sweep of four trials that was killed in the second one and finished by the same command; sweep.json is what it
    printed, loads.json how often the base was loaded by the second process, whether it was in memory before each trial,
    and what `counted_models` found."""

    def make(folder: Path) -> None:
        series = Series.new(folder)
        child = start_child(killed_sweep, folder)
        child.join(300)
        assert child.exitcode == -signal.SIGKILL, series.log
        assert [(run / "adapter").is_dir() for run in series.runs()] == [True, False]
        with (
            patch.object(models, "load_base", wraps=models.load_base) as loading,
            patch.object(oom, "base_too_large", wraps=oom.base_too_large) as asking,
            counted_models() as left,
        ):
            done = series(*SWEEP, "--json")
        (folder / "sweep.json").write_text(done.stdout, encoding="utf-8")
        (folder / "sweep.err").write_text(done.stderr, encoding="utf-8")
        in_memory = [call.kwargs["in_memory"] for call in asking.call_args_list]
        (folder / "loads.json").write_text(json.dumps([loading.call_count, in_memory, left]), encoding="utf-8")

    return Series(shared("swept", make))


def test_the_same_command_finishes_a_sweep_that_was_killed(swept: Series) -> None:
    found = document(swept.folder / "sweep.json")
    assert [(one["settings"], one["state"], one["run"]) for one in found["trials"]] == [
        ({"train.learning_rate": "4e-3"}, "finished", "persona/001-fresh"),
        ({"train.learning_rate": "2e-2"}, "finished", "persona/002-fresh"),
        ({"train.learning_rate": "2e-3"}, "finished", "persona/003-fresh"),
        ({"train.learning_rate": "1e-7"}, "pruned", "persona/004-fresh"),
    ]  # fmt: skip
    assert [one["step"] for one in document(swept.run(2) / "provenance.json")["starts"]] == [1, 4]


def test_a_trial_is_the_run_that_the_same_settings_train(swept: Series, tmp_path: Path) -> None:
    """Bit for bit, its answers too: the one that was killed, in whose process another run had been trained before."""
    alone = Series.new(tmp_path / "alone")
    alone.train("data.val=val.jsonl", "train.epochs=3", "train.learning_rate=2e-2",
                'probe.questions=["你叫什么？"]', "probe.max_new_tokens=8")  # fmt: skip
    assert_same_run(swept.run(2), alone.run(1))
    trial, run = (document(one / "scores.json") for one in (swept.run(2), alone.run(1)))
    assert (trial["epochs"], trial["probes"]) == (run["epochs"], run["probes"])
    assert trial["probes"][0]["trained"] != trial["probes"][0]["base"]  # the modules that answer have the adapter


def test_the_base_is_loaded_once_for_all_trials_of_a_process(swept: Series) -> None:
    loads, in_memory, _left = document(swept.folder / "loads.json")
    assert loads == 1 and in_memory == [False, True, True]


def test_nothing_of_a_trial_stays_in_memory(swept: Series) -> None:
    """The three that the second process trained, and after the sweep, when answers are asked for, the base."""
    _loads, _in_memory, left = document(swept.folder / "loads.json")
    assert left == [0, 0, 0, 0]


def test_held_out_loss_chooses_and_the_best_epoch_counts(swept: Series) -> None:
    found = document(swept.folder / "sweep.json")
    lowest = [
        min(line["eval_loss"] for line in history(swept.run(number)) if "eval_loss" in line) for number in (1, 2, 3)
    ]
    assert [one["loss"] for one in found["trials"]] == [*lowest, None]
    assert found["chosen"]["trial"] == lowest.index(min(lowest)) + 1
    used = store.current(swept.folder / "runs", "persona")
    assert used is not None and used.id == found["chosen"]["run"]
    assert "+learning_rate = 2e-2" in found["diff"]
    assert [one["trial"] for one in found["finalists"]] == [2, 1]
    assert all(one["probes"][0]["trained"] for one in found["finalists"])


def test_a_pruned_trial_is_said_and_stays_a_stopped_run(swept: Series) -> None:
    assert "trial 4: stopped, as its held-out loss is behind" in (swept.folder / "sweep.err").read_text(
        encoding="utf-8"
    )
    run = swept.run(4)
    assert not (run / "adapter").exists()
    assert [line["step"] for line in history(run) if "eval_loss" in line] == [3, 6]
    assert (run / "checkpoints" / "checkpoint-6").is_dir()


def test_a_finished_sweep_trains_nothing_and_shows_it_again(swept: Series, tmp_path: Path) -> None:
    series = copied(swept, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (series.folder / "runs").glob("*/*/history.jsonl")}
    again = json.loads(series(*SWEEP, "--json").stdout)
    first = document(swept.folder / "sweep.json")
    assert [again[key] for key in ("trials", "chosen", "diff")] == [first[key] for key in ("trials", "chosen", "diff")]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(series.runs()) == 4
    page = (series.folder / again["report"]).read_text(encoding="utf-8")
    assert all(f"persona/00{number}-fresh" in page for number in (1, 2, 3, 4))


def test_what_was_trained_before_is_not_trained_again(swept: Series, tmp_path: Path) -> None:
    """One setting after the other, and a value that a run of the series has already: only the new one is trained."""
    series = copied(swept, tmp_path / "copy")
    done = series("sweep", "persona.toml", "--vary", "train.learning_rate=4e-3,2e-2", "--vary", "lora.r=8,2", *COMMON)
    assert series.names() == ["001-fresh", "002-fresh", "003-fresh", "004-fresh", "005-fresh"]
    values = document(series.run(5) / "plan.json")["settings"]
    trained = {one["key"]: one["value"] for one in values}
    assert (trained["train.learning_rate"], trained["lora.r"], trained["lora.alpha"]) == (2e-2, 2, 4)
    assert "trial 4: lora.r = 2" in done.stderr
    assert "the recipe would read" in done.stdout


# Refused before anything is trained ---------------------------------------------------------------------------------


def refusal(series: Series, *arguments: str, code: int = 2) -> dict[str, Any]:
    """The one finding of a sweep that is refused; nothing was written."""
    done = series("sweep", "persona.toml", "--json", *arguments, code=code)
    (finding,) = json.loads(done.stdout)["findings"]
    assert not series.runs()
    found: dict[str, Any] = finding
    return found


def test_without_held_out_samples_nothing_can_choose(tmp_path: Path) -> None:
    found = refusal(Series.new(tmp_path / "new"), "--vary", "train.learning_rate=1e-3,2e-3")
    assert found["code"] == "nothing-held-out"
    assert "hold out 33% of the samples" in found["fix"]
    assert "--set data.val=0.33 --vary train.learning_rate=1e-3,2e-3`" in found["fix"]


def test_one_held_out_sample_can_t_choose_and_the_hint_holds_out_more(tmp_path: Path) -> None:
    series = Series.new(tmp_path / "new")
    found = refusal(series, "--vary", "train.learning_rate=1e-3,2e-3", "--set", "data.val=0.1")
    assert found["what"] == "one held-out sample can't choose"
    assert "--set data.val=0.33 " in found["fix"] and found["fix"].count("data.val=") == 1
    plan = json.loads(series("plan", "persona.toml", "--set", "data.val=0.33", "--json").stdout)
    assert plan["val_samples"] == 3


def test_every_listed_value_is_planned_first(tmp_path: Path) -> None:
    found = refusal(Series.new(tmp_path / "new"), "--vary", "train.epochs=2,40", "--set", "data.val=val.jsonl")
    assert found["code"] == "too-many-epochs"
    assert found["fix"].endswith("--vary train.epochs=2,40`")
    assert "sweep persona.toml --allow-overfit" in found["fix"]


def test_a_continuation_names_its_parent(tmp_path: Path) -> None:
    found = refusal(
        Series.new(tmp_path / "new"), "--vary", "lora.r=4,8", "--continue", "retune", "--set", "data.val=val.jsonl"
    )
    assert found["code"] == "parent-not-named"
    assert "strategy=fresh" in found["fix"]


def test_a_series_that_is_swept_elsewhere(tmp_path: Path) -> None:
    series = Series.new(tmp_path / "new")
    folder = series.folder / "runs" / "persona" / "sweeps"
    folder.mkdir(parents=True)
    with patch.object(files, "RUN_LOCK_SECONDS", 0.0), files.locked(folder / ".lock", "held"):
        found = refusal(series, "--vary", "lora.r=4,8", "--set", "data.val=val.jsonl", code=1)
    assert found["code"] == "run-is-locked"
    assert "--storage URL" in found["what"]


def test_a_storage_that_cannot_be_used_ends_the_sweep(tmp_path: Path) -> None:
    found = refusal(
        Series.new(tmp_path / "new"), "--vary", "lora.r=4,8", "--set", "data.val=val.jsonl",
        "--storage", "postgresql+psycopg://me:secret@localhost/x", code=1,
    )  # fmt: skip
    assert found["code"] == "storage-unusable"
    assert "secret" not in str(found)
    assert study.HEARTBEAT < study.GRACE


def test_a_sweep_is_refused_below_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = refusal(Series.new(tmp_path / "new"), "--vary", "lora.r=4,8", "--set", "data.val=val.jsonl")
    assert found["code"] == "several-processes"
