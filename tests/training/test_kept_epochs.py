"""The adapter after each epoch: bit for bit that of the step, whatever happens, and without any trace in the training."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import one_layer
import pytest
from conftest import Shared
from series import (
    SYSTEM,
    Series,
    adapter,
    assert_same_run,
    checkpoints,
    contents,
    copied,
    document,
    history,
    log_call,
    start_child,
    trained_parent,
    words,
)

from fasttune import files
from fasttune.runs import checkpoints as whole_checkpoints
from fasttune.runs import documents, epochs
from fasttune.runs.store import Run
from fasttune.training import generation, kept_epochs
from fasttune.training import model as models

QUESTIONS = ("你是谁？", "Who are you?")
# 7 steps end within an epoch of 3; dropout draws random numbers; every checkpoint stays, to be compared with.
STEPS = (
    "train.max_steps=7", "train.save_steps=1", "train.save_total_limit=99", "lora.dropout=0.1", "data.val=val.jsonl",
    'probe.questions=["你是谁？", "Who are you?"]', "probe.max_new_tokens=24",
)  # fmt: skip


def train(folder: Path) -> None:
    Series.new(folder).train(*STEPS)


@pytest.fixture(scope="session")
def straight(shared: Shared) -> Path:
    """The uninterrupted run of STEPS."""
    return Series(shared("epochs", train)).run(1)


def run_at(folder: Path) -> Run:
    return Run(folder.parent.parent, f"{folder.parent.name}/{folder.name}")


def test_each_epoch_is_the_adapter_of_its_step(straight: Path) -> None:
    kept = epochs.kept_epochs(run_at(straight))
    assert [(one.folder.name, one.epoch, one.step) for one in kept] == [
        ("epoch-1", 1.0, 3), ("epoch-2", 2.0, 6), ("epoch-2.333", 2.333, 7),
    ]  # fmt: skip
    for one in kept:
        checkpoint = straight / "checkpoints" / f"checkpoint-{one.step}"
        for name in whole_checkpoints.ADAPTER_FILES:
            assert (one.folder / name).read_bytes() == (checkpoint / name).read_bytes(), name
        whole_checkpoints.require_whole_adapter(one.folder)
    assert (kept[-1].folder / "adapter_model.safetensors").read_bytes() == adapter(straight)


def test_each_epoch_has_its_held_out_loss_and_its_answers(straight: Path) -> None:
    """The answers are those of plain transformers and PEFT, which load the folder."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = one_layer.FOLDER
    tokenizer = AutoTokenizer.from_pretrained(base)
    losses = {line["step"]: line["eval_loss"] for line in history(straight) if "eval_loss" in line}
    for one in epochs.kept_epochs(run_at(straight)):
        assert one.eval_loss == losses[one.step]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), one.folder)
        model.eval()
        for question, answer in zip(QUESTIONS, one.answers, strict=True):
            chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                said = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)
            assert answer == tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
    scores = documents.read_scores(run_at(straight))
    assert [one.questions for one in scores.epochs] == [QUESTIONS] * 3
    assert [probe.trained for probe in scores.probes] == list(scores.epochs[-1].answers)  # not asked a second time


def test_keeping_epochs_leaves_no_trace_in_the_training(straight: Path, tmp_path: Path) -> None:
    """Weights, optimizer and random state are those of a run that keeps none and answers nothing."""
    series = Series.new(tmp_path)
    series.train(*STEPS[:-2], "train.keep_epochs=false")
    other = series.run(1)
    assert not (other / "epochs").exists() and not documents.read_scores(run_at(other)).epochs
    assert adapter(other) == adapter(straight)
    for name in checkpoints(other):
        for file in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            kept = straight / "checkpoints" / name / file
            assert (other / "checkpoints" / name / file).read_bytes() == kept.read_bytes(), (name, file)


# Kills --------------------------------------------------------------------------------------------------------------


def die(*_arguments: Any, **_more: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_folder(trainer: Any, folder: Path) -> None:
    with files.whole_folder(folder) as partial:
        models.save_adapter(trainer.model, partial)
        die()


def after_second(keep_scores: Callable[..., None]) -> Callable[..., None]:
    """`keep_scores` that ends the process once answers are written."""

    def keep(run: Run, scores: Any) -> None:
        keep_scores(run, scores)
        if scores.answers:
            die()

    return keep


MOMENTS = {
    "before the folder": (kept_epochs, "write_adapter", die),
    "in the folder": (kept_epochs, "write_adapter", half_a_folder),
    "before its scores": (epochs, "keep_scores", die),
    "before its answers": (kept_epochs.EpochCallback, "answer", die),
    "after its answers": (epochs, "keep_scores", after_second(epochs.keep_scores)),
}


def killed_call(folder: Path, moment: str) -> None:
    """What a child process does: the training, which ends at a moment of the first epoch that is not kept yet."""
    with patch.object(*MOMENTS[moment]):
        log_call(folder, words(STEPS, ""))


def test_killed_at_every_moment_of_an_epoch(straight: Path, tmp_path: Path) -> None:
    """E2 and E6: each time the same command resumes, and in the end every byte of every epoch is there."""
    series = Series.new(tmp_path)
    for moment in MOMENTS:
        child = start_child(killed_call, series.folder, moment)
        child.join(300)
        assert child.exitcode == -signal.SIGKILL, (moment, series.log)
        for one in epochs.kept_epochs(run_at(series.run(1))):
            whole_checkpoints.require_whole_adapter(one.folder)
    asked = []

    def generate(*arguments: Any) -> list[str]:
        asked.append(1)
        return generation_batch(*arguments)

    generation_batch = generation.generate_batch
    with patch.object(generation, "generate_batch", generate):
        series.train(*STEPS)
    assert len(asked) == 2  # epoch 1 has its answers already
    assert_same_run(series.run(1), straight)
    assert contents(series.run(1) / "epochs") == contents(straight / "epochs")
    assert document(series.run(1) / "scores.json") == document(straight / "scores.json")


def test_killed_before_the_adapter_of_the_run(straight: Path, tmp_path: Path) -> None:
    """The last checkpoint was the run's last, and the epoch that it ends was not kept."""
    series = copied(Series(straight.parent.parent.parent), tmp_path / "copy")
    run = series.run(1)
    for name in ("adapter", "epochs/epoch-2.333"):
        files.remove_folder(run / name)
    (run / "trainer_state.json").unlink()
    series.train(*STEPS)
    assert_same_run(run, straight)
    assert contents(run / "epochs") == contents(straight / "epochs")


# What can go wrong --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_message_and_the_run_resumes(straight: Path, tmp_path: Path) -> None:
    series, full = Series.new(tmp_path), OSError(errno.ENOSPC, "No space left on device")
    with patch.object(kept_epochs, "write_adapter", side_effect=full):
        done = series.train(*STEPS, code=1)
    assert done.stderr.count("error:") == 1 and "a checkpoint needs" in done.stderr and "Traceback" not in done.stderr
    series.train(*STEPS)
    assert contents(series.run(1) / "epochs") == contents(straight / "epochs")


def test_out_of_memory_in_the_answers_ends_no_training(straight: Path, tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    with patch.object(generation, "generate_batch", side_effect=MemoryError):
        done = series.train(*STEPS)
    assert "epoch 1: out of memory while the probe questions were answered" in done.stderr
    assert adapter(series.run(1)) == adapter(straight)
    assert [one.answers for one in epochs.kept_epochs(run_at(series.run(1)))] == [(), (), ()]


def test_ctrl_c_while_the_questions_are_answered_stops_the_answers(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    original = kept_epochs.EpochCallback.choose

    def choose(self: Any, prompt: int, logits: Any) -> int:
        self.trainer.interrupted = True
        return original(self, prompt, logits)

    with patch.object(kept_epochs.EpochCallback, "choose", choose):
        done = series.train(*STEPS, code=130)
    assert "stopped at step 4" in done.stderr
    (kept,) = epochs.kept_epochs(run_at(series.run(1)))
    assert kept.epoch == 1 and kept.answers == ()


def test_without_held_out_samples_only_a_recipe_that_says_so_keeps_epochs(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    series.train("train.max_steps=3")
    assert not (series.run(1) / "epochs").exists()
    series.train("train.max_steps=3", "train.keep_epochs=true", flags="--on-existing new")
    (kept,) = epochs.kept_epochs(run_at(series.run(2)))
    assert (kept.epoch, kept.eval_loss, kept.answers) == (1.0, None, ())


def test_a_continuation_keeps_its_own_epochs_by_all_that_were_trained(shared: Shared, tmp_path: Path) -> None:
    series = copied(trained_parent(shared), tmp_path / "copy")
    before = contents(series.run(1))
    series.train("continue.add_epochs=1.5", flags="--continue incremental")
    kept = epochs.kept_epochs(run_at(series.run(2)))
    assert [(one.folder.name, one.step) for one in kept] == [("epoch-3", 9), ("epoch-3.667", 11)]
    assert contents(series.run(1)) == before


def test_continuing_from_a_picked_epoch_trains_what_its_run_trained(shared: Shared, tmp_path: Path) -> None:
    """By as many epochs as were left behind: bit for bit the adapter that was left."""
    series = copied(trained_parent(shared), tmp_path / "copy")
    parent = run_at(series.run(1))
    epochs.pick(parent, epochs.find_epoch(parent, "1"))
    done = series.train("continue.add_epochs=1", flags="--continue incremental")
    assert "begins with epoch 1 of persona/001-fresh" in done.stderr
    assert adapter(series.run(2)) == adapter(series.run(1))
    series.train(
        "continue.start=adapter", "train.max_steps=1", "continue.parent=persona/001-fresh", flags="--continue custom"
    )
    (start,) = documents.read_provenance(run_at(series.run(3))).continuations
    assert start.from_.endswith("001-fresh/epochs/epoch-1") and start.loss == start.loss_when_saved
