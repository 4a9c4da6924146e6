"""The adapters of a run besides the one that it serves, by the names that every command understands:

linzhi@62        linzhi/001/checkpoint-62    that of a checkpoint
linzhi@epoch-2   linzhi/001/epoch-2          the one that was kept after so many epochs; `epoch-best` too
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fasttune.runs import checkpoints, epochs, store
from fasttune.runs.store import Run

AT_STEP = re.compile(r"(?P<run>.+?)(?:@|/(?:checkpoints/)?checkpoint-)(?P<step>\d{1,9})/?")
AT_EPOCH = re.compile(r"(?P<run>.+?)(?:@|/(?:epochs/)?)epoch-(?P<epoch>\d+(?:\.\d+)?|best)/?")


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter of a run that is not the one it serves. `part` is checkpoint-62 or epoch-2, `name` linzhi/001-fresh@62
    or linzhi/001-fresh@epoch-2."""

    run: Run
    folder: Path
    part: str

    @property
    def name(self) -> str:
        return f"{self.run.id}@{self.part.removeprefix('checkpoint-')}"


def is_named(name: str) -> bool:
    """Whether a name is that of a checkpoint or a kept epoch."""
    return bool(AT_STEP.fullmatch(name) or AT_EPOCH.fullmatch(name))


def named(name: str, root: Path) -> NamedAdapter | None:
    """The adapter of a checkpoint or a kept epoch; None for any other name.

    Raises UsageError with those that there are where the run has no such one, and FasttuneError where it is damaged.
    """
    if found := AT_STEP.fullmatch(name):
        run = store.find(root, found["run"])
        folder = checkpoints.checkpoint_at(run, int(found["step"]))
        return NamedAdapter(run, folder, folder.name)
    if found := AT_EPOCH.fullmatch(name):
        return of_epoch(store.find(root, found["run"]), found["epoch"], name)
    return None


def of_epoch(run: Run, epoch: str, typed: str) -> NamedAdapter:
    """The adapter that a run has kept of an epoch, `typed` being how it was named. Raises as `named` does."""
    kept = epochs.find_epoch(run, epoch, typed)
    checkpoints.require_whole_adapter(kept.folder)
    return NamedAdapter(run, kept.folder, kept.folder.name)
