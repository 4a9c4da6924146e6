"""The users' checklists before, during and after a training, answered item by item from what the diagnosis knows.

An item that no file answers is open and says how to answer it: a diagnosis loads no model and asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fasttune.analysis.training_facts import Training
from fasttune.console import Finding, _
from fasttune.runs import judgement

Answer = Literal["yes", "no", "open"]
Stage = Literal["before", "during", "after"]
TARGET_LOSS, TARGET_ACCURACY = judgement.BANDS[1][0], judgement.ACCURACY_BANDS[1][0]  # the users' targets: 0.3 and 0.9


@dataclass(frozen=True)
class Item:
    """A line of a checklist: the stage, the question's name, the question, the answer, and what it rests on."""

    stage: Stage
    name: str
    question: str
    answer: Answer
    reason: str = ""


def checklist(training: Training, findings: Sequence[Finding]) -> list[Item]:
    """All items, in the sequence of the users' document."""
    codes = {one.code for one in findings}
    return [*before(training, codes), *during(training, codes), *after(training, codes)]


def answered(is_so: bool | None) -> Answer:
    """yes, no, or open for None."""
    return "open" if is_so is None else "yes" if is_so else "no"


def before(training: Training, codes: set[str]) -> list[Item]:
    """Data, settings, GPU."""
    wrong_data = codes & {"too-little-data", "template-mismatch", "system-prompt-mismatch", "zero-gradient"}
    data = False if wrong_data else True if training.is_ours else None
    wrong = codes & {"learning-rate-too-high", "learning-rate-too-low", "rank-too-high", "rank-too-low"}
    return [
        Item("before", "data", _("Data checked: format and contents"), answered(data),
             ", ".join(sorted(wrong_data)) or (_("every sample was read and tokenized") if training.is_ours else
             _("the log does not say"))),
        Item("before", "settings", _("Settings are reasonable"), answered(not wrong), ", ".join(sorted(wrong))),
        Item("before", "gpu", _("A GPU computes, not the CPU"),
             answered(training.device == "cuda" if training.device else None),
             training.device_name or _("the log does not say")),
    ]  # fmt: skip


def during(training: Training, codes: set[str]) -> list[Item]:
    """Loss, accuracy, held-out loss, continued or restarted."""
    falls = not codes & {"diverged", "plateau", "not-a-number", "zero-gradient"} and training.judged is not None
    falls = falls and training.judged is not None and training.judged.verdict != judgement.NOTHING_LEARNED
    accuracies = quarters([one.accuracy for one in training.curve.points if one.accuracy is not None])
    evaluated = training.curve.evaluations
    fallen = None if len(evaluated) < 2 else "over-fitting" not in codes and evaluated[-1].loss < evaluated[0].loss
    return [
        Item("during", "loss", _("The loss falls steadily"), answered(falls), loss_figures(training)),
        Item("during", "accuracy", _("The token accuracy rises"),
             answered(accuracies[1] > accuracies[0] if accuracies else None),
             _("{first:.1%} to {last:.1%}", first=accuracies[0], last=accuracies[-1]) if accuracies else
             _("the log does not say")),
        Item("during", "held-out", _("The held-out loss falls too (no over-fitting)"), answered(fallen),
             held_out_figures(training)),
        Item("during", "continued", _("Continued, not restarted"),
             answered("restarted-instead-of-continued" not in codes)),
    ]  # fmt: skip


def quarters(values: Sequence[float]) -> list[float]:
    """The means of the first and the last quarter; none for fewer than two values."""
    part = max(1, len(values) // 4)
    return [fmean(values[:part]), fmean(values[-part:])] if len(values) > 1 else []


def held_out_figures(training: Training) -> str:
    """First, best and last held-out loss."""
    evaluated = training.curve.evaluations
    if not evaluated:
        return _("nothing is held out")
    if len(evaluated) == 1:
        return _("computed once: {loss:.3f}", loss=evaluated[0].loss)
    best = judgement.best_evaluation(evaluated)
    return _("{first:.3f}, best {best:.3f}, last {last:.3f}", first=evaluated[0].loss, best=best.loss,
             last=evaluated[-1].loss)  # fmt: skip


def loss_figures(training: Training) -> str:
    """First and last loss."""
    points, means = training.curve.points, training.means
    return _("{first:.3f} to {last:.3f}", first=points[0].loss, last=means.loss) if points and means else ""


def after(training: Training, codes: set[str]) -> list[Item]:
    """The users' targets, the files, the answers."""
    means = training.means
    accuracy = None if means is None or judgement.accuracy_band(means.accuracy) is None else means.accuracy
    wrong_files = codes & {
        "export-missing",
        "export-far-off",
        "unfinished",
    }
    bad_answers = codes & {"parrots-training-data", "babble", "out-of-character"}
    return [
        Item("after", "loss", _("The loss is 0.1 to 0.3"), answered(means is not None and means.loss < TARGET_LOSS),
             f"{means.loss:.3f}" if means else ""),
        Item("after", "accuracy", _("The token accuracy is above 0.9"),
             answered(accuracy > TARGET_ACCURACY if accuracy is not None else None),
             f"{accuracy:.1%}" if accuracy is not None else _("the log does not say")),
        Item("after", "files", _("The model's files are complete"),
             answered(not wrong_files if training.is_ours else None),
             ", ".join(sorted(wrong_files)) or ("" if training.is_ours else _("not looked at: another trainer's "
                                                                              "files"))),
        Item("after", "answers", _("It answers well when it is asked"), answered(False if bad_answers else None),
             ", ".join(sorted(bad_answers)) or _("only you can tell: talk to it")),
    ]  # fmt: skip
