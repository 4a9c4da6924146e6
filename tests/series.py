"""A series on one layer of the built-in model that takes half a second a run, called through the command line in this
process or in a child that can be killed."""

from __future__ import annotations

import functools
import gc
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import one_layer
from conftest import Done, Shared

SYSTEM = "你是小灯，守灯塔的猫，说话短。"
PAIRS = [
    ("你叫什么？", "小灯。"), ("你几岁了？", "三岁，按灯塔的日子算。"), ("Do you sleep?", "Only at noon."),
    ("怕海浪吗？", "不怕，怕浪里的水。"), ("今天有雾吗？", "有。"), ("Who feeds you?", "The keeper."),
    ("你会抓鱼吗？", "会。"), ("灯坏了怎么办？", "叫到天亮。"), ("想家吗？", "这里就是。"),
    ("What do you see?", "One ship, two gulls."), ("冷不冷？", "灯泡后面暖。"), ("晚安。", "你睡，我看着海。"),
]  # fmt: skip
RECIPE = """
name = "persona"
[model]
base = "builtin:tiny"
[data]
train = "train.jsonl"
[train]
batch_size = 4
learning_rate = 2e-3
report_to = ["none"]
[export]
gguf = []
"""
SHORT = ("train.max_steps=6", "train.save_steps=2")
GO_ON = "go on"  # the file that a held child waits for
TIMES = {"tokens_per_second", "supervised_tokens_per_second", "samples_per_second", "step_seconds", "memory_gib"}


@functools.cache
def imported() -> None:
    """Everything that a training imports, once, so that a forked child has it; and out of the way of the garbage
    collection that every training begins with, which takes a fifth of a second otherwise."""
    import fasttune.training.train  # noqa: F401

    gc.freeze()


@dataclass(frozen=True)
class Rank:
    """What one of several processes came to."""

    exitcode: int | None
    log: str


@dataclass(frozen=True)
class Series:
    """A folder with the recipe persona.toml, train.jsonl (10 samples: 3 steps an epoch), val.jsonl and runs/."""

    folder: Path

    @classmethod
    def new(cls, folder: Path, recipe: str = RECIPE) -> Series:
        folder.mkdir(parents=True, exist_ok=True)
        write_samples(folder / "train.jsonl", PAIRS[:10])
        write_samples(folder / "val.jsonl", PAIRS[10:])
        (folder / "persona.toml").write_text(recipe, encoding="utf-8")
        return cls(folder)

    def __call__(self, *arguments: str | Path, code: int = 0) -> Done:
        """`fasttune ARGS…` in the folder; the exit code must be `code`."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            ended = call(self.folder, [str(one) for one in arguments])
        assert ended == code, err.getvalue()
        return Done(ended, out.getvalue(), err.getvalue())

    def train(self, *settings: str, flags: str = "", code: int = 0) -> Done:
        """`fasttune run persona.toml FLAGS --set SETTING…`"""
        return self(*words(settings, flags), code=code)

    def start(self, *settings: str, flags: str = "", hold_at: int | None = None) -> BaseProcess:
        """The same in a child process; what it prints is appended to the file `log`. After `hold_at` steps the child waits
        for the signal that is meant for it (`send`), however late that is on a busy machine."""
        return start_child(log_call, self.folder, words(settings, flags), "log", hold_at)

    def send(self, child: BaseProcess, *numbers: int) -> int | None:
        """Signals to a child that was started here, which goes on then where it is held; its exit code."""
        for number in numbers:
            if child.is_alive() and child.pid:
                os.kill(child.pid, number)
        (self.folder / GO_ON).touch()
        child.join(300)
        (self.folder / GO_ON).unlink()
        return child.exitcode

    def stop(self, *settings: str, lines: int = 1, number: int = signal.SIGINT, flags: str = "") -> Path:
        """Start a training and send it a signal once its history has so many more lines, one a step; its folder."""
        before = set(self.folder.glob("runs/persona/*-*"))
        child = self.start(*settings, flags=flags, hold_at=lines)
        wait(lambda: any(len(history(run)) >= lines for run in self.runs() if run not in before), child)
        self.send(child, number)
        (run,) = set(self.folder.glob("runs/persona/*-*")) - before
        assert child.exitcode == (130 if number == signal.SIGINT else -number), self.log
        assert not (run / "adapter").exists()
        return run

    def train_ranks(self, *settings: str, prepare: Callable[[], None] = imported) -> list[Rank]:
        """The training by two ranks that meet as those of torchrun do, in children of this process: what each came to.

        `prepare` is called in each of them first.
        """
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments, children = words(settings, ""), []
        for rank in range(2):
            own = {**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(start_child(call_rank, self.folder, arguments, own, prepare))
        for child in children:
            child.join(300)
        logs = [self.folder / f"log{rank}" for rank in range(2)]
        return [
            Rank(child.exitcode, log.read_text(encoding="utf-8")) for child, log in zip(children, logs, strict=True)
        ]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def runs(self) -> list[Path]:
        """The run folders, oldest first."""
        return sorted(self.folder.glob("runs/persona/[0-9]*"))

    def names(self) -> list[str]:
        return [run.name for run in self.runs()]

    def run(self, number: int) -> Path:
        (found,) = self.folder.glob(f"runs/persona/{number:03d}-*")
        return found


def copied(series: Series, folder: Path) -> Series:
    """A copy of a series in a new folder, to go on with."""
    return Series(shutil.copytree(series.folder, folder))


def trained_parent(shared: Shared) -> Series:
    """The finished run persona/001-fresh, made once: 2 epochs of 3 steps, evaluated once an epoch. To be copied."""
    train = ("train.epochs=2", "data.val=val.jsonl")
    return Series(shared("parent", lambda folder: Series.new(folder).train(*train)))


def short_run(shared: Shared) -> Path:
    """An uninterrupted run of SHORT, made once; a test may copy its series and change nothing of it."""
    return Series(shared("short", lambda folder: Series.new(folder).train(*SHORT))).run(1)


def words(settings: tuple[str, ...], flags: str) -> list[str]:
    return ["run", "persona.toml", *flags.split(), *(word for one in settings for word in ("--set", one))]


def start_child(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A child process that has imported everything already, where a fork is possible."""
    import torch

    imported()
    method = "spawn" if torch.cuda.is_available() else "fork"  # a forked child has no GPU
    context: Any = multiprocessing.get_context(method)
    child: BaseProcess = context.Process(target=target, args=arguments)
    child.start()
    return child


def call(folder: Path, arguments: list[str]) -> int:
    """The command line as a process of its own would run it; its exit code."""
    import torch

    from fasttune import cli
    from fasttune.training import hub

    imported()
    threads, before = torch.get_num_threads(), Path.cwd()
    torch.set_num_threads(1)  # a tiny model gains nothing from more, and loses much where others compute
    os.chdir(folder)
    try:
        with (
            patch.dict(os.environ, {"COLUMNS": "160"}),
            patch.object(sys, "argv", ["fasttune", *arguments]),
            patch.object(hub, "TINY", one_layer.FOLDER),
        ):
            cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    raise AssertionError("the command line always exits")


def log_call(folder: Path, arguments: list[str], name: str = "log", hold_at: int | None = None) -> None:
    """What a child process does."""
    if hold_at is not None:
        hold(hold_at, folder / GO_ON)
    with open(folder / name, "a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        code = call(folder, arguments)
    sys.exit(code)


def hold(steps: int, go_on: Path) -> None:
    """A training of this process waits after so many steps until there is a file."""
    from fasttune.training.trainer import StepTrainer

    def training_step(trainer: StepTrainer, *arguments: Any) -> Any:
        if next(taken) == steps:
            while not go_on.exists():
                time.sleep(0.01)
        return compute(trainer, *arguments)

    taken, compute = itertools.count(), StepTrainer.training_step
    patch.object(StepTrainer, "training_step", training_step).start()


def call_rank(folder: Path, arguments: list[str], environment: dict[str, str], prepare: Callable[[], None]) -> None:
    """What a child process does that is one rank of several."""
    os.environ.update(environment)
    prepare()
    log_call(folder, arguments, f"log{environment['RANK']}")


def wait(reached: Callable[[], bool], child: BaseProcess, *, every: float = 0.02) -> bool:
    """Whether something came about before the child ended; looked for so often, which costs as much as what the child
    does where that is a thousand times a second."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and child.is_alive():
        if reached():
            return True
        time.sleep(every)
    return False


def send(child: BaseProcess, number: int) -> int | None:
    """A signal, and the exit code of what it left."""
    if child.is_alive() and child.pid:
        os.kill(child.pid, number)
    child.join(300)
    return child.exitcode


# What lies in a run's folder ----------------------------------------------------------------------------------------


def write_samples(path: Path, pairs: list[tuple[str, str]]) -> None:
    lines = [{"system": SYSTEM, "instruction": question, "output": answer} for question, answer in pairs]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def document(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def history(run: Path) -> list[dict[str, Any]]:
    """The whole lines of history.jsonl."""
    file = run / "history.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if "\n" in line]


def steps(run: Path) -> list[int]:
    return [line["step"] for line in history(run) if "loss" in line]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in history(run) if "loss" in line]


def rates(run: Path) -> list[float]:
    return [line["learning_rate"] for line in history(run) if "loss" in line]


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def checkpoints(run: Path) -> list[str]:
    """Names of a run's checkpoints, oldest first."""
    found = [path.name for path in run.glob("checkpoints/checkpoint-*") if path.name.split("-", 1)[1].isdigit()]
    return sorted(found, key=lambda name: int(name.split("-")[1]))


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit the same training: adapter, history, final state, and optimizer and random state of the last
    checkpoint; nothing half there."""
    assert adapter(one) == adapter(other)
    assert untimed(history(one)) == untimed(history(other))
    assert state(one / "trainer_state.json") == state(other / "trainer_state.json")
    assert checkpoints(one)[-1] == checkpoints(other)[-1]
    last, same = (run / "checkpoints" / checkpoints(run)[-1] for run in (one, other))
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert (last / name).read_bytes() == (same / name).read_bytes(), name
    assert state(last / "trainer_state.json") == state(same / "trainer_state.json")
    assert not [path for path in one.parent.rglob("*") if path.name.endswith((".partial", ".deleted"))]


def state(path: Path) -> dict[str, Any]:
    """A trainer_state.json without the times in it."""
    found: dict[str, Any] = document(path)
    return found | {"log_history": untimed(found["log_history"])}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, but locks: they name the process that holds them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs' adapters."""
    from safetensors.torch import load

    first, second = load(adapter(one)), load(adapter(other))
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)
