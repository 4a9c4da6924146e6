"""Adapters of epochs in a run folder, written as training leaves them and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fasttune.runs import checkpoints, epochs
from fasttune.runs.epochs import KeptEpoch
from fasttune.runs.outcomes import EpochScores
from fasttune.runs.store import Run


def write_epochs(
    run: Run,
    numbers: Sequence[float],
    held_out: Sequence[float | None] = (),
    *,
    steps_per_epoch: int = 10,
    own: float | None = None,
) -> tuple[KeptEpoch, ...]:
    """An adapter for each number of epochs, with its held-out loss and its answer to one question; the run's own
    adapter has the weights of the epoch `own`, by default the last one's."""
    for number, loss in zip(numbers, [*held_out, *[None] * (len(numbers) - len(held_out))], strict=True):
        step = round(number * steps_per_epoch)
        folder = write_adapter(run, epochs.folder_of(run, number).name, step, number)
        answers = (f"answer after {number:g}",)
        epochs.keep_scores(run, EpochScores(step, epochs.weights_digest(folder), loss, ("Who?",), answers, 32))
    last = numbers[-1] if own is None else own
    write_adapter(run, "../adapter", round(last * steps_per_epoch), last)
    return epochs.kept_epochs(run)


def write_adapter(run: Run, name: str, step: int, number: float) -> Path:
    """A PEFT folder below epochs/, its weights a text that names the epoch."""
    folder = (run.epochs / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for file in checkpoints.ADAPTER_FILES:
        content = f"weights of epoch {number:g}" if file == checkpoints.WEIGHTS else "{}"
        (folder / file).write_text(content, encoding="utf-8")
    checkpoints.write_manifest(folder, step, checkpoints.ADAPTER_FILES)
    return folder
