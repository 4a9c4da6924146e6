"""A training as it is diagnosed, whoever trained it: its curves, what is known of its data, and what helps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fasttune.analysis.log_remedies import LogRemedies
from fasttune.analysis.remedies import RunRemedies
from fasttune.runs import bands, seams
from fasttune.runs.curves import Curve
from fasttune.runs.history import EpochMeans, last_epoch
from fasttune.runs.judgement import Judgement
from fasttune.runs.seams import Seam


@dataclass(frozen=True)
class Training:
    """What the rules of curve_findings.py read.

    `where` names it for people; `attempts` are the trainings that one log or folder holds, oldest first.
    `held_out_samples` is None where nobody knows; `samples`, `rank`, `alpha` and `total_steps` too. `check_batches` are
    the losses of the check batch (when saved, now) of each continuation of a run of our own.
    """

    where: str
    attempts: tuple[Curve, ...]
    steps_per_epoch: int
    judged: Judgement | None
    remedies: RunRemedies | LogRemedies
    held_out_samples: int | None = None
    total_steps: int | None = None
    samples: int | None = None
    rank: int | None = None
    alpha: int | None = None
    base: str | None = None
    is_ours: bool = True
    device: str = ""
    device_name: str = ""
    keeps_best: bool = False
    best_kept: bool | None = None
    check_batches: tuple[tuple[int, float, float], ...] = ()

    @cached_property
    def rows(self) -> int:
        """How many logged steps there are in all."""
        return sum(len(one.points) for one in self.attempts)

    @cached_property
    def whole(self) -> Curve:
        """The training that ended last, with what it continued from."""
        return seams.joined(self.attempts)

    @cached_property
    def restarts(self) -> tuple[Seam, ...]:
        """Where the training began again from an untrained model, oldest first."""
        found: list[Seam] = []
        first_loss = self.attempts[0].points[0].loss
        for index, curve in enumerate(self.attempts):
            before = self.attempts[index - 1] if index else None
            again = seams.began_again(before, curve, first_loss) if before else None
            found += [again] if again else []
            found += self.restarts_in_whole if curve is self.whole else seams.restarts(curve.finite)
        return tuple(found)

    @cached_property
    def curve(self) -> Curve:
        """The curve that the result comes from: since the last restart, finite losses only."""
        inner = self.restarts_in_whole
        return self.whole.finite.since(inner[-1].step) if inner else self.whole.finite

    @cached_property
    def restarts_in_whole(self) -> list[Seam]:
        """Where the training that ended last began again, by its losses alone."""
        return seams.restarts(self.whole.finite)

    @cached_property
    def means(self) -> EpochMeans | None:
        """Mean loss and accuracy over the last epoch."""
        points = self.curve.points
        last = self.curve.since(points[-1].step - self.steps_per_epoch + 1) if points else self.curve
        return last_epoch(history_of(last), self.steps_per_epoch)

    @property
    def suiting_learning_rate(self) -> float:
        """The learning rate that suits the epochs that were planned, where they and the samples are known."""
        epochs = self.total_steps / self.steps_per_epoch if self.total_steps else None
        return bands.suiting_learning_rate(epochs, self.samples, self.alpha, self.base)

    def epoch(self, step: int) -> float:
        """The epoch of a step."""
        return step / self.steps_per_epoch


def history_of(curve: Curve) -> list[Mapping[str, Any]]:
    """A curve as lines of history.jsonl, which judgement.py reads; NaN for an accuracy that was not logged."""
    lines: list[tuple[int, int, dict[str, Any]]] = []
    for point in curve.points:
        line = {"step": point.step, "loss": point.loss, "learning_rate": point.learning_rate}
        accuracy = math.nan if point.accuracy is None else point.accuracy
        lines.append((point.step, 0, {**line, "grad_norm": point.grad_norm, "mean_token_accuracy": accuracy}))
    lines += [(one.step, 1, {"step": one.step, "eval_loss": one.loss}) for one in curve.evaluations]
    return [line for _step, _kind, line in sorted(lines, key=lambda one: one[:2])]
