"""Command lines of fasttune as they are typed: what every message prints that names one.

A printed command is complete: with the runs folder, the overrides and the flags that it needs to do what the message
says.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

OnExisting = Literal["resume", "new", "stop", "overwrite", "skip"]


def command_line(arguments: Iterable[str]) -> str:
    """A fasttune command to copy into a shell."""
    return shlex.join(["fasttune", *arguments])


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
