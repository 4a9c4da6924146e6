"""Several processes train what one does (E4): through torchrun and the command line, with gloo on CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli
from series import Series, checkpoints, document, history, largest_difference, losses, untimed

SETTINGS = ("train.max_steps=7", "train.save_steps=3", "data.val=val.jsonl", "train.eval_steps=2")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(series: Series, *settings: str, program: tuple[str, ...] = ("-m", "fasttune")) -> subprocess.Popen[str]:
    """`torchrun --nproc_per_node 2 -m fasttune run persona.toml --set …` in the series' folder."""
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


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    one, two = Series.new(tmp_path / "one"), Series.new(tmp_path / "two")
    one.train(*SETTINGS)
    output = train_together(two, *SETTINGS)
    assert 0 < largest_difference(one.run(1), two.run(1)) < 2e-4
    assert losses(two.run(1)) == pytest.approx(losses(one.run(1)), rel=1e-5)
    for line, other in zip(untimed(history(one.run(1))), untimed(history(two.run(1))), strict=True):
        line.pop("computed_tokens", None), other.pop("computed_tokens", None)  # a prefix may be computed in both
        assert other == pytest.approx(line, rel=1e-4)
    assert two.names() == one.names()
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


LITTLE_MEMORY = """
import torch
from fasttune import cli
from fasttune.training import distributed, model

real = model.hidden_states

def hidden_states(peft_model, batch):
    states = real(peft_model, batch)
    if distributed.rank() == 1 and batch.input_ids.shape[1] > 60:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return states

model.hidden_states = hidden_states
cli.main()
"""


def test_memory_runs_out_in_one_of_them(tmp_path: Path) -> None:
    """All plan again: the budget is the same everywhere, and nothing of the attempt counts."""
    one, two = Series.new(tmp_path / "one"), Series.new(tmp_path / "two")
    program = tmp_path / "little.py"
    program.write_text(LITTLE_MEMORY, encoding="utf-8")
    settings = ("train.max_steps=3", "train.gradient_checkpointing=false")
    one.train(*settings)
    output = train_together(two, *settings, program=(str(program),))
    assert output.count("the step is planned again with at most") == 1, output
    assert document(two.run(1) / "provenance.json")["tokens_per_row"] <= 60
    assert 0 < largest_difference(one.run(1), two.run(1)) < 2e-4


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    output = train_together(series, "train.learning_rate=-1", code=1)
    assert output.count("error: persona.toml") + output.count("error: --set") + output.count("error: train.") == 1, (
        output
    )
    assert not (tmp_path / "runs").exists()


def test_processes_that_cannot_meet_are_refused(fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune("run", "recipes/quickstart.toml", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set" in done.stderr
    assert not (tmp_path / "runs").exists()
