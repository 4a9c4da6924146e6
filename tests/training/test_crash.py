"""Nothing is ever lost: kills at any moment, damaged checkpoints, two processes at once. Whatever happens, the
same command goes on, and what comes out is bit for bit the uninterrupted run."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import REPOSITORY, Shared
from series import (
    SHORT,
    Series,
    adapter,
    assert_same_run,
    call,
    checkpoints,
    contents,
    copied,
    document,
    history,
    send,
    short_run,
    steps,
    untimed,
    wait,
    words,
)

from fasttune.runs import checkpoints as whole_checkpoints
from fasttune.runs import store
from fasttune.runs.store import Run
from fasttune.training import progress as live

# Dropout draws random numbers, a line every 3 steps is summed up across a kill, and 14 steps end within an epoch of 3.
STEPS = (
    "train.max_steps=14", "train.save_steps=1", "train.logging_steps=3", "lora.dropout=0.1", "data.val=val.jsonl",
    "train.eval_steps=4",
)  # fmt: skip


@pytest.fixture(scope="session")
def straight(shared: Shared) -> Path:
    """The uninterrupted run of STEPS."""
    return Series(shared("straight", lambda folder: Series.new(folder).train(*STEPS))).run(1)


@pytest.fixture(scope="session")
def short(shared: Shared) -> Path:
    """The uninterrupted run of SHORT."""
    return short_run(shared)


@pytest.fixture
def stopped(shared: Shared, tmp_path: Path) -> Series:
    """A copy of a run of SHORT that was killed after step 5: checkpoints 2 and 4."""

    def make(folder: Path) -> None:
        run = Series.new(folder).stop(*SHORT, lines=5, number=signal.SIGKILL)
        assert checkpoints(run)[:2] == ["checkpoint-2", "checkpoint-4"]

    return copied(Series(shared("stopped", make)), tmp_path / "copy")


@pytest.fixture
def choose() -> random.Random:
    """Random moments. A failed test shows their seed; FASTTUNE_TEST_SEED repeats them (as far as a kill's moment can be
    repeated)."""
    given = os.environ.get("FASTTUNE_TEST_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"FASTTUNE_TEST_SEED={seed}")
    return random.Random(seed)


# Kills --------------------------------------------------------------------------------------------------------------


def saving(series: Series) -> bool:
    """Whether a checkpoint is being written."""
    return any(series.folder.glob("runs/persona/*/checkpoints/*.partial"))


def progress(series: Series) -> int:
    return max((len(history(run)) for run in series.runs()), default=0)


def saved(series: Series) -> int:
    """The step of the newest checkpoint."""
    return max((int(name.split("-")[1]) for run in series.runs() for name in checkpoints(run)), default=0)


def is_at(series: Series, step: int, *, inside: bool = False) -> Callable[[], bool]:
    """Tells whether a checkpoint of this step is saved; `inside`: and one is being written."""
    return lambda: saved(series) >= step and saving(series) >= inside


def kill(series: Series, reached: Callable[[], bool], delay: float, hold_at: int | None = None) -> bool:
    """Start or resume the training and kill it some time after something was reached; False where it ended before."""
    child = series.start(*STEPS, hold_at=hold_at)
    if wait(reached, child, every=0.002):
        time.sleep(delay)
    return send(child, signal.SIGKILL) == -signal.SIGKILL


def assert_nothing_is_half_there(series: Series) -> None:
    """What a kill left counts as nothing: every numbered folder is a run, every checkpoint is whole."""
    for run in store.list_runs(series.folder / "runs", "persona"):
        assert run.provenance.is_file() and run.plan.is_file() and run.recipe.is_file()
        assert [
            flaw
            for checkpoint in whole_checkpoints.list_checkpoints(run)
            if (flaw := whole_checkpoints.find_damage(checkpoint))
        ] == []


def test_killed_at_random_moments(straight: Path, tmp_path: Path, choose: random.Random) -> None:
    """E2 and E6: four kills, two of them while a checkpoint is being written, where this process sees one in time."""
    series = Series.new(tmp_path)
    for inside in (False, True, False, True):
        steps = choose.choice((1, 2))  # and at most one more, so that none of the four reaches the end
        at = saved(series) + steps
        reached, last = is_at(series, at, inside=inside), is_at(series, at + 1)
        killed = kill(series, lambda: reached() or last(), choose.uniform(0, 0.03), hold_at=steps + 1)  # noqa: B023
        assert killed and not (series.run(1) / "adapter").exists()
        assert_nothing_is_half_there(series)
    series.train(*STEPS)
    assert_same_run(series.run(1), straight)
    assert series.names() == ["001-fresh"]
    assert series.log.count("resuming at step") >= 2


def test_stopped_between_two_logged_lines(straight: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves no line of its own, and the next one counts the steps before it."""
    series = Series.new(tmp_path)
    for at in (1, 4, 7):
        child = series.start(*STEPS, hold_at=at - saved(series))
        assert wait(is_at(series, at), child)
        assert series.send(child, signal.SIGINT) == 130
    series.train(*STEPS)
    assert_same_run(series.run(1), straight)


def test_ctrl_c_in_the_middle_of_a_print(tmp_path: Path) -> None:
    """What the signal's handler says must not go through the file that is being written at that moment."""
    series = Series.new(tmp_path)

    class Interrupting(io.StringIO):
        """A terminal during whose first line of a step Ctrl-C is pressed; like a real file, it refuses a second writer."""

        busy = False

        def write(self, text: str) -> int:
            assert not self.busy, "reentrant call"
            self.busy = True
            if "step 2/" in text:
                signal.raise_signal(signal.SIGINT)
            self.busy = False
            return super().write(text)

    with patch.object(live, "PLAIN_LINE_EVERY", 0.0), redirect_stderr(Interrupting()) as terminal:
        assert call(series.folder, words(SHORT, "")) == 130
    assert "stopped at step 3" in terminal.getvalue() and "step 4/" not in terminal.getvalue()
    assert checkpoints(series.run(1))[-1] == "checkpoint-3"


@pytest.mark.slow
def test_killed_at_many_random_moments(straight: Path, tmp_path: Path, choose: random.Random) -> None:
    """At least 30 kills: at any time from the start to the last file, at random steps, and inside checkpoint writing."""
    kills, inside, number = 0, 0, 0
    while kills < 30 or inside < 10:
        series, finished = Series.new(tmp_path / str(number)), False
        number += 1
        while not finished:
            way, at = choose.choice(("any time", "step", "saving", "saving")), saved(series) + choose.randrange(3)
            if way == "any time":
                killed = kill(series, lambda: True, choose.uniform(0, 3))
            else:
                killed = kill(series, is_at(series, at, inside=way == "saving"), choose.uniform(0, 0.04))
            kills, inside, finished = kills + killed, inside + (killed and saving(series)), not killed
            assert_nothing_is_half_there(series)
        assert_same_run(series.run(1), straight)
        assert series.names() == ["001-fresh"]
    print(f"{kills} kills, {inside} left a half-written checkpoint, {number} runs")


@pytest.mark.slow
def test_a_process_of_its_own_is_killed_at_random_moments(
    straight: Path, tmp_path: Path, choose: random.Random
) -> None:
    """The same with `python -m fasttune`, imports and all."""
    series = Series.new(tmp_path)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "fasttune", *words(STEPS, "")]
    for _attempt in range(8):
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL)
        at, deadline = progress(series) + choose.randrange(4), time.monotonic() + 120
        while process.poll() is None and progress(series) < at and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.1))
        process.kill()
        process.wait()
        assert_nothing_is_half_there(series)
    subprocess.run(command, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL, check=False)
    assert_same_run(series.run(1), straight)


def after_its_last_step(finished: Path, folder: Path) -> Series:
    """The series of a finished run as it is when its process dies between the last checkpoint and the adapter."""
    series = Series(shutil.copytree(finished.parents[2], folder))
    shutil.rmtree(series.run(1) / "adapter")
    for name in ("trainer_state.json", "scores.json", "../current"):
        (series.run(1) / name).unlink()
    return series


@pytest.mark.parametrize(
    "settings",
    [
        ("train.max_steps=4",),
        pytest.param(("train.max_steps=3",), marks=pytest.mark.slow),
        ("train.max_steps=40", "train.until.loss=4.9"),
        ("train.max_steps=40", "train.early_stopping_patience=1", "data.val=val.jsonl", "train.learning_rate=0.05"),
    ],
    ids=["within an epoch", "at an epoch's end", "until", "early stopping"],
)
def test_killed_after_the_last_step(tmp_path: Path, settings: tuple[str, ...]) -> None:
    """The resumed run has nothing to train: it writes its adapter, and no step more."""
    series = Series.new(tmp_path / "straight")
    series.train(*settings, flags="--allow-overfit")
    assert steps(series.run(1))[-1] < 40
    killed = after_its_last_step(series.run(1), tmp_path / "killed")
    killed.train(*settings, flags="--allow-overfit")
    assert_same_run(killed.run(1), series.run(1))


def test_killed_before_its_files_were_made(short: Path, tmp_path: Path) -> None:
    """Trained, with an adapter: nothing is trained again, and the run becomes the one in use."""
    series = Series(shutil.copytree(short.parents[2], tmp_path / "copy"))
    (series.run(1) / "scores.json").write_text('{"probes": []}')
    (series.run(1).parent / "current").unlink()
    before = contents(series.run(1) / "adapter")
    done = series.train(*SHORT)
    assert "persona/001-fresh: training is complete; exporting" in done.stderr
    assert contents(series.run(1) / "adapter") == before and series.names() == ["001-fresh"]
    assert (series.run(1).parent / "current").read_text() == "persona/001-fresh\n"


def test_killed_while_its_folder_was_made(short: Path, tmp_path: Path) -> None:
    """A folder without its name is no run; the next start takes its number and removes it."""
    series = Series.new(tmp_path)
    half = series.folder / "runs" / "persona" / "001-retune.partial"
    half.mkdir(parents=True)
    (half / "recipe.toml").write_text("half")
    assert store.list_runs(series.folder / "runs", "persona") == []
    series.train(*SHORT)
    assert_same_run(series.run(1), short)
    assert series.names() == ["001-fresh"]


# Damage -------------------------------------------------------------------------------------------------------------

FILES = [
    "adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.pt", "proof.json",
    "rng_state.pth", "scheduler.pt", "trainer_state.json", "window.json",
]  # fmt: skip


def flip(path: Path) -> None:
    found = bytearray(path.read_bytes())
    found[len(found) // 2] ^= 0x10
    path.write_bytes(found)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARMS: dict[str, Callable[[Path], None]] = {
    "flipped": flip, "truncated": truncate, "empty": empty, "missing": Path.unlink,
}  # fmt: skip


def flaw(name: str, harm: str) -> str:
    """What is said of a file that was harmed."""
    if name == "manifest.json":
        return "manifest.json is missing or unreadable" if harm != "flipped" else ""
    return f"{name} is missing" if harm == "missing" else f"{name}: checksum mismatch"


def test_the_list_of_files_is_whole(stopped: Series) -> None:
    assert sorted(path.name for path in (stopped.run(1) / "checkpoints" / "checkpoint-4").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen(stopped: Series, name: str, harm: str) -> None:
    """Any file harmed in any way: the one before is chosen, and the flaw named."""
    newest = stopped.run(1) / "checkpoints" / checkpoints(stopped.run(1))[-1]
    older = newest.with_name(checkpoints(stopped.run(1))[-2])
    HARMS[harm](newest / name)
    chosen, flaws = whole_checkpoints.newest_whole_checkpoint(Run(stopped.folder / "runs", "persona/001-fresh"))
    assert chosen == older
    assert len(flaws) == 1 and f"{newest} is damaged" in flaws[0] and flaw(name, harm) in flaws[0]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        pytest.param(
            name, harm, marks=[] if name in ("manifest.json", "optimizer.pt", "proof.json") else pytest.mark.slow
        )
        for name, harm in zip(FILES, list(HARMS) * 3, strict=False)
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(stopped: Series, short: Path, name: str, harm: str) -> None:
    newest = stopped.run(1) / "checkpoints" / checkpoints(stopped.run(1))[-1]
    HARMS[harm](newest / name)
    done = stopped.train(*SHORT)
    assert f"{newest.name} is damaged and is not used" in done.stderr and flaw(name, harm) in done.stderr
    assert "checkpoint-2 is used instead" in done.stderr
    assert "resuming at step 2" in done.stderr
    assert_same_run(stopped.run(1), short)


def test_with_no_whole_checkpoint_the_run_begins_again(stopped: Series, short: Path) -> None:
    for name in checkpoints(stopped.run(1)):
        truncate(stopped.run(1) / "checkpoints" / name / "optimizer.pt")
    done = stopped.train(*SHORT)
    assert done.stderr.count("optimizer.pt: checksum mismatch") == len(checkpoints(stopped.run(1)))
    assert "no complete checkpoint is left" in done.stderr and "resuming at" not in done.stderr
    assert_same_run(stopped.run(1), short)
    assert "resuming at step" not in done.stderr


def test_a_renamed_checkpoint_is_not_used(stopped: Series) -> None:
    newest = stopped.run(1) / "checkpoints" / checkpoints(stopped.run(1))[-1]
    newest.rename(newest.with_name("checkpoint-5"))
    assert (
        whole_checkpoints.find_damage(newest.with_name("checkpoint-5")) == f"it holds step {newest.name.split('-')[1]}"
    )


def test_other_folders_are_no_checkpoints(stopped: Series, short: Path) -> None:
    """Neither a copy that somebody made nor one that was being written when the process died."""
    folder = stopped.run(1) / "checkpoints"
    newest = checkpoints(stopped.run(1))[-1]
    shutil.copytree(folder / newest, folder / "checkpoint-9-copy")
    shutil.copytree(folder / newest, folder / "checkpoint-9.partial")
    done = stopped.train(*SHORT)
    assert f"resuming at step {newest.split('-')[1]}" in done.stderr
    shutil.rmtree(folder / "checkpoint-9-copy")
    assert_same_run(stopped.run(1), short)


@pytest.mark.parametrize("harmed", [1, 2])
def test_an_incremental_run_from_a_parent_with_damage(short: Path, tmp_path: Path, harmed: int) -> None:
    """From the newest whole checkpoint, up to the same total; with none left, refused with what else can be done."""
    series = Series(shutil.copytree(short.parents[2], tmp_path / "copy"))
    for name in checkpoints(series.run(1))[-harmed:]:
        flip(series.run(1) / "checkpoints" / name / "optimizer.pt")
    more = ("continue.add_epochs=1", "train.save_steps=2")
    if harmed == 2:
        done = series.train(*more, flags="--continue incremental", code=2)
        assert "persona/001-fresh has no complete checkpoint left" in done.stderr and 'start = "adapter"' in done.stderr
        assert series.names() == ["001-fresh"]
        return
    done = series.train(*more, flags="--continue incremental")
    assert "checkpoint-6 is damaged and is not used" in done.stderr and "checkpoint-4 is used instead" in done.stderr
    assert steps(series.run(2)) == [5, 6, 7, 8, 9]
    plan = document(series.run(2) / "plan.json")
    assert (plan["start_step"], plan["total_steps"]) == (4, 9)


# Two processes ------------------------------------------------------------------------------------------------------


def test_two_processes_never_train_into_one_folder(straight: Path, tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    child = series.start(*STEPS, hold_at=1)  # alive, and in no hurry
    assert wait(lambda: progress(series) >= 1, child)
    try:
        for flags in ("", "--on-existing resume", "--continue incremental", "--overwrite persona/001"):
            done = series.train(*STEPS, flags=flags, code=1 if "overwrite" in flags else 2)
            assert "another process is training persona/001-fresh" in done.stderr, flags
        assert series.names() == ["001-fresh"]
    finally:  # a held child would keep pytest waiting for ever
        code = send(child, signal.SIGKILL)
    assert code == -signal.SIGKILL  # and a dead process keeps no lock
    series.train(*STEPS)
    assert_same_run(series.run(1), straight)


def test_two_that_resume_at_once(stopped: Series, short: Path) -> None:
    """One trains, the other is told so; whichever is first."""
    children = [stopped.start(*SHORT) for _number in range(2)]
    codes = [ended(child) for child in children]
    assert codes.count(0) == 1 and None not in codes, stopped.log
    assert_same_run(stopped.run(1), short)
    assert stopped.names() == ["001-fresh"]


def test_two_that_start_at_once_get_two_folders(short: Path, tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    children = [series.start(*SHORT, flags="--on-existing new") for _number in range(2)]
    assert [ended(child) for child in children] == [0, 0], series.log
    assert series.names() == ["001-fresh", "002-fresh"]
    for number in (1, 2):
        assert adapter(series.run(number)) == adapter(short)
        assert untimed(history(series.run(number))) == untimed(history(short))


def ended(child: multiprocessing.process.BaseProcess) -> int | None:
    """The exit code of a child that is left alone."""
    child.join(300)
    return child.exitcode
