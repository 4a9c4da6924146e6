"""The figures of a run, from the files in its folder, with the verdict of judgement.py.

Loss and accuracy are means over the last epoch, so that every sample counts once. A run that continues from a
checkpoint on the same data is judged with the history of its parents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fasttune import files
from fasttune.console import FasttuneError, Finding, _
from fasttune.runs import documents, epochs, judgement, store
from fasttune.runs.documents import PlanDocument
from fasttune.runs.history import EpochMeans, last_epoch, read_history
from fasttune.runs.judgement import Judgement
from fasttune.runs.run_files import RunFiles
from fasttune.runs.store import Run

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
    loss of the adapter, `best_eval_loss` the lowest one, parents included, and `best_step` the step it was reached at.
    `picked_epoch` is the epoch whose adapter `fasttune pick` has put in place of the run's own, None for that one;
    `eval_loss` and the verdict are then that adapter's, all other losses, `own_eval_loss` too, those of the run's own.
    `missing_exports` are the types that its plan asks for and no file has.
    Losses are in nats a supervised token. They and the verdict with its reason (judgement.Judgement) are None where no
    step was logged. `loss_band` is what users take from the training loss alone.
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
    verdict_reason: str | None
    loss_band: str | None
    best_step: int | None
    picked_epoch: float | None
    held_out_samples: int
    exports: tuple[Mapping[str, Any], ...]
    date: str
    folder: str
    own_eval_loss: float | None = None
    missing_exports: tuple[str, ...] = ()


# Reading ------------------------------------------------------------------------------------------------------------


def read_series(root: Path, name: str, findings: list[Finding], known: Figures | None = None) -> list[Figures]:
    """The runs of a series, oldest first; of a run that is damaged a finding is added instead, and of a file `current`
    that can't be read one beside them. The figures of one of them that are `known` are not read again.

    Raises FasttuneError where the series' folder can't be listed.
    """
    with files.condition_as_error():
        runs = store.list_runs(root, name)
    current, figures = None, []
    try:
        with files.condition_as_error():
            current = store.current(root, name)
    except FasttuneError as problem:
        findings += problem.findings
    for run in runs:
        try:
            figures.append(known if known and known.id == run.id else read_figures(run, run == current))
        except FasttuneError as problem:
            findings += [replace(finding, why=finding.why or _("{run} is not shown", run=run.id))
                         for finding in problem.findings]  # fmt: skip
    return figures


def read_figures(run: Run, current: bool = False) -> Figures:
    """The figures of a run, from the files of its folder; a run that was stopped early need not have all of them.

    Raises FasttuneError where its files are damaged, or can't be read by this user or from this disk.
    """
    with files.condition_as_error():
        return figures_of(run, current)


def figures_of(run: Run, current: bool) -> Figures:
    """As `read_figures`. Raises OSError too."""
    found = RunFiles(run)
    plan, parent, judged, picked = found.plan, found.parent, found.judged, found.picked
    trained = [line for line in found.own_history if "loss" in line]
    evaluated = found.evaluations
    last = trained[-1] if trained else {}
    epoch = last_epoch(trained, plan.steps_per_epoch if plan else 1)
    return Figures(
        id=run.id,
        current=current,
        strategy=plan.strategy if plan else run.id.partition("-")[2],
        parent=parent.run.id if parent else None,
        changes=changes(parent.plan, plan) if parent and parent.plan and plan else (),
        status=run.status,
        steps=last.get("step", 0),
        epochs=last.get("epoch", 0.0),
        first_loss=trained[0]["loss"] if trained else None,
        loss=last.get("loss"),
        epoch_loss=epoch.loss if epoch else None,
        eval_loss=found.adapter_eval_loss,
        best_eval_loss=judgement.best_evaluation(evaluated).loss if evaluated else None,
        mean_token_accuracy=epoch.accuracy if epoch else None,
        verdict=judged.verdict if judged else None,
        verdict_reason=judged.reason if judged else None,
        loss_band=judgement.loss_band(epoch.loss if epoch else None),
        best_step=judgement.best_evaluation(evaluated).step if evaluated else None,
        picked_epoch=picked.epoch if picked else None,
        held_out_samples=plan.val_samples if plan else 0,
        exports=exported(found),
        date=began(found),
        folder=str(run.folder),
        own_eval_loss=found.own_eval_loss,
        missing_exports=found.missing_exports,
    )


def read_plan(run: Run) -> PlanDocument | None:
    """The plan of a run; None where it has none."""
    return RunFiles(run).plan


def began(found: RunFiles) -> str:
    """When a run began, in local time to the minute."""
    run, moment = found.run, found.created
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


def full_history(run: Run) -> list[dict[str, Any]]:
    """The history lines up to the run's end, as in `RunFiles.history`."""
    return RunFiles(run).history


def parent_on_same_data(run: Run) -> Run | None:
    """The parent whose checkpoint a run continued from with the same data, None where there is none."""
    parent = RunFiles(run).parent_on_same_data
    return parent.run if parent else None


def held_out_losses(run: Run) -> list[float]:
    """Every held-out loss up to the run's end, oldest first, parents included as in `full_history`."""
    return [one.loss for one in RunFiles(run).evaluations]


def judge(run: Run) -> Judgement | None:
    """The verdict on a run with its reason; None where no step was logged."""
    return RunFiles(run).judged


def keeps_best(run: Run) -> bool:
    """Whether the adapter that a run serves is that of the lowest held-out loss by choice."""
    return RunFiles(run).keeps_best


def exported(found: RunFiles) -> tuple[Mapping[str, Any], ...]:
    """The GGUF files of a run with their sizes in bytes; where an epoch is picked, also whether they are made of it."""
    run, picked = found.run, found.picked
    files = sorted(path for path in run.exports.glob("*.gguf") if path.is_file()) if run.exports.is_dir() else []
    listed: list[dict[str, Any]] = [{"file": path.name, "bytes": path.stat().st_size} for path in files]
    if picked is None:
        return tuple(listed)
    served, made_of = epochs.weights_digest(picked.folder), {name: one.adapter for name, one in found.artifacts}
    return tuple(one | {"of_picked": made_of.get(one["file"]) == served} for one in listed)
