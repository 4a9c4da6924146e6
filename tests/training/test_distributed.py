"""Several processes train what one does (E4): through torchrun and the command line, with gloo on CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import one_layer
import pytest
from conftest import Cli
from series import Series, checkpoints, history, imported, largest_difference, losses, untimed

SETTINGS = ("train.max_steps=7", "train.save_steps=3", "data.val=val.jsonl", "train.eval_steps=2")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(series: Series, *settings: str, program: tuple[str, ...] = ("-m", "fasttune")) -> subprocess.Popen[str]:
    """`torchrun --nproc_per_node 2 -m fasttune run persona.toml --set …` in the series' folder."""
    settings = (*settings, f"model.base={one_layer.FOLDER}")  # that of a series in this process
    changes = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [*TORCHRUN, *program, "run", "persona.toml", *changes],
        cwd=series.folder, env={**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def train_together(series: Series, *settings: str, code: int = 0, program: tuple[str, ...] = ("-m", "fasttune")) -> str:
    process = start(series, *settings, program=program)
    output, _nothing = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


@pytest.mark.parametrize("by", ["forks", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does(tmp_path: Path, by: str) -> None:
    """torchrun's own part is the environment that it gives each rank; forks are given the same, and cost no imports."""
    one, two = Series.new(tmp_path / "one"), Series.new(tmp_path / "two")
    one.train(*SETTINGS)
    if by == "forks":
        ranks = two.train_ranks(*SETTINGS)
        assert [rank.exitcode for rank in ranks] == [0, 0], ranks
        output = "".join(rank.log for rank in ranks)
    else:
        output = train_together(two, *SETTINGS)
    assert 0 < largest_difference(one.run(1), two.run(1)) < 2e-4
    assert losses(two.run(1)) == pytest.approx(losses(one.run(1)), rel=1e-5)
    for line, other in zip(untimed(history(one.run(1))), untimed(history(two.run(1))), strict=True):
        line.pop("computed_tokens", None), other.pop("computed_tokens", None)  # a prefix may be computed in both
        assert other == pytest.approx(line, rel=1e-4)
    assert two.names() == one.names()
    for series in (one, two):  # rank 0 alone keeps the epochs
        assert sorted(path.name for path in series.run(1).glob("epochs/*")) == ["epoch-1", "epoch-2", "epoch-2.333"]
    assert output.count("run persona/001-fresh in") == 1  # the other process says nothing
    assert "Traceback" not in output and "Error" not in output


@pytest.mark.slow
def test_a_stopped_run_resumes(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes and torchrun, which sends it again: one checkpoint, then on from there, by one process
    or by two."""
    series, straight = Series.new(tmp_path / "stopped"), Series.new(tmp_path / "straight")
    settings = ("train.epochs=10", "train.save_steps=100")
    straight.train(*settings)
    process = start(series, *settings)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not any(map(history, series.runs())):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output, _nothing = process.communicate(timeout=300)
    assert process.returncode and 'Traceback (most recent call last):\n  File "/tmp' not in output
    run = series.run(1)
    (saved,) = checkpoints(run)
    assert 0 < int(saved.split("-")[1]) < 30, output
    assert f"resuming at step {saved.split('-')[1]}" in train_together(series, *settings)
    assert largest_difference(run, straight.run(1)) < 2e-4
    assert len(losses(run)) == 30


def die_in_the_fifth_step() -> None:
    """For `train_ranks`: rank 1 is killed, as a process is for which there is no memory, where it computes step 5."""
    from fasttune.training.trainer import StepTrainer

    imported()
    computed, steps = StepTrainer.training_step, []

    def training_step(self: StepTrainer, model: Any, inputs: tuple[int, ...], num_items_in_batch: Any = None) -> Any:
        steps.append(1)
        if len(steps) == 5 and not self.is_rank_zero:
            os.kill(os.getpid(), signal.SIGKILL)
        return computed(self, model, inputs, num_items_in_batch)

    StepTrainer.training_step = training_step  # type: ignore[method-assign]


def test_a_rank_that_dies_ends_the_run_with_a_word_and_one_process_goes_on(tmp_path: Path) -> None:
    series, straight = Series.new(tmp_path / "died"), Series.new(tmp_path / "straight")
    straight.train(*SETTINGS)
    first, second = series.train_ranks(*SETTINGS, prepare=die_in_the_fifth_step)
    assert second.exitcode == -signal.SIGKILL and first.exitcode == 1, first.log
    assert "another process of this training has ended" in first.log and "Traceback" not in first.log
    assert "resume from the newest checkpoint: `" in first.log and checkpoints(series.run(1))[-1] == "checkpoint-4"
    assert "resuming at step 4" in series.train(*SETTINGS).stderr
    assert largest_difference(series.run(1), straight.run(1)) < 2e-4 and len(losses(series.run(1))) == 7


def test_torchrun_starts_the_ranks(tmp_path: Path) -> None:
    """A mistake is said by rank 0 alone, which knows that it is rank 0 of two; nothing is trained."""
    series = Series.new(tmp_path)
    output = train_together(series, "train.learning_rate=-1", code=1)
    assert output.count("error: ") == 1 and "learning_rate" in output
    assert not (tmp_path / "runs").exists()


def test_processes_that_cannot_meet_are_refused(fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune("run", "recipes/quickstart.toml", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set" in done.stderr
    assert not (tmp_path / "runs").exists()
