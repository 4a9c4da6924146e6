"""What the tests share: English messages, a quiet Unsloth, and the real command line in a process of its own."""

from __future__ import annotations

import fcntl
import functools
import gc
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jinja2
import one_layer
import pytest

from fasttune.machine import without_collector
from fasttune.training import hub

os.environ["FASTTUNE_LANG"] = "en"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.main does, before torch is loaded here
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a tiny model gains nothing from more; the tests run side by side
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The processor's flags: none, so that model.dtype = "auto" is float32 on every machine (machine.bfloat16_instructions).
# FASTTUNE_CPU_FLAGS=amx_bf16 before pytest shows the tests as a processor with AMX has them.
os.environ.setdefault("FASTTUNE_CPU_FLAGS", "")
# Each call has a token cache of its own; what Unsloth compiles may stay.
caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(caches / "fasttune" / "unsloth"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network; a test that would fails at once

pytest_plugins = ["exports"]  # its session fixtures are made once for all files of export/
REPOSITORY = Path(__file__).parent.parent
Cli = Callable[..., Any]
Shared = Callable[[str, Callable[[Path], object]], Path]


def call_fasttune(runs: Path, *arguments: str | Path, stdin: str | None = None, **variables: str) -> Any:
    """`fasttune ARGS…` in the repository, as a user types it; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "fasttune", *map(str, arguments)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "FASTTUNE_RUNS": str(runs),
            "XDG_CACHE_HOME": str(runs.parent / "cache"),
            "COLUMNS": "160",
            **variables,
        },
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def pytest_configure() -> None:
    """Take Ctrl-C and a closed terminal as a person's shell does: a job in the background, or below nohup, inherits both
    ignored, and the tests that send them would wait for ever."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all test files without a search for garbage: what they are made of stays."""
    with without_collector():
        result = yield
        gc.freeze()
    return result


@dataclass(frozen=True)
class Done:
    """What a call in this process came to, named as subprocess names it."""

    returncode: int
    stdout: str
    stderr: str


def call_here(
    runs: Path, *arguments: str | Path, cwd: Path = REPOSITORY, stdin: str | None = None, **variables: str
) -> Done:
    """The same in this process, where Unsloth is imported once for all tests."""
    from fasttune import cli

    out, err = io.StringIO(), io.StringIO()
    own = {"FASTTUNE_RUNS": str(runs), "XDG_CACHE_HOME": str(runs.parent / "cache"), "COLUMNS": "160"}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["fasttune", *map(str, arguments)])
        if stdin is not None:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        for name, value in {**own, **variables}.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def fasttune(tmp_path: Path) -> Cli:
    """The command line in this process with its runs under tmp_path."""
    return functools.partial(call_here, tmp_path / "runs")


@dataclass(frozen=True)
class Quickstart:
    """A finished run of recipes/quickstart.toml, which no test changes: what it printed as JSON, its folder, and the
    command line beside it, in this process."""

    result: dict[str, Any]
    folder: Path
    fasttune: Cli


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Makes a folder once for all tests of a session, also where pytest-xdist runs them in several processes: what
    takes long to make and no test changes. `make` fills the folder; who comes while it does waits for it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of all workers

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / "shared" / name, root / "shared" / f"{name}.made"
        folder.parent.mkdir(exist_ok=True)
        with open(root / "shared" / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def quickstart(shared: Shared) -> Quickstart:
    """The quick start as the README runs it, once for all tests that look at its result."""

    def train(runs: Path) -> None:
        done = call_here(runs, "run", "recipes/quickstart.toml", "--json")
        assert done.returncode == 0, done.stderr
        (runs / "result.json").write_text(done.stdout, encoding="utf-8")

    runs = shared("quickstart", train)
    result = json.loads((runs / "result.json").read_text(encoding="utf-8"))
    return Quickstart(result, runs / "quickstart" / "001-fresh", functools.partial(call_here, runs))


@pytest.fixture(scope="session", autouse=True)
def small_base(shared: Shared) -> Path:
    """The folder of the base that a series trains (series.py): made once."""
    one_layer.FOLDER = shared("one layer", one_layer.write)
    return one_layer.FOLDER


@pytest.fixture(scope="module")
def one_layer_base(small_base: Path) -> Iterator[None]:
    """`builtin:tiny` has one layer in the tests of a module: for what a training leaves, whatever it has computed."""
    with patch.object(hub, "TINY", small_base):
        yield


@pytest.fixture
def one_layer_here(small_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in one test."""
    monkeypatch.setattr(hub, "TINY", small_base)


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Nothing waits for the disk, which a training does a hundred times; test_files.py tests where and when."""
    with patch.object(os, "fsync", lambda descriptor: None):
        yield


@pytest.fixture(scope="session", autouse=True)
def templates_compiled_once() -> Iterator[None]:
    """Jinja compiles each text once. The form of PEFT's page about an adapter (model.save_trained_adapter) is the same in
    hundreds of trainings, and takes a tenth of a short one."""
    with patch.object(jinja2.Environment, "compile", functools.lru_cache(256)(jinja2.Environment.compile)):
        yield


@pytest.fixture(scope="module", autouse=True)
def no_old_objects() -> None:
    """The search for garbage that a training begins with, and that follows where memory ran out, looks through the objects
    of this module alone: through those of thousands of tests before it takes as long as the training."""
    gc.collect()
    gc.freeze()


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Files of this process end after so many bytes, as on a full disk: a write fails half done.

    For a part of a test, not around one: pytest's own output may be a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def cpu_limit(seconds: int) -> Iterator[None]:
    """End the block with an AssertionError once it has computed for so long: for work that takes a moment, and hours
    where it is quadratic. Other processes on the machine do not count."""

    def stop(_number: int, _frame: object) -> None:
        raise AssertionError(f"more than {seconds} s of computing")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
