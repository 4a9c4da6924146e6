"""What the tests share: English messages, a quiet Unsloth, and the real command line in a process of its own."""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ["FASTTUNE_LANG"] = "en"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.main does, before torch is loaded here
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Each call has a token cache of its own; what Unsloth compiles may stay.
caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(caches / "fasttune" / "unsloth"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network; a test that would fails at once

REPOSITORY = Path(__file__).parent.parent
Cli = Callable[..., Any]


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


@dataclass(frozen=True)
class Done:
    """What a call in this process came to, named as subprocess names it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def fasttune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with its runs under tmp_path, in this process: Unsloth is imported once for all tests."""
    from fasttune import cli

    def call(*arguments: str | Path, cwd: Path = REPOSITORY, **variables: str) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["fasttune", *map(str, arguments)])
            own = {"FASTTUNE_RUNS": str(tmp_path / "runs"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "160"}
            for name, value in {**own, **variables}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    return call


@dataclass(frozen=True)
class Quickstart:
    """A finished run of recipes/quickstart.toml: what it printed as JSON, its folder, and the command line beside it."""

    result: dict[str, Any]
    folder: Path
    fasttune: Cli


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """The quick start as the README runs it, once for all tests that look at its result."""
    runs = tmp_path_factory.mktemp("quickstart")
    done = call_fasttune(runs, "run", "recipes/quickstart.toml", "--json")
    assert done.returncode == 0, done.stderr
    return Quickstart(
        json.loads(done.stdout), runs / "quickstart" / "001-fresh", functools.partial(call_fasttune, runs)
    )


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
