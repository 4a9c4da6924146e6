"""What is done with the best trials of a sweep once all are trained: the chosen one is served, facts are asked, and the
page about all of them is written.

Only trials whose runs are in the runs folder of this machine can be looked at; of the others the figures are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.analysis import facts, report
from fasttune.console import FasttuneError, Finding, _, ngettext, say
from fasttune.files import file_sha256
from fasttune.runs import documents, epochs, store
from fasttune.runs.documents import Probe
from fasttune.runs.outcomes import FactScores
from fasttune.runs.store import Run
from fasttune.sweep.study import TrialRecord
from fasttune.sweep.sweep import Sweep


@dataclass(frozen=True)
class Finalist:
    """One of the best trials with its run, the facts that it keeps (None: no sheet, or not asked) and its answers to
    the probe questions."""

    trial: TrialRecord
    run: Run
    facts: FactScores | None
    probes: tuple[Probe, ...]

    @property
    def facts_kept(self) -> tuple[int, int] | None:
        """How many facts the run keeps as it is served, of how many; None where they were not asked."""
        if self.facts is None:
            return None
        return self.facts.arms[facts.served_arm(self.facts)].kept, len(self.facts.facts)


@dataclass(frozen=True)
class Aftermath:
    """The finalists whose runs are here, the chosen one first; whether the page was written; what is worth saying."""

    finalists: tuple[Finalist, ...]
    has_page: bool
    figures: Mapping[str, object]
    findings: tuple[Finding, ...]


def settle(sweep: Sweep, root: Path, *, asks_facts: bool) -> Aftermath:
    """Let the chosen trial be the run in use of its series, with its best epoch; look at it and the next best, and
    write the page. What goes wrong meanwhile is a finding: the trials are trained all the same."""
    findings: list[Finding] = []
    finalists = [look_at(trial, run, findings, asks_facts=asks_facts)
                 for trial in sweep.finalists if (run := store.by_id(root, trial.run))]  # fmt: skip
    if finalists and finalists[0].trial == sweep.finalists[0]:
        store.set_current(finalists[0].run)
    ids = dict.fromkeys(trial.run for trial in sweep.trials if trial.run)
    runs = [run for id in ids if (run := store.by_id(root, id)) and run.history.is_file()]
    if missing := len(ids) - len(runs):
        what = ngettext("{n} run is on another machine: its figures are in the table, and it is not on the page",
                        "{n} runs are on other machines: their figures are in the table, and they are not on the page",
                        missing)  # fmt: skip
        findings.append(Finding("runs-elsewhere", "info", str(root), what))
    figures: Mapping[str, object] = {}
    try:
        figures = report.write(runs, sweep.page, counts_tokens=False).figures if runs else {}
    except FasttuneError as problem:
        findings += as_warnings(problem)
    return Aftermath(tuple(finalists), bool(figures), figures, tuple(findings))


def look_at(trial: TrialRecord, run: Run, findings: list[Finding], *, asks_facts: bool) -> Finalist:
    """A finalist that serves its best epoch, with its facts and answers."""
    asked = None
    try:
        pick_best(run)
        asked = facts_of(run) if asks_facts else None
    except FasttuneError as problem:
        findings += as_warnings(problem)
    return Finalist(trial, run, asked, epochs.served_probes(run))


def pick_best(run: Run) -> None:
    """Let a run serve the epoch that counts in the choice, and say how that is undone."""
    best = epochs.best_epoch(epochs.kept_epochs(run))
    if best is None or not (made := epochs.pick(run, best)):
        return
    back = ["--own"] if made.from_ is None else ["--epoch", epochs.epoch_word(made.from_)]
    command = epochs.pick_command(run, *back)
    epoch = epochs.epoch_word(best.epoch)
    say(_("{run} serves the adapter of epoch {epoch} now, of step {step}; undo it with: `{command}`", run=run.id,
          epoch=epoch, step=made.step, command=command))  # fmt: skip


def facts_of(run: Run) -> FactScores | None:
    """The facts of the recipe's sheet that a run keeps, asked where they are not known of the adapter that it serves;
    None without a sheet."""
    if not documents.read_plan(run).values.get("facts.file"):
        return None
    sheet, known = facts.recipe_sheet(run), documents.read_scores(run).facts
    served = epochs.weights_digest(epochs.served_adapter(run))
    if known and sheet.is_file() and (known.sha256, known.adapter) == (file_sha256(sheet), served):
        return known
    say(_("{run}: asking the questions of {sheet}", run=run.id, sheet=sheet))
    return facts.facts(run, None, facts.ANSWER_TOKENS)


def as_warnings(problem: FasttuneError) -> list[Finding]:
    """The findings of an error that ends nothing."""
    return [replace(finding, level="warning") for finding in problem.findings]
