"""What trainings have shown, kept small: the figures behind docs/defaults.md and docs/linzhi.md.

    python -m benchmarks.evidence RUN_FOLDER … >> docs/evidence/FILE.jsonl     one line of JSON a run
    python -m benchmarks.evidence --table docs/evidence/FILE.jsonl             the same as a table of Markdown

A line holds what a run was trained with, the mean training loss of each of its epochs, and its held-out losses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fasttune.runs import documents, judgement
from fasttune.runs.documents import PlanDocument
from fasttune.runs.history import read_history
from fasttune.runs.store import Run

SETTINGS = (
    "model.dtype", "lora.r", "lora.alpha", "train.epochs", "train.batch_size", "train.learning_rate",
    "train.lr_scheduler_type", "train.warmup_steps", "train.weight_decay", "train.seed",
)  # fmt: skip
COLUMNS = ("lora.r", "lora.alpha", "train.batch_size", "train.learning_rate", "train.seed")


def main(*arguments: str) -> None:
    """Print the lines of the run folders, or the table of a file of lines."""
    if arguments[:1] == ("--table",):
        lines = Path(arguments[1]).read_text(encoding="utf-8").splitlines()
        print("\n".join(table(json.loads(line) for line in lines)))
        return
    for name in arguments:
        print(json.dumps(evidence_of(Path(name)), ensure_ascii=False))


def evidence_of(folder: Path) -> dict[str, Any]:
    """The line of a run in `folder`, which is runs/SERIES/RUN. Raises FasttuneError where a file of it is damaged."""
    run = Run(folder.parent.parent, f"{folder.parent.name}/{folder.name}")
    plan, history = documents.read_plan(run), read_history(run)
    return {
        "run": run.id,
        "data": list(plan.values["data.train"]),
        "samples": plan.train_samples,
        "held_out_samples": plan.val_samples,
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "settings": {key: plan.values[key] for key in SETTINGS},
        "loss_by_epoch": epoch_losses(plan, history),
        "held_out": [[one.step, round(one.loss, 4)] for one in judgement.evaluations(history)],
    }


def epoch_losses(plan: PlanDocument, history: Iterable[Mapping[str, Any]]) -> list[float]:
    """The mean of the training losses of the steps of each epoch, in nats a token."""
    by_epoch: dict[int, list[float]] = {}
    for line in history:
        if "loss" in line:
            by_epoch.setdefault((line["step"] - 1) // plan.steps_per_epoch, []).append(line["loss"])
    return [round(sum(losses) / len(losses), 4) for _epoch, losses in sorted(by_epoch.items())]


def table(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rows of a Markdown table, one a run, with the held-out loss after each evaluation and the lowest of them."""
    rows = ["| r | alpha | batch_size | learning_rate | seed | steps | held-out loss after step | lowest |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in lines:
        losses = [loss for _step, loss in line["held_out"]]
        after = ", ".join(f"{step}: {loss:.3f}" for step, loss in line["held_out"])
        values = [f"{line['settings'][key]:g}" for key in COLUMNS]
        rows.append(f"| {' | '.join(values)} | {line['steps']} | {after} | {min(losses, default=float('nan')):.3f} |")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
