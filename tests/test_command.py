"""Printed command lines are complete: each is typed as it stands and does what its sentence says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Shared
from series import SHORT, Series, checkpoints, short_run, steps, wait

from fasttune import command
from fasttune.command import command_line, run_arguments
from fasttune.planning import examples


def printed(text: str, before: str) -> list[str]:
    """The arguments of the command in backticks that follows some words."""
    found = re.search(re.escape(before) + r"[^`]*`fasttune ([^`]*)`", text)
    assert found, text
    return shlex.split(found[1])


def test_every_flag_of_a_run() -> None:
    words = run_arguments(
        Path("a b.toml"), Path("r"), ["lora.r=4"], strategy="custom", on_existing="new", allow_overfit=True
    )
    assert command_line(words) == (
        "fasttune run 'a b.toml' --runs r --continue custom --on-existing new --allow-overfit --set lora.r=4"
    )


def said_by(*program: str, cwd: Path, path: str = "/usr/bin:/bin") -> str:
    """The command that a call of fasttune names when its verb does not exist, as typed in a folder."""
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*program, "frobnicate"], cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return " ".join(re.findall(r"`([^`]*) --help`", done.stderr))


def test_a_command_is_named_as_it_is_typed_here(tmp_path: Path) -> None:
    """By the shortest path where no environment is active, by its name where PATH has it, else by `python -m`."""
    script = tmp_path / "clone" / ".venv" / "bin" / "fasttune"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nfrom fasttune.cli import main\nmain()\n", encoding="utf-8")
    script.chmod(0o755)
    clone, deep = tmp_path / "clone", tmp_path.joinpath(*"abcdefghijklmnopqrstuvwxyz")
    deep.mkdir(parents=True)
    assert said_by(".venv/bin/fasttune", cwd=clone) == ".venv/bin/fasttune"
    assert said_by(str(script), cwd=clone) == ".venv/bin/fasttune"
    assert said_by("./fasttune", cwd=script.parent) == "./fasttune"
    assert said_by(str(script), cwd=deep) == min(str(script), os.path.relpath(script, deep), key=len)
    assert said_by("fasttune", cwd=clone, path=f"{script.parent}:/usr/bin") == "fasttune"
    other = shutil.copytree(script.parent, tmp_path / "other")
    assert said_by(str(script), cwd=clone, path=f"{other}:/usr/bin") == ".venv/bin/fasttune", "PATH has another one"
    assert said_by(sys.executable, "-m", "fasttune", cwd=clone).endswith("python -m fasttune")


def test_a_command_that_begins_with_cd_starts_from_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "fasttune")])
    monkeypatch.chdir(tmp_path)
    assert examples.command("quickstart", Path("new")) == "cd new && ../bin/fasttune run recipes/quickstart.toml"


@pytest.mark.parametrize(
    ("parent", "start"),
    [
        ("BIN/python BIN/torchrun --nproc_per_node 2 -m fasttune run x.toml", "BIN/torchrun --nproc_per_node 2 -m fasttune"),
        ("BIN/python -m torch.distributed.run --log-dir fasttune -m fasttune run x.toml",
         "BIN/python -m torch.distributed.run --log-dir fasttune -m fasttune"),
        ("BIN/python BIN/accelerate launch --num_processes 2 BIN/fasttune run x.toml",
         "BIN/accelerate launch --num_processes 2 BIN/fasttune"),
        ("/sbin/init", "torchrun --nproc_per_node 2 -m fasttune"),  # the agent has ended
    ],
)  # fmt: skip
def test_a_launcher_is_part_of_the_command(
    parent: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes train: the command that resumes is torchrun's or accelerate's, any other verb is one process."""
    monkeypatch.chdir("/")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(command, "parent_words", lambda: parent.replace("BIN", str(tmp_path)).split())
    start = start.replace("BIN", str(tmp_path)[1:])  # from /, the relative path is the shorter one
    assert command_line(["run", "y.toml"]).replace(str(tmp_path), str(tmp_path)[1:]) == f"{start} run y.toml"
    assert command_line(["chat", "mine"]) == "fasttune chat mine"


@pytest.mark.parametrize("flags", ["--on-existing new", "--overwrite persona/001", "--runs elsewhere"])
def test_the_command_after_a_stop_resumes(shared: Shared, tmp_path: Path, flags: str) -> None:
    """Also after a run that was begun beside others or in place of one: not step 1 again."""
    series = Series(shutil.copytree(short_run(shared).parents[2], tmp_path / "copy"))
    root = series.folder / ("elsewhere" if "elsewhere" in flags else "runs")
    before = sorted(path.name for path in root.glob("persona/[0-9]*"))
    (series.folder / "log").touch()
    child = series.start(*SHORT, flags=flags, hold_at=1)
    assert wait(lambda: "step 1/" in series.log, child)
    assert series.send(child, signal.SIGINT) == 130, series.log
    command = printed(series.log, "to resume there:")
    assert command[-4:] == ["--set", SHORT[0], "--set", SHORT[1]] and "--overwrite" not in command
    done = series(*command)
    assert "resuming at step" in done.stderr
    newest = sorted(root.glob("persona/[0-9]*"))[-1]
    assert steps(newest) == [1, 2, 3, 4, 5, 6] and checkpoints(newest)[-1] == "checkpoint-6"
    assert len(list(root.glob("persona/[0-9]*"))) == len(before) + ("overwrite" not in flags)


def test_what_is_proposed_beside_a_finished_run(shared: Shared, tmp_path: Path) -> None:
    """`plan` and the refusal of `run` print commands that train, with the overrides of the one that was typed."""
    series = Series(shutil.copytree(short_run(shared).parents[2], tmp_path / "copy"))
    planned = series("plan", "persona.toml", "--set", "train.max_steps=1", "--set", "lora.r=4")
    command = printed(planned.stdout, "train with:")
    assert command == words("run persona.toml --on-existing new --set train.max_steps=1 --set lora.r=4")
    refused = series("run", "persona.toml", "--set", "train.max_steps=1", "--set", "lora.r=4", code=2)
    assert printed(refused.stderr, "hint:") == [*command[:-4], *words("--set lora.r=4 --set train.max_steps=1")]
    assert "talk to it" not in series(*command).stdout  # it made no GGUF file
    assert series.names() == ["001-fresh", "002-fresh"]


def words(line: str) -> list[str]:
    return line.split()


def test_too_many_epochs_are_refused_by_plan_as_by_run(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    settings = ("--set", "train.epochs=12", "--set", "train.batch_size=10")
    refused = [series(verb, "persona.toml", *settings, code=2).stderr for verb in ("plan", "run")]
    assert refused[0] == refused[1] and "12.0 epochs in total" in refused[0]
    command = printed(refused[0], "all the same:")
    assert "--allow-overfit" in command
    assert "12.00 epochs" in series("plan", *command[1:]).stdout


def test_a_password_in_an_address_is_not_kept() -> None:
    assert command.without_password("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    assert command.without_password("--set") == "--set"
    assert command.without_password("http://localhost:8321/?a=b@c") == "http://localhost:8321/?a=b@c"
