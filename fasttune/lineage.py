"""What `fasttune runs` shows: the runs of a series as a tree from parent to child, and what each one came to.

Epochs, loss and accuracy are those of the end of training. The loss is the mean over the last epoch, so that every
sample has its say; the verdict follows from it and from the held-out loss:

    below 0.1 excellent, to 0.3 good, to 0.5 fair, above not-enough;
    over-fitting where the held-out loss ended more than 5 % above its best
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from fasttune import runs
from fasttune.console import _, data, print_json, say, usage_error
from fasttune.runs import Run
from fasttune.strict import as_toml

BANDS = ((0.1, "excellent"), (0.3, "good"), (0.5, "fair"))
NOT_ENOUGH, OVER_FITTING = "not-enough", "over-fitting"
RISE = 1.05
# What differs from parent to child by nature, or says the same as the epochs do.
NOT_A_CHANGE = ("name", "strategy", "continue.", "train.epochs", "train.max_steps")


@dataclass(frozen=True)
class Change:
    """A setting that a run has otherwise than its parent; "epochs" is the total, "samples" the data's contents."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Figures:
    """What a run came to: one entry of `fasttune runs --json`.

    `parent` is None for a run from the base, and where the parent is no more. `loss` is the last step's, `epoch_loss`
    the mean of the last epoch; losses, accuracy and verdict are None where no step was logged.
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


# Showing ------------------------------------------------------------------------------------------------------------


def runs_tree(root: Path, series: str | None, *, as_json: bool) -> None:
    """Print the runs of one or all series.

    Raises UsageError with the names there are where there is no such series.
    """
    if series and not runs.list_runs(root, series):
        runs.find(root, series)
    every = {name: read_series(root, name) for name in ([series] if series else runs.list_series(root))}
    if as_json:
        print_json({"runs": [asdict(one) for figures in every.values() for one in figures]})
        return
    if not every:
        say(_("no runs in {root} yet", root=root))
    for name, figures in every.items():
        data.print(tree(name, figures))


def tree(name: str, figures: Sequence[Figures]) -> Tree:
    """A series with each run below its parent."""
    whole = Tree(Text(name, style="bold", overflow="fold"))
    branches: dict[str, Tree] = {}
    for one in figures:  # parents are older than their children
        branches[one.id] = branches.get(one.parent or "", whole).add(label(one))
    return whole


def label(one: Figures) -> Text:
    """The lines of one run: name and verdict; figures; what was changed; files."""
    head = Text(one.id, style="bold", overflow="fold")
    said = [status_word(one.status)] if one.status != "finished" else [verdict_word(one.verdict)] * bool(one.verdict)
    said += [_("in use")] * one.current
    head.append(f"  {', '.join(said)}" if said else "", style="green" if one.current else "")
    head.append(f"  {one.date}", style="dim")
    for line in (figures_line(one), changes_line(one), files_line(one)):
        head.append(f"\n{line}" if line else "", style="not bold")
    return head


def figures_line(one: Figures) -> str:
    """Epochs, losses and accuracy in words."""
    parts = [_("{epochs:.3g} epochs, {steps} steps", epochs=one.epochs, steps=one.steps)]
    if one.first_loss is not None and one.epoch_loss is not None:
        parts.append(_("loss {first:.3f} → {last:.3f}", first=one.first_loss, last=one.epoch_loss))
    if one.eval_loss is not None:
        parts.append(_("held-out {loss:.3f} (best {best:.3f})", loss=one.eval_loss, best=one.best_eval_loss))
    if one.mean_token_accuracy is not None:
        parts.append(_("accuracy {accuracy:.1%}", accuracy=one.mean_token_accuracy))
    return "; ".join(parts)


def changes_line(one: Figures) -> str:
    """What is otherwise than in the parent; empty for a run without one."""
    if one.parent is None:
        return ""
    return _("changed: {changes}", changes=in_words(one.changes)) if one.changes else _("changed: nothing")


def in_words(changed: Sequence[Change]) -> str:
    """`epochs 2 → 3.5, lora.r 8 → 16`"""
    return ", ".join(f"{one.key} {value_word(one.old)} → {value_word(one.new)}" for one in changed)


def files_line(one: Figures) -> str:
    """The GGUF files with their sizes."""
    return ", ".join(f"{file['file']} {size_word(file['bytes'])}" for file in one.exports)


def value_word(value: Any) -> str:
    """A setting's value as one would write it, numbers short; a dash for none."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else as_toml(value)


def size_word(size: int) -> str:
    """Bytes as people read them: 8.4 MB, 531 MB, 1.6 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def verdict_word(verdict: str | None) -> str:
    """A verdict in the user's language; a dash for none."""
    words = {
        "excellent": _("excellent"),
        "good": _("good"),
        "fair": _("fair"),
        NOT_ENOUGH: _("not enough"),
        OVER_FITTING: _("over-fitting"),
    }
    return words[verdict] if verdict else "–"


def status_word(status: str) -> str:
    """A run's state in the user's language."""
    return {"running": _("running"), "finished": _("finished"), "stopped": _("stopped")}[status]


def state_line(one: Figures) -> str:
    """A run in one short line: `003-retune finished, 3.5 epochs, loss 0.212, held-out 0.340: good`."""
    name = one.id.partition("/")[2]
    parts = [f"{name} {status_word(one.status)}", _("{epochs:.3g} epochs", epochs=one.epochs)]
    if one.epoch_loss is not None:
        parts.append(_("loss {loss:.3f}", loss=one.epoch_loss))
    if one.eval_loss is not None:
        parts.append(_("held-out {loss:.3f}", loss=one.eval_loss))
    return ", ".join(parts) + (f": {verdict_word(one.verdict)}" if one.verdict else "")


def what_is_there(root: Path, name: str, *, as_json: bool) -> None:
    """Print the run that a series' name stands for and how to use it, instead of training.

    Raises UsageError where no run of the series was finished.
    """
    run = runs.current(root, name)
    if run is None or run.status != "finished":
        raise usage_error(
            "nothing-to-use",
            _("{name} has no finished run", name=name),
            where=str(root),
            fix=_("--on-existing resume goes on with a stopped one, new trains another"),
        )
    figures = read_figures(run, current=True)
    if as_json:
        print_json(asdict(figures) | {"run": run.id, "skipped": True})
        return
    say(_("nothing is trained; this is what is there"))
    data.print(label(figures))
    use = _("talk to it: fasttune chat {series}", series=name) if figures.exports else ""
    make = _("make a GGUF file: fasttune export {series} --gguf q8_0", series=name)
    data.print(use or make, markup=False, soft_wrap=True)


# Reading ------------------------------------------------------------------------------------------------------------


def read_series(root: Path, name: str) -> list[Figures]:
    """All runs of a series, oldest first."""
    current = runs.current(root, name)
    return [read_figures(run, run == current) for run in runs.list_runs(root, name)]


def read_figures(run: Run, current: bool = False) -> Figures:
    """What a run came to, from the files of its folder; also of one that was stopped before it had them."""
    plan, parent = document(run.plan), living_parent(run)
    history = runs.read_history(run)
    trained = [line for line in history if "loss" in line]
    evaluated = held_out(run)
    last = trained[-1] if trained else {}
    epoch_loss = last_epoch(trained, plan.get("steps_per_epoch", 1))
    reached = chosen_loss(plan, evaluated)
    return Figures(
        id=run.id,
        current=current,
        strategy=plan.get("strategy") or run.id.partition("-")[2],
        parent=parent.id if parent else None,
        changes=changes(document(parent.plan), plan) if parent else (),
        status=run.status,
        steps=last.get("step", 0),
        epochs=last.get("epoch", 0.0),
        first_loss=trained[0]["loss"] if trained else None,
        loss=last.get("loss"),
        epoch_loss=epoch_loss,
        eval_loss=reached,
        best_eval_loss=min(evaluated, default=None),
        mean_token_accuracy=last.get("mean_token_accuracy"),
        verdict=verdict(epoch_loss, reached, min(evaluated, default=None)),
        exports=exported(run),
        date=began(run),
        folder=str(run.folder),
    )


def document(path: Path) -> dict[str, Any]:
    """A JSON file of a run; empty where the run was killed before it was written."""
    return dict(runs.read_json(path)) if path.is_file() else {}


def living_parent(run: Run) -> Run | None:
    """The run that this one continued from; None where it was overwritten since, also by one of the same number."""
    name = document(run.plan).get("parent")
    parent = Run(run.root, name) if name else None
    if parent is None or not parent.plan.is_file():
        return None
    return parent if created(parent) <= created(run) else None


def created(run: Run) -> str:
    """When a run began, UTC, ISO 8601; empty where it was killed before it said so."""
    return str(document(run.provenance).get("created", ""))


def began(run: Run) -> str:
    """When a run began, in local time to the minute."""
    moment = created(run)
    began_at = datetime.fromisoformat(moment) if moment else datetime.fromtimestamp(run.folder.stat().st_mtime)
    return began_at.astimezone().strftime("%Y-%m-%d %H:%M")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """What one plan.json has otherwise than another, settings that only follow from others left out."""
    if not before or not after:
        return ()
    old = {entry["key"]: entry["value"] for entry in before["settings"]}
    found = [Change("epochs", before["epochs"], after["epochs"])]
    found += [
        Change(entry["key"], old.get(entry["key"]), entry["value"])
        for entry in after["settings"]
        if not entry["key"].startswith(NOT_A_CHANGE) and not entry["source"].startswith("default (")
    ]
    found.append(Change("samples", samples_word(before), samples_word(after)))
    return tuple(one for one in found if json.dumps(one.old) != json.dumps(one.new))


def samples_word(plan: Mapping[str, Any]) -> str:
    """How many samples, and the beginning of the fingerprint of their contents."""
    return f"{plan['train_samples']}+{plan['val_samples']} ({plan['data_fingerprint'][:8]})"


def last_epoch(trained: Sequence[Mapping[str, Any]], per_epoch: int) -> float | None:
    """Mean loss of the steps of the last epoch's length."""
    lines = runs.last_epoch(trained, per_epoch)
    return runs.mean(lines, "loss") if lines else None


def held_out(run: Run) -> list[float]:
    """Held-out losses up to the run's end, those of the parents whose checkpoint it went on from included."""
    plan, parent = document(run.plan), living_parent(run)
    before: list[float] = []
    if parent and plan["start"] == "checkpoint":
        same = document(parent.plan)["data_fingerprint"] == plan["data_fingerprint"]
        before = held_out(parent) if same else []
    return before + [line["eval_loss"] for line in runs.read_history(run) if "eval_loss" in line]


def chosen_loss(plan: Mapping[str, Any], evaluated: Sequence[float]) -> float | None:
    """The held-out loss of the weights that became the adapter: the best with early stopping, else the last."""
    if not evaluated:
        return None
    early = any(one["key"] == "train.early_stopping_patience" and one["value"] for one in plan.get("settings", ()))
    return min(evaluated) if early else evaluated[-1]


def verdict(loss: float | None, held_out_loss: float | None, best: float | None) -> str | None:
    """One word for a training, by the bands at the top of this file; None where no step was logged."""
    if loss is None:
        return None
    if held_out_loss is not None and best is not None and held_out_loss > RISE * best:
        return OVER_FITTING
    return next((word for limit, word in BANDS if loss < limit), NOT_ENOUGH)


def exported(run: Run) -> tuple[Mapping[str, Any], ...]:
    """The GGUF files of a run with their sizes in bytes."""
    files = sorted(run.exports.glob("*.gguf")) if run.exports.is_dir() else []
    return tuple({"file": path.name, "bytes": path.stat().st_size} for path in files)
