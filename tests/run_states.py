"""The states of a run that somebody may ask advice about, each in a folder of its own, written without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import written_runs
from kept_epochs import write_epochs
from series import RECIPE, Series

from fasttune.runs import documents, epochs
from fasttune.runs.documents import Scores
from fasttune.runs.store import Run

FALLING = [3.0 - 0.2 * step for step in range(12)]
GIVEN = ("train.epochs=4", "data.val=val.jsonl")


def write_curves(run: Run, losses: Sequence[float], held_out: Sequence[float]) -> None:
    """history.jsonl anew: a row a step, an evaluation every third, which is an epoch."""
    lines: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        lines.append({"step": step, "epoch": step / 3, "loss": loss, "mean_token_accuracy": 0.9})
        lines += [{"step": step, "eval_loss": held_out[step // 3 - 1]}] if step % 3 == 0 and held_out else []
    run.history.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_state(
    held_out: Sequence[float], losses: Sequence[float] = FALLING, *given: str, state: Any = "finished", **options: Any
) -> Run:
    """A run of persona.toml of 4 epochs of 3 steps, with these curves and as if 20 samples were held out."""
    request = written_runs.request(*GIVEN, *given, **options)
    run = written_runs.write_run(request, state, steps=len(losses) if state == "stopped" else None)
    documents.write(run.plan, replace(documents.read_plan(run), val_samples=20))
    write_curves(run, losses, held_out)
    return run


def good() -> Run:
    return write_state([2.0, 1.5, 1.49, 1.485])


def over_fitted() -> Run:
    return write_state([2.0, 1.5, 1.6, 1.8])


def too_short() -> Run:
    return write_state([2.0, 1.6, 1.3, 1.1])


def nothing_learned() -> Run:
    return write_state([3.0, 2.999, 2.998, 2.997], [3.0] * 12)


def data_changed() -> Run:
    """Edited since, so that its checkpoint can't be continued from."""
    run = too_short()
    with open("train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"instruction": "还有呢？", "output": "没有了。"}\n')
    return run


def stopped() -> Run:
    return write_state([2.0, 1.6], FALLING[:6], state="stopped")


def killed_at_export() -> Run:
    return write_state([2.0, 1.5, 1.49, 1.485], FALLING, 'export.gguf=["q8_0"]', state="trained")


def best_epoch_kept() -> Run:
    """Over-fitted, and the epoch of its lowest held-out loss was kept."""
    run = over_fitted()
    write_epochs(run, (1, 2, 3, 4), (2.0, 1.5, 1.6, 1.8), steps_per_epoch=3)
    return run


def picked() -> Run:
    run = best_epoch_kept()
    epochs.pick(run, epochs.find_epoch(run, "2"))
    return run


def picked_too_early() -> Run:
    """Its held-out loss fell to the end, and an epoch before is picked; of that no file is to be made."""
    run = write_state([2.0, 1.6, 1.3, 1.1], FALLING, 'export.gguf=["q8_0"]')
    write_epochs(run, (1, 2, 3, 4), (2.0, 1.6, 1.3, 1.1), steps_per_epoch=3)
    epochs.pick(run, epochs.find_epoch(run, "2"))
    return run


def deliberately_new() -> Run:
    """A second run of the same recipe, as `--on-existing new` makes it."""
    good()
    return write_state([2.0, 1.5, 1.49, 1.485], on_existing="new")


def new_with_other_values() -> Run:
    good()
    return write_state([2.0, 1.6, 1.3, 1.1], FALLING, "train.learning_rate=1e-3", on_existing="new")


def nothing_held_out() -> Run:
    run = write_state([])
    documents.write(run.plan, replace(documents.read_plan(run), val_samples=0))
    return run


def babbling() -> Run:
    """Too short, and its answer loops."""
    run = too_short()
    answer = "月亮很圆很圆很圆很圆很圆很圆很圆很圆很圆很圆很圆"
    documents.write(run.scores, Scores((documents.Probe("说个故事", "", answer),), None))
    return run


STATES: dict[str, Callable[[], Run]] = {
    made.__name__: made
    for made in (
        good, over_fitted, too_short, nothing_learned, data_changed, stopped, killed_at_export, best_epoch_kept, picked,
        picked_too_early, deliberately_new, new_with_other_values, nothing_held_out, babbling,
    )
}  # fmt: skip


def in_folder(folder: Path, name: str) -> Run:
    """The run of a state; to be called with the folder as the working directory."""
    Series.new(folder, RECIPE)
    return STATES[name]()
