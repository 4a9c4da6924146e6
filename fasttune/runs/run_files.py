"""The files of a run and of those that it continued, each read once: a figure of a run takes the plans and histories of
all that were before it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fasttune.console import FasttuneError
from fasttune.runs import documents, epochs, judgement, store
from fasttune.runs.curves import Evaluation
from fasttune.runs.documents import ArtifactDocument, PlanDocument
from fasttune.runs.epochs import KeptEpoch
from fasttune.runs.history import read_history
from fasttune.runs.judgement import Judgement
from fasttune.runs.store import Run


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run say. Every property raises FasttuneError where a file that it needs is damaged."""

    run: Run

    @cached_property
    def plan(self) -> PlanDocument | None:
        """The plan; None where the run has none."""
        return documents.read_plan(self.run) if self.run.plan.is_file() else None

    @cached_property
    def created(self) -> str:
        """When the run began, UTC, ISO 8601; empty where it has no provenance."""
        return documents.read_provenance(self.run).created if self.run.provenance.is_file() else ""

    @cached_property
    def picked(self) -> KeptEpoch | None:
        """The epoch whose adapter was put in place of the run's own."""
        return epochs.picked_epoch(self.run)

    @cached_property
    def own_history(self) -> list[dict[str, Any]]:
        """The lines that the run has logged itself, oldest first."""
        return read_history(self.run)

    # With the runs before it ----------------------------------------------------------------------------------------

    @cached_property
    def parent(self) -> RunFiles | None:
        """The run that this one continued from; None where it was deleted since, also where its number was given again,
        and where its documents are damaged."""
        parent = store.by_id(self.run.root, self.plan.parent) if self.plan and self.plan.parent else None
        if parent is None or not parent.plan.is_file() or not is_older(parent, self.run):
            return None
        found = RunFiles(parent)
        with contextlib.suppress(FasttuneError):
            return found if found.plan and found.created <= self.created else None
        return None

    @cached_property
    def parent_on_same_data(self) -> RunFiles | None:
        """The parent whose checkpoint the run continued from with the same data, None where there is none."""
        plan, parent = self.plan, self.parent
        if plan is None or plan.start != "checkpoint" or parent is None or parent.plan is None:
            return None
        return parent if parent.plan.data_fingerprint == plan.data_fingerprint else None

    @cached_property
    def began_from_base(self) -> bool:
        """Whether the first line of the full history is that of a base."""
        parent = self.parent_on_same_data
        return parent.began_from_base if parent else self.plan is not None and self.plan.start == "base"

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The history lines up to the run's end, oldest first, those of the parents included whose checkpoint it
        continued from with the same data, up to that checkpoint."""
        parent = self.parent_on_same_data
        before: list[dict[str, Any]] = []
        with contextlib.suppress(FasttuneError):  # a damaged history of the parent is a finding about the parent
            before = parent.history if parent else []
        begins = self.plan.start_step if before and self.plan else 0
        return [*(line for line in before if not begins or line["step"] <= begins), *self.own_history]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every held-out loss of the full history, oldest first."""
        return judgement.evaluations(self.history)

    @cached_property
    def missing_exports(self) -> tuple[str, ...]:
        """The types that the plan of a finished run asks for and no GGUF file of it has, as after a kill while they
        were made, or because a file was refused. `auto` is missing where there is none at all."""
        requested = self.plan.values.get("export.gguf") or () if self.plan else ()
        if self.run.status != "finished" or not requested:
            return ()
        made = {document.type for _name, document in self.artifacts}
        return tuple(one for one in requested if one not in made and not (one == "auto" and made))

    @cached_property
    def artifacts(self) -> tuple[tuple[str, ArtifactDocument], ...]:
        """The GGUF files of the run with their documents; one without a readable document is left out."""
        found = []
        for path in sorted(self.run.exports.glob("*.gguf")) if self.run.exports.is_dir() else []:
            with contextlib.suppress(FasttuneError):
                found.append((path.name, documents.read(path.with_suffix(".json"), ArtifactDocument)))
        return tuple(found)

    # What follows ---------------------------------------------------------------------------------------------------

    @cached_property
    def keeps_best(self) -> bool:
        """Whether the adapter that the run serves is that of the lowest held-out loss by choice: early stopping's, or
        that of the person who picked it."""
        if self.picked is None:
            return bool(self.plan and self.plan.values.get("train.early_stopping_patience"))
        return bool(self.evaluations) and judgement.best_evaluation(self.evaluations).step == self.picked.step

    @cached_property
    def adapter_eval_loss(self) -> float | None:
        """The held-out loss of the adapter that the run serves: of a picked epoch its own, with early stopping the
        lowest, else the last; None where there is none."""
        if self.picked:
            return self.picked.eval_loss
        losses = [one.loss for one in self.evaluations]
        if not losses:
            return None
        return min(losses) if self.keeps_best else losses[-1]

    @cached_property
    def own_eval_loss(self) -> float | None:
        """The held-out loss of the run's own adapter, which the training ended with, whatever is picked."""
        losses = [one.loss for one in self.evaluations]
        early = bool(self.plan and self.plan.values.get("train.early_stopping_patience"))
        return None if not losses else min(losses) if early else losses[-1]

    @cached_property
    def judged(self) -> Judgement | None:
        """The verdict on the run with its reason; None where no step was logged."""
        if self.plan is None or not any("loss" in line for line in self.own_history):
            return None
        return judgement.judge(
            self.history,
            self.plan.steps_per_epoch,
            self.plan.val_samples,
            from_base=self.began_from_base,
            keeps_best=self.keeps_best,
            served=self.adapter_eval_loss,
        )


def is_older(parent: Run, run: Run) -> bool:
    """Whether a parent's number is below its child's, in one series: damaged documents that name each other would make
    an endless chain."""
    return parent.series != run.series or store.run_number(parent) < store.run_number(run)
