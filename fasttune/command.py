"""Command lines of fasttune as they are typed: what every message prints that names one.

A printed command is complete: with the name that this fasttune has in the current directory, the launcher where several
processes train, the runs folder, the overrides and the flags that it needs to do what the message says.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

TRIALS = 12  # of a range, where a sweep is not told
# The settings of a sweep's trial: it writes no files, they are exported of the one that is chosen.
WITHOUT_FILES: Mapping[str, Any] = {"export.gguf": [], "export.ollama": "", "export.keep_merged": False}
OnExisting = Literal["resume", "new", "stop", "overwrite", "skip"]


def command_line(arguments: Iterable[str], folder: Path | None = None) -> str:
    """A fasttune command to copy into a shell in `folder`, by default the current directory."""
    words = list(arguments)
    start = launcher() if words[:1] == ["run"] else []
    return shlex.join([*(start or program(folder)), *words])


def program(folder: Path | None = None) -> list[str]:
    """The words that start this fasttune in a folder: `fasttune` where PATH has it, else the path it was started by, or
    `python -m fasttune` where it was started so."""
    started = Path(sys.argv[0])
    if started.parts[-2:] == ("fasttune", "__main__.py"):
        return [name_of(sys.executable, folder), "-m", "fasttune"]
    if started.name != "fasttune" or os.sep not in sys.argv[0]:
        return ["fasttune"]  # called by other Python code
    return [name_of(sys.argv[0], folder)]


def name_of(file: str, folder: Path | None = None) -> str:
    """What a shell in a folder starts a program by: its name where PATH leads to this file, else the shorter of its
    relative and its absolute path. Links are not followed: a virtual environment's python is one."""
    path = os.path.abspath(file)
    found = shutil.which(os.path.basename(path))
    if found and os.path.abspath(found) == path:
        return os.path.basename(path)
    relative = os.path.relpath(path, folder or Path.cwd())
    return min(relative if os.sep in relative else os.path.join(".", relative), path, key=len)


def launcher() -> list[str]:
    """`torchrun … -m fasttune` or `accelerate launch … -m fasttune` as it was typed, where one of the two has started
    this process; else nothing.

    Both are torch's elastic agent, which sets TORCHELASTIC_RUN_ID and is the parent process of each rank.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    words = parent_words()
    ends = [
        at for at, word in enumerate(words)
        if os.path.basename(word) == "fasttune" and (words[at - 1] in ("-m", "--module") or os.sep in word)
    ]  # fmt: skip
    if not ends:  # another system than Linux, or the agent has ended
        return ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "fasttune"]
    python, script, *more = words[: ends[0] + 1]
    return [name_of(python), script, *more] if script.startswith("-") else [name_of(script), *more]


def parent_words() -> list[str]:
    """The command line of the parent process; nothing where the system does not tell it."""
    try:
        line = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in line.rstrip(b"\0").split(b"\0")]


def without_password(word: str) -> str:
    """A word of a command line without the password of an address in it."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", word)


def runs_option(root: Path) -> list[str]:
    """The arguments --runs FOLDER; none for the folder that is used without them."""
    return [] if str(root) == os.environ.get("FASTTUNE_RUNS", "runs") else ["--runs", str(root)]


def run_arguments(
    recipe: Path,
    root: Path,
    overrides: Iterable[str] = (),
    *,
    strategy: str | None = None,
    on_existing: OnExisting | None = None,
    overwrite: str | None = None,
    allow_overfit: bool = False,
) -> list[str]:
    """The arguments of a `fasttune run`; `overrides` are those of --set, `root` is the folder of --runs."""
    flags = {"--continue": strategy, "--on-existing": on_existing, "--overwrite": overwrite}
    words = ["run", str(recipe), *runs_option(root)]
    words += [word for flag, value in flags.items() if value for word in (flag, value)]
    words += ["--allow-overfit"] * allow_overfit
    return words + [word for override in overrides for word in ("--set", override)]


def sweep_arguments(
    run: Iterable[str],
    vary: Iterable[str],
    *,
    together: bool,
    trials: int,
    storage: str,
    prunes: bool,
    asks_facts: bool,
) -> list[str]:
    """The arguments of a `fasttune sweep`; `run` are those of a `fasttune run` behind its verb."""
    words = ["sweep", *run, *(word for one in vary for word in ("--vary", one))]
    words += ["--together"] * together + (["--trials", str(trials)] if trials != TRIALS else [])
    if storage and storage != os.environ.get("FASTTUNE_STORAGE"):
        words += ["--storage", storage]
    return words + ["--no-prune"] * (not prunes) + ["--no-facts"] * (not asks_facts)
