"""`fasttune diagnose`: what is wrong with a training and what to do next, from its files alone; no model is loaded.

    a run of ours, or a folder of another trainer
      -> Training          its curves, the verdict of judgement.py, what is known of its data
      -> findings          curve_findings.py, and for our runs run_findings.py
      -> Diagnosis         the verdict in one sentence, the evidence, one command

Causes are mended in this sequence, for each hides the ones after it: template, mask, data, learning rate and epochs,
size of the base; an export is repeated when the training is well. `Diagnosis.command` is that of the first cause
that was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.analysis import log_remedies, run_findings, trainer_logs, words
from fasttune.analysis.checklist import Item, checklist
from fasttune.analysis.curve_findings import curve_findings
from fasttune.analysis.evidence import Fact, evidence
from fasttune.analysis.remedies import RunRemedies
from fasttune.analysis.trainer_logs import TrainerLog
from fasttune.analysis.training_facts import Training, history_of
from fasttune.command import command_line, runs_option
from fasttune.console import Finding, UsageError, _, error, usage_error, worst_first
from fasttune.runs import checkpoints, curves, documents, epochs, judgement, store, summary
from fasttune.runs.curves import Curve
from fasttune.runs.documents import PlanDocument
from fasttune.runs.store import Run

OURS = "fasttune"  # the trainer of our own runs
HELD_OUT = ("no-held-out-data", "not-enough-evidence")
# What is mended first: template and system prompt, mask, data, learning rate and epochs, size of the base.
CAUSES = (
    ("template-mismatch", "system-prompt-mismatch"),
    ("not-a-number", "zero-gradient"),
    ("picked-before-best",),
    ("parrots-training-data",),
    HELD_OUT,
    ("restarted-instead-of-continued", "diverged", "learning-rate-too-high", "learning-rate-too-low", "over-fitting",
     "best-checkpoint-was-earlier", "memorised", "under-trained", "plateau", "gradient-spikes", "schedule-jump",
     "babble", "out-of-character", "rank-too-high", "rank-too-low"),
    ("too-little-data",),  # mended by writing more, which nobody can type: what its curves say to type comes before
    ("base-too-small",),
    ("unfinished", "export-missing", "export-far-off"),
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What `fasttune diagnose` shows: findings worst first, figures with their steps, the finding whose remedy is to be
    typed or changed next (None for nothing), the users' checklist, and of a run of ours the verdict that
    `fasttune runs` has, with its reason."""

    where: str
    trainer: str
    findings: tuple[Finding, ...]
    evidence: tuple[Fact, ...]
    because: Finding | None
    checklist: tuple[Item, ...]
    curve: Curve
    verdict_line: str = ""

    @property
    def command(self) -> str:
        """What to type or to change next; "" for nothing."""
        return self.because.fix.split("`")[1] if self.because else ""

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to mend."""
        return self.because is not None and self.because.code == "healthy"

    @property
    def verdict(self) -> str:
        """The first finding in one sentence."""
        return self.findings[0].what if self.findings else _("nothing is wrong, and nothing says that it is right")


def diagnose(root: Path, name: str) -> Diagnosis:
    """The diagnosis of a run or a series of the runs folder `root`, or of a folder or a log of another trainer.

    Raises UsageError where the name is none of these, and FasttuneError where a document of the run is damaged.
    """
    path = Path(name)
    if store.find_below(root, name) is None and not (path / "plan.json").is_file():
        log = trainer_logs.find_log(path)
        if log is not None:
            return of_log(trainer_logs.read_log(log))
        if path.exists():
            raise no_log_in(path)
    return of_run(store.find(root, name))


def no_log_in(path: Path) -> UsageError:
    """The error for a folder, or a file, that holds no log."""
    what = _("there is no log of a training in it")
    fix = _("name the trainer's output folder: the one with trainer_state.json, trainer_log.jsonl, logging.jsonl or "
            "checkpoint-N/ in it")  # fmt: skip
    return usage_error("no-training-log", what, where=str(path), fix=fix)


def diagnosed(training: Training, trainer: str, findings: Sequence[Finding], curve: Curve) -> Diagnosis:
    """The diagnosis that findings come to."""
    ranked = tuple(worst_first(findings))
    return Diagnosis(
        training.where, trainer, ranked, tuple(evidence(training)), deciding(ranked, training),
        tuple(checklist(training, ranked)), curve,
    )  # fmt: skip


def deciding(findings: Sequence[Finding], training: Training) -> Finding | None:
    """The finding whose remedy is the next thing to type or to change: that of the first cause, in the sequence of
    CAUSES; else the first one that has a remedy. None where none has.

    Where nothing tells whether a run of ours over-fits, enough is held out before its epochs are judged.
    """
    cannot_tell = training.is_ours and training.judged is not None and training.judged.verdict == judgement.CANNOT_TELL
    told = HELD_OUT if cannot_tell else ()
    by_cause = [one for codes in CAUSES for one in findings
                if one.code in codes and (one.level != "info" or one.code in told)]  # fmt: skip
    return next((one for one in [*by_cause, *findings] if one.fix.startswith("`")), None)


# Another trainer's --------------------------------------------------------------------------------------------------


def of_log(log: TrainerLog) -> Diagnosis:
    """The diagnosis of another trainer's training."""
    training = training_of_log(log)
    findings = curve_findings(training)
    if log.unreadable:
        lines = ", ".join(str(number) for number in log.unreadable[:10])
        what = _("lines of the log that can't be read, and are left out: {lines}", lines=lines)
        findings.append(Finding("log-damaged", "info", str(log.path), what))
    return diagnosed(training, log.trainer, findings, training.curve)


def training_of_log(log: TrainerLog) -> Training:
    """What is known of another trainer's training."""
    draft = Training(str(log.path), log.attempts, 1, None, log_remedies.of_log(log, None, None))
    curve = draft.curve
    per_epoch = steps_per_epoch(curve)
    judged = judgement.judge(history_of(curve), per_epoch, log.held_out)
    best = judgement.best_evaluation(curve.evaluations).step / per_epoch if curve.evaluations else None
    return Training(
        where=str(log.path), attempts=log.attempts, steps_per_epoch=per_epoch, judged=judged,
        remedies=log_remedies.of_log(log, curves.peak_learning_rate(curve.points), best),
        held_out_samples=log.held_out, total_steps=log.total_steps, rank=log.rank, base=log.base, is_ours=False,
        best_kept=best_is_kept(curve, log.checkpoints) if log.checkpoints else None,
    )  # fmt: skip


def best_is_kept(curve: Curve, steps: Sequence[int]) -> bool | None:
    """Whether the checkpoint with the lowest held-out loss is among those of these steps."""
    return judgement.best_evaluation(curve.evaluations).step in steps if curve.evaluations else None


def steps_per_epoch(curve: Curve) -> int:
    """Steps of an epoch, by how far step and epoch counter go from the last seam on; the whole curve where no epoch is
    logged, or less than one was trained."""
    points = [one for one in curve.points if one.epoch is not None]
    begins = max(
        (n for n in range(1, len(points)) if (points[n].epoch or 0) < (points[n - 1].epoch or 0) - 0.05), default=0
    )
    part = points[begins:]
    if len(part) < 2 or (part[-1].epoch or 0.0) <= (part[0].epoch or 0.0):
        return max(1, curve.points[-1].step if curve.points else 1)
    return max(1, round((part[-1].step - part[0].step) / ((part[-1].epoch or 0.0) - (part[0].epoch or 0.0))))


# Our own ------------------------------------------------------------------------------------------------------------


def of_run(run: Run) -> Diagnosis:
    """The diagnosis of a run of ours. Raises FasttuneError where it has not trained a step yet."""
    plan = documents.read_plan(run)
    history = summary.full_history(run)
    if not any("loss" in line for line in history):
        what = _("{run} has no logged step yet", run=run.id)
        fix = f"`{command_line(['runs', run.series, *runs_option(run.root)])}`"
        raise error("nothing-trained-yet", what, where=run.id, fix=fix)
    curve = curves.curve_of(history)
    helps = remedies_of_run(run, plan, curve)
    training = training_of_run(run, plan, curve, helps)
    about_run = run_findings.findings(run, plan, training, helps)
    is_well = all(one.level == "info" for one in about_run)
    findings = [*[one for one in curve_findings(training) if is_well or one.code != "healthy"], *about_run]
    if run.status == "stopped":
        what = _(
            "it was stopped at step {step} of {total}", step=training.curve.points[-1].step, total=plan.total_steps
        )
        findings.append(Finding("unfinished", "warning", run.id, what, "", run_findings.typed(helps.resume)))
    found = diagnosed(training, OURS, findings, training.curve)
    return replace(found, verdict_line=words.verdict_line(summary.read_figures(run)))


def remedies_of_run(run: Run, plan: PlanDocument, curve: Curve) -> RunRemedies:
    """What helps a run of ours."""
    if not curve.evaluations:
        return RunRemedies(run, plan)
    best = judgement.best_evaluation(curve.evaluations).step
    earlier = next((one for one in epochs.kept_epochs(run) if one.step == best), None)
    return RunRemedies(run, plan, best / plan.steps_per_epoch if best else None, earlier)


def training_of_run(run: Run, plan: PlanDocument, curve: Curve, helps: RunRemedies) -> Training:
    """What is known of a run of ours."""
    best = judgement.best_evaluation(curve.evaluations).step if curve.evaluations else None
    kept = [checkpoints.checkpoint_step(folder) for folder in checkpoints.list_checkpoints(run)]
    kept += [helps.earlier.step] if helps.earlier else []
    provenance = documents.read_provenance(run) if run.provenance.is_file() else None
    continued, device = (provenance.continuations, provenance.device) if provenance else ((), {})
    return Training(
        where=run.id, attempts=(curve,), steps_per_epoch=plan.steps_per_epoch, judged=summary.judge(run),
        remedies=helps,
        held_out_samples=plan.val_samples, total_steps=plan.total_steps, samples=plan.train_samples,
        rank=plan.values.get("lora.r"), alpha=plan.values.get("lora.alpha"),
        base=plan.values.get("model.base"), device=device.get("kind", ""),
        device_name=device.get("name", ""),
        keeps_best=summary.keeps_best(run),
        best_kept=best in kept if best and kept else None,
        check_batches=tuple((one.step, one.loss_when_saved, one.loss) for one in continued
                            if one.step is not None and one.loss_when_saved is not None and one.loss is not None),
    )  # fmt: skip
