"""What a recipe's run will do: where it starts from and how many steps it takes. Decides, starts nothing.

strategy     starts from
fresh        the base
(any)        its own newest checkpoint, where the newest run of the series was stopped before its end
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fasttune import packing, runs
from fasttune.console import Finding, UsageError, _, usage_error
from fasttune.data import Dataset
from fasttune.recipe import Recipe, settings
from fasttune.runs import Run

OnExisting = Literal["resume", "new", "stop"]
# What a resumed run may change: none of it reaches the weights.
FREE = (
    "name",
    "export.",
    "probe.",
    "train.logging_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.report_to",
)


@dataclass(frozen=True)
class Plan:
    """A run before it starts. Epochs may be fractional; `total_steps` is what training will count up to."""

    recipe: Recipe
    dataset: Dataset
    steps_per_epoch: int
    total_steps: int

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    @property
    def system(self) -> str | None:
        """The system prompt the trained model is served with: the commonest one of the samples; None where none has
        one."""
        prompts = Counter(m.content for sample in self.dataset.train for m in sample.messages if m.role == "system")
        return prompts.most_common(1)[0][0] if prompts else None

    def document(self) -> dict[str, Any]:
        """plan.json: every resolved value with its source, and the counts that follow from the data."""
        return {
            "name": self.recipe.name,
            "strategy": self.recipe.strategy,
            "settings": [
                {"key": setting.key, "value": setting.value, "source": setting.source}
                for setting in settings(self.recipe)
            ],
            "data_fingerprint": self.dataset.fingerprint,
            "train_samples": len(self.dataset.train),
            "val_samples": len(self.dataset.val),
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "epochs": self.epochs,
        }


def decide(recipe: Recipe, dataset: Dataset) -> Plan:
    """The plan of a recipe for its data.

    Raises UsageError for a strategy that continues a run: this version trains fresh runs and resumes stopped ones.
    """
    if recipe.strategy != "fresh":
        raise usage_error(
            "strategy-not-available",
            _('strategy "{strategy}" is not available in this version', strategy=recipe.strategy),
            where=f"{recipe.path}: strategy",
            fix=_('use strategy = "fresh"'),
        )
    per_epoch = packing.steps_per_epoch(len(dataset.train), recipe.train.batch_size)
    total = recipe.train.max_steps or math.ceil(recipe.train.epochs * per_epoch)
    return Plan(recipe, dataset, per_epoch, total)


def run_to_resume(root: Path, plan: Plan, on_existing: OnExisting | None) -> Run | None:
    """The stopped run to go on with, or None for a new one.

    Raises UsageError where the series has runs and what to do with them was not said, or where the recipe or the data
    differ from what the stopped run began with.
    """
    earlier = runs.list_runs(root, plan.recipe.name)
    if not earlier or on_existing == "new":
        return None
    newest = earlier[-1]
    if newest.status == "stopped" and on_existing != "stop" and (newest.folder / "provenance.json").is_file():
        if changes := differences(newest, plan):
            raise UsageError(*changes)
        return newest
    raise usage_error(
        "series-exists",
        _("{name} has {count} run(s); the newest is {run}", name=plan.recipe.name, count=len(earlier), run=newest.id),
        where=str(root),
        fix=_("--on-existing new trains another one and keeps the old; `fasttune chat {name}` uses what is there; "
              "or give the recipe another name", name=plan.recipe.name),
    )  # fmt: skip


def differences(run: Run, plan: Plan) -> list[Finding]:
    """What a stopped run began with and the recipe or the data now say otherwise; a resumed run must not mix the
    two."""
    before = runs.read_json(run.plan)
    old = {entry["key"]: entry["value"] for entry in before["settings"]}
    new = {entry["key"]: entry["value"] for entry in plan.document()["settings"]}
    old["data"], new["data"] = before["data_fingerprint"], plan.dataset.fingerprint
    return [
        Finding(
            "resume-differs",
            "error",
            f"{run.id}: {key}",
            _("the stopped run began with {old}, now it is {new}", old=old.get(key), new=new.get(key)),
            why=_("a resumed run must equal one that was never stopped"),
            fix=_("set it back to resume, or use --on-existing new for a new run"),
        )
        for key in {**old, **new}
        if not key.startswith(FREE) and old.get(key) != new.get(key)
    ]
