"""history.jsonl: one line a logged step or evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.files import write_text
from fasttune.runs.store import Run


def read_history(run: Run) -> list[dict[str, Any]]:
    """The lines of history.jsonl; a last line that a killed process left incomplete is not one."""
    if not run.history.is_file():
        return []
    lines = run.history.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class EpochMeans:
    """Means over the logged lines of one epoch's steps, so that every sample counts once."""

    loss: float
    accuracy: float


def last_epoch(history: Sequence[Mapping[str, Any]], steps_per_epoch: int) -> EpochMeans | None:
    """Mean loss and token accuracy over the last `steps_per_epoch` trained steps; None where no step was logged.

    `history` are lines of history.jsonl or of the Trainer's log history.
    """
    trained = [line for line in history if "loss" in line]
    lines = [line for line in trained if line["step"] > trained[-1]["step"] - steps_per_epoch]
    if not lines:
        return None
    loss = sum(line["loss"] for line in lines) / len(lines)
    return EpochMeans(loss, sum(line["mean_token_accuracy"] for line in lines) / len(lines))


def trim_history(run: Run, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again."""
    lines = read_history(run)
    kept = [line for line in lines if line["step"] <= step]
    if run.history.is_file():
        write_text(run.history, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
