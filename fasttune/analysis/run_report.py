"""All that a page shows of one run, read from the files in its folder; no model is loaded.

A part that can't be read is left out and named: of a run that was stopped, is damaged or was made by an older fasttune
the rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, TypeVar

from fasttune import files
from fasttune.analysis import answer_faults, diagnose, report_data
from fasttune.analysis.diagnose import Diagnosis
from fasttune.analysis.report_data import DataPicture, WorstSample
from fasttune.console import FasttuneError, Finding
from fasttune.runs import documents, epochs, history, store, summary
from fasttune.runs.documents import ArtifactDocument, PlanDocument, Probe, Provenance
from fasttune.runs.outcomes import FactScores
from fasttune.runs.run_files import RunFiles
from fasttune.runs.store import Run
from fasttune.runs.summary import Figures

Read = TypeVar("Read")
LOOKED_AT = 10_000  # characters of an answer that are searched for repetition and for what is out of character


@dataclass(frozen=True)
class EpochRow:
    """The figures of one epoch: means over its logged steps, and the last held-out loss up to its end."""

    epoch: float
    step: int
    loss: float | None
    accuracy: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class SeamRow:
    """Where a training was taken up again, with its proof: the check batch's loss when it was saved and now, None where
    the data is another; `step` and learning rates are None where the schedule began anew."""

    run: str
    from_: str
    step: int | None
    loss_when_saved: float | None
    loss: float | None
    learning_rate_before: float | None
    learning_rate: float | None

    @property
    def difference(self) -> float | None:
        """How far the two losses are apart."""
        return None if self.loss is None or self.loss_when_saved is None else abs(self.loss - self.loss_when_saved)


@dataclass(frozen=True)
class AnsweredEpoch:
    """A kept epoch with its answers by question, and how many of them repeat themselves, fall out of character, and are
    still the base's."""

    epoch: str
    step: int
    eval_loss: float | None
    answers: Mapping[str, str]
    repeating: int
    out_of_character: int
    as_base: int
    is_best: bool
    is_served: bool
    pick: str


@dataclass
class RunReport:
    """One run as a page shows it. A field is empty where the run has none of it, or it can't be read; `problems` says
    which can't. `history` are the lines up to its end, those of parents included that it continued from; `joined` are
    (run id, step that it began after) of each run in it that has such a parent, newest first."""

    run: Run
    figures: Figures | None = None
    plan: PlanDocument | None = None
    provenance: Provenance | None = None
    diagnosis: Diagnosis | None = None
    history: Sequence[Mapping[str, Any]] = ()
    joined: Sequence[tuple[str, int]] = ()
    seams: Sequence[SeamRow] = ()
    kept: Sequence[AnsweredEpoch] = ()
    probes: Sequence[Probe] = ()
    answered_by: str | None = None
    facts: FactScores | None = None
    worst: Sequence[WorstSample] = ()
    data: DataPicture | None = None
    series: Sequence[Figures] = ()
    exports: Sequence[tuple[str, int, ArtifactDocument | None]] = ()
    problems: list[Finding] = field(default_factory=list)
    with_series: bool = False

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def name(self) -> str:
        """003-retune, or `with_series`, beside runs of another one, linzhi/003-retune."""
        return self.run.id if self.with_series else self.run.id.rpartition("/")[2]

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch if self.plan else 1

    @cached_property
    def line_epochs(self) -> list[float]:
        """The epoch of each line of the history, once it is read."""
        return [self.epoch_of(line) for line in self.history]

    @cached_property
    def epoch_rows(self) -> list[EpochRow]:
        """The figures of each epoch, once the history is read."""
        return epoch_rows(self)

    def epoch_of(self, line: Mapping[str, Any]) -> float:
        """The epoch of a line of history.jsonl; by its step where the line does not say it."""
        epoch = line.get("epoch")
        return float(epoch) if isinstance(epoch, (int, float)) else line["step"] / self.steps_per_epoch


def read_run(run: Run, *, counts_tokens: bool = True) -> RunReport:
    """What a page shows of a run. Raises nothing for a damaged file. Without `counts_tokens` tokens are estimated."""
    report = RunReport(run)

    def part(read: Callable[[], Read], otherwise: Read) -> Read:
        """What a function reads; else `otherwise`, and the problem is named once."""
        try:
            return read()
        except FasttuneError as problem:
            found = problem.findings
        except OSError as problem:
            found = (files.known_condition(problem) or documents.damaged(run.folder, str(problem))).findings
        report.problems += [one for one in found if (one.where, one.what) not in seen]
        seen.update((one.where, one.what) for one in found)
        return otherwise

    seen: set[tuple[str, str]] = set()
    report.plan = part(lambda: summary.read_plan(run), None)
    report.provenance = part(lambda: documents.read_provenance(run) if run.provenance.is_file() else None, None)
    report.history = part(lambda: summary.full_history(run), []) or readable_history(run)
    report.figures = part(lambda: summary.read_figures(run, run == store.current(run.root, run.series)), None)
    if any("loss" in line for line in report.history):
        report.diagnosis = part(lambda: diagnose.of_run(run), None)
    report.joined = part(lambda: joined(run), ())
    report.seams = part(lambda: seams(run), ())
    read_answers(report, part)
    dataset = report_data.read_data(run)
    report.kept = part(lambda: answered_epochs(run, report, report_data.training_answers(dataset)), ())
    report.data = part(lambda: report_data.picture(run, dataset, counts_tokens=counts_tokens), None)
    report.worst = part(lambda: report_data.worst_samples(run, dataset), ())
    report.series = summary.read_series(run.root, run.series, [], report.figures) if report.plan else ()
    report.exports = part(lambda: exports(run), ())
    return report


def read_answers(report: RunReport, part: Callable[[Callable[[], Any], Any], Any]) -> None:
    """Take probe answers and facts from scores.json, where there is one."""
    scores = part(lambda: documents.read_scores(report.run) if report.run.scores.is_file() else None, None)
    if scores is not None:
        report.probes, report.answered_by, report.facts = scores.probes, scores.answered_by, scores.facts


def readable_history(run: Run) -> list[Mapping[str, Any]]:
    """The lines of a damaged history.jsonl that can be read."""
    lines: list[Mapping[str, Any]] = []
    if not run.history.is_file():
        return lines
    for number, line in enumerate(run.history.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(history.parsed(run, number, line))
        except FasttuneError:
            continue
    return lines


def joined(run: Run) -> tuple[tuple[str, int], ...]:
    """(id, step that it began after) of a run and of its parents, newest first, as long as each has the history of
    another parent before its own. Raises FasttuneError where a plan is damaged."""
    parent = summary.parent_on_same_data(run)
    return ((run.id, documents.read_plan(run).start_step), *joined(parent)) if parent else ()


def seams(run: Run) -> tuple[SeamRow, ...]:
    """Every continuation up to the end of a run, oldest first, those of the parents included whose history it has."""
    parent = summary.parent_on_same_data(run)
    before = seams(parent) if parent else ()
    if not run.provenance.is_file():
        return before
    return before + tuple(
        SeamRow(run.id, one.from_, one.step, one.loss_when_saved, one.loss, one.learning_rate_before, one.learning_rate)
        for one in documents.read_provenance(run).continuations
    )


def exports(run: Run) -> tuple[tuple[str, int, ArtifactDocument | None], ...]:
    """(file name, bytes, document) of each GGUF file; the document is None where it is lost."""
    found: list[tuple[str, int, ArtifactDocument | None]] = []
    for file in summary.exported(RunFiles(run)):
        path = (run.exports / file["file"]).with_suffix(".json")
        found.append((file["file"], file["bytes"], documents.read(path, ArtifactDocument) if path.is_file() else None))
    return tuple(found)


# Epochs -------------------------------------------------------------------------------------------------------------


def epoch_rows(report: RunReport) -> list[EpochRow]:
    """The figures of each epoch, the last one also where it is not complete."""
    trained: dict[int, list[Mapping[str, Any]]] = {}
    evaluated: dict[int, Mapping[str, Any]] = {}
    size = report.steps_per_epoch
    for line in report.history:
        number = -(-int(line["step"]) // size)  # step 1 to `size` are epoch 1
        if "loss" in line:
            trained.setdefault(number, []).append(line)
        elif "eval_loss" in line:
            evaluated[number] = line
    return [
        EpochRow(
            epoch=round(trained[number][-1]["step"] / size, 3),
            step=int(trained[number][-1]["step"]),
            loss=mean(trained[number], "loss"),
            accuracy=mean(trained[number], "mean_token_accuracy"),
            eval_loss=evaluated.get(number, {}).get("eval_loss"),
            eval_accuracy=evaluated.get(number, {}).get("eval_mean_token_accuracy"),
            tokens_per_second=mean(trained[number], "tokens_per_second"),
        )
        for number in sorted(trained)
    ]


def mean(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The mean of a figure over the lines that have it; None where none has."""
    values = [line[key] for line in lines if isinstance(line.get(key), (int, float))]
    return fmean(values) if values else None


def answered_epochs(run: Run, report: RunReport, answers: Sequence[str]) -> tuple[AnsweredEpoch, ...]:
    """The kept epochs of a run with what their answers come to. Raises FasttuneError where a document is damaged."""
    kept = epochs.kept_epochs(run)
    questions = {one.sha256: one.questions for one in epochs.epoch_scores(run)} if kept else {}
    best, served = epochs.best_epoch(kept), epochs.served_epoch(run, kept)
    base = {probe.question: probe.base for probe in report.probes}
    found = []
    for one in kept:
        asked = questions.get(epochs.weights_digest(one.folder), ())
        given = dict(zip(asked, one.answers, strict=False))
        found.append(
            AnsweredEpoch(
                epoch=epochs.epoch_word(one.epoch), step=one.step, eval_loss=one.eval_loss, answers=given,
                repeating=sum(is_repeating(text) for text in given.values()),
                out_of_character=sum(is_out_of_character(text, answers) for text in given.values()),
                as_base=sum(text.strip() == base.get(question, "").strip() for question, text in given.items()),
                is_best=one == best, is_served=one == served,
                pick=epochs.pick_command(run, "--epoch", epochs.epoch_word(one.epoch)),
            )
        )  # fmt: skip
    return tuple(found)


def is_repeating(answer: str) -> bool:
    """Whether an answer says the same again and again, by its first LOOKED_AT characters."""
    return answer_faults.repeated_share(answer[:LOOKED_AT]) >= answer_faults.REPEATED


def is_out_of_character(answer: str, training_answers: Sequence[str]) -> bool:
    """Whether an answer names the base or says that it is a model, by its first LOOKED_AT characters."""
    return bool(answer_faults.out_of_character(answer[:LOOKED_AT], training_answers))
