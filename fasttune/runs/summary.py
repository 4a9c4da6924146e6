"""The figures and the verdict of a run, from the files in its folder, and every threshold that judges a run.

Loss and accuracy are means over the last epoch, so that every sample counts once; the verdict follows from the loss and
from the held-out loss:

    below 0.1 excellent, to 0.3 good, to 0.5 fair, above not-enough;
    over-fitting where the held-out loss ended more than 1 % above its best

1 % because that is what separates the runs of docs/linzhi.md: from 4.549 the held-out loss went to 4.551 (0.04 %) in a
model that answers, and to 4.773 (4.9 %) in one that babbles.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fasttune.console import FasttuneError, Finding, _
from fasttune.runs import documents, store
from fasttune.runs.documents import PlanDocument
from fasttune.runs.history import EpochMeans, last_epoch, read_history
from fasttune.runs.store import Run

BANDS = ((0.1, "excellent"), (0.3, "good"), (0.5, "fair"))
NOT_ENOUGH, OVER_FITTING = "not-enough", "over-fitting"
RISE = 1.01  # a held-out loss above this many times its best has risen
GAP = 0.5  # a held-out loss this far above the training loss: the samples are learned, the persona is not
UNDER_TRAINED_LOSS, UNDER_TRAINED_ACCURACY = 0.5, 0.8  # above the one or below the other: too little training
# Settings that always differ from parent to child, or that the change of "epochs" stands for.
NOT_A_CHANGE = ("name", "strategy", "continue.", "train.epochs", "train.max_steps")


@dataclass(frozen=True)
class Change:
    """A setting whose value differs from the parent's; "epochs" is the total, "samples" the data's contents."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Figures:
    """The figures of a run: one entry of `fasttune runs --json`.

    `parent` is None for a run from the base, and where the parent was deleted. `loss` is the last step's; `epoch_loss`
    and `mean_token_accuracy` are means over the last epoch, as `fasttune run` prints them; `eval_loss` is the held-out
    loss of the adapter, `best_eval_loss` the lowest one, parents included. Losses are in nats a supervised token. They
    and the verdict are None where no step was logged.
    """

    id: str
    current: bool
    strategy: str
    parent: str | None
    changes: tuple[Change, ...]
    status: str
    steps: int
    epochs: float
    first_loss: float | None
    loss: float | None
    epoch_loss: float | None
    eval_loss: float | None
    best_eval_loss: float | None
    mean_token_accuracy: float | None
    verdict: str | None
    exports: tuple[Mapping[str, Any], ...]
    date: str
    folder: str


# Reading ------------------------------------------------------------------------------------------------------------


def read_series(root: Path, name: str, findings: list[Finding]) -> list[Figures]:
    """The runs of a series, oldest first; of a run that is damaged a finding is added instead."""
    current, figures = store.current(root, name), []
    for run in store.list_runs(root, name):
        try:
            figures.append(read_figures(run, run == current))
        except FasttuneError as problem:
            findings += [replace(finding, why=finding.why or _("{run} is not shown", run=run.id))
                         for finding in problem.findings]  # fmt: skip
    return figures


def read_figures(run: Run, current: bool = False) -> Figures:
    """The figures of a run, from the files of its folder; a run that was stopped early need not have all of them."""
    plan, parent = read_plan(run), existing_parent(run)
    trained = [line for line in read_history(run) if "loss" in line]
    evaluated = held_out_losses(run)
    last = trained[-1] if trained else {}
    epoch = last_epoch(trained, plan.steps_per_epoch if plan else 1)
    reached = adapter_eval_loss(plan, evaluated)
    return Figures(
        id=run.id,
        current=current,
        strategy=plan.strategy if plan else run.id.partition("-")[2],
        parent=parent.id if parent else None,
        changes=changes(documents.read_plan(parent), plan) if parent and plan else (),
        status=run.status,
        steps=last.get("step", 0),
        epochs=last.get("epoch", 0.0),
        first_loss=trained[0]["loss"] if trained else None,
        loss=last.get("loss"),
        epoch_loss=epoch.loss if epoch else None,
        eval_loss=reached,
        best_eval_loss=min(evaluated, default=None),
        mean_token_accuracy=epoch.accuracy if epoch else None,
        verdict=verdict(epoch.loss if epoch else None, reached, evaluated),
        exports=exported(run),
        date=began(run),
        folder=str(run.folder),
    )


def read_plan(run: Run) -> PlanDocument | None:
    """The plan of a run; None where it has none."""
    return documents.read_plan(run) if run.plan.is_file() else None


def existing_parent(run: Run) -> Run | None:
    """The run that this one continued from; None where it was deleted since, also where its number was given again, and
    where its documents are damaged."""
    plan = read_plan(run)
    parent = Run(run.root, plan.parent) if plan and plan.parent else None
    if parent is None or not parent.plan.is_file() or parent == run:
        return None
    try:
        documents.read_plan(parent)
        return parent if created(parent) <= created(run) else None
    except FasttuneError:
        return None


def created(run: Run) -> str:
    """When a run began, UTC, ISO 8601; empty where it has no provenance."""
    return documents.read_provenance(run).created if run.provenance.is_file() else ""


def began(run: Run) -> str:
    """When a run began, in local time to the minute."""
    moment = created(run)
    try:
        began_at = datetime.fromisoformat(moment) if moment else datetime.fromtimestamp(run.folder.stat().st_mtime)
    except ValueError:
        what = _("its field {field} is missing or damaged", field="created")
        raise documents.damaged(run.provenance, what) from None
    return began_at.astimezone().strftime("%Y-%m-%d %H:%M")


def changes(before: PlanDocument, after: PlanDocument) -> tuple[Change, ...]:
    """The settings whose values differ between two plans, those left out whose value follows from other settings."""
    old = before.values
    found = [Change("epochs", before.epochs, after.epochs)]
    found += [
        Change(setting.key, old.get(setting.key), setting.value)
        for setting in after.settings
        if not setting.key.startswith(NOT_A_CHANGE) and not setting.source.startswith("default (")
    ]
    found.append(Change("samples", samples_in_words(before), samples_in_words(after)))
    return tuple(one for one in found if json.dumps(one.old) != json.dumps(one.new))


def samples_in_words(plan: PlanDocument) -> str:
    """`66+6 (8a123f0b)`: training and held-out samples, and the beginning of the fingerprint of their contents."""
    return f"{plan.train_samples}+{plan.val_samples} ({plan.data_fingerprint[:8]})"


def final_means(run: Run) -> EpochMeans:
    """Mean loss and accuracy over a run's last epoch; 0 and 1, which no threshold objects to, where no step was
    logged."""
    return last_epoch(read_history(run), documents.read_plan(run).steps_per_epoch) or EpochMeans(0.0, 1.0)


def held_out_losses(run: Run) -> list[float]:
    """Every held-out loss up to the run's end, oldest first, those of the parents included whose checkpoint it
    continued from with the same data."""
    plan, parent = read_plan(run), existing_parent(run)
    before: list[float] = []
    # A parent is older than its child, so damaged documents that name each other lead to no endless chain.
    is_older = parent is not None and (parent.series != run.series or store.run_number(parent) < store.run_number(run))
    if parent and is_older and plan and plan.start == "checkpoint":
        same = documents.read_plan(parent).data_fingerprint == plan.data_fingerprint
        with contextlib.suppress(FasttuneError):  # a damaged history of the parent is a finding about the parent
            before = held_out_losses(parent) if same else []
    return before + [line["eval_loss"] for line in read_history(run) if "eval_loss" in line]


def adapter_eval_loss(plan: PlanDocument | None, evaluated: Sequence[float]) -> float | None:
    """The held-out loss of the weights that became the adapter: the lowest with early stopping, else the last."""
    if not evaluated:
        return None
    return min(evaluated) if plan and plan.values.get("train.early_stopping_patience") else evaluated[-1]


def has_risen(reached: float | None, evaluated: Sequence[float]) -> bool:
    """Whether reached > RISE * min(evaluated): the held-out loss has risen above its best by more than noise."""
    return reached is not None and reached > RISE * min(evaluated, default=reached)


def is_under_trained(means: EpochMeans) -> bool:
    """Whether the last epoch's means say that more training is the first thing to try."""
    return means.loss > UNDER_TRAINED_LOSS or means.accuracy < UNDER_TRAINED_ACCURACY


def is_far_above(held_out: float, loss: float) -> bool:
    """Whether a held-out loss is so far above the training loss that the samples are learned and the persona is not."""
    return held_out - loss > GAP


def verdict(loss: float | None, reached: float | None, evaluated: Sequence[float]) -> str | None:
    """The verdict on a run by the thresholds at the top of this file; None where no step was logged.

    `loss` is the last epoch's mean, `reached` the held-out loss of the adapter, `evaluated` every held-out loss.
    """
    if loss is None:
        return None
    if has_risen(reached, evaluated):
        return OVER_FITTING
    return next((word for limit, word in BANDS if loss < limit), NOT_ENOUGH)


def exported(run: Run) -> tuple[Mapping[str, Any], ...]:
    """The GGUF files of a run with their sizes in bytes."""
    files = sorted(path for path in run.exports.glob("*.gguf") if path.is_file()) if run.exports.is_dir() else []
    return tuple({"file": path.name, "bytes": path.stat().st_size} for path in files)
