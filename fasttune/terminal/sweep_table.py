"""What `fasttune sweep` prints: every trial with its best held-out loss, answers and facts of the best beside each
other, and how the recipe would read.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from fasttune.analysis.words import verdict_line
from fasttune.command import command_line, runs_option
from fasttune.console import Finding, _, exit_code, print_json, say, show_findings, stdout_console
from fasttune.planning.parents import resume_command
from fasttune.runs import epochs, store, summary
from fasttune.runs.store import Run
from fasttune.terminal.probe_table import answer_cell
from fasttune.terminal.report_page import how_to_open

if TYPE_CHECKING:
    from fasttune.sweep.aftermath import Aftermath, Finalist
    from fasttune.sweep.study import TrialRecord
    from fasttune.sweep.sweep import Sweep


def show(sweep: Sweep, after: Aftermath, diff: str, root: Path, *, as_json: bool) -> int:
    """Print what a sweep came to; the exit code, 1 where no trial was finished."""
    findings = [*sweep.findings, *after.findings]
    if as_json:
        print_json(document(sweep, after, diff, findings))
        return exit_code(findings)
    stdout_console.print(trials_table(sweep, after))
    if any(one.probes for one in after.finalists):
        stdout_console.print(answers_table(after.finalists))
    show_findings(findings)
    if not sweep.finalists:
        return exit_code(findings)
    chosen = sweep.finalists[0]
    line(_("chosen by held-out loss: trial {number}, {run}", number=chosen.number, run=chosen.run))
    if after.finalists and after.finalists[0].trial == chosen:
        line(_("{series} means this run from now on", series=sweep.series))
    if after.finalists:
        line(verdict_line(summary.read_figures(after.finalists[0].run)))
    if diff:
        line(_("the recipe would read:"))
        line(diff)
    else:
        line(_("what was varied has the values of the chosen trial in the recipe already"))
    if after.has_page:
        line(_("page     {path}", path=sweep.page))
        say(_("open it in a browser: {how}", how=how_to_open(sweep.page)))
    for text in next_lines(sweep, after, root):
        line(text)
    return exit_code(findings)


def line(text: str) -> None:
    """Print a line on stdout as it stands, without markup."""
    stdout_console.print(text, markup=False, soft_wrap=True)


def trials_table(sweep: Sweep, after: Aftermath) -> Table:
    """A row for each trial; the chosen one has a star."""
    table = Table(box=None, pad_edge=False)
    leaves = [key.rpartition(".")[2] for key in sweep.keys]
    facts = [_("facts kept")] if any(one.facts_kept for one in after.finalists) else []
    for heading in ("", *leaves, _("run"), _("state"), _("best epoch"), _("held-out loss"), *facts):
        table.add_column(heading, no_wrap=True)
    kept = {one.trial.number: facts_word(one) for one in after.finalists}
    chosen = sweep.finalists[0].number if sweep.finalists else 0
    for one in sweep.trials:
        values = [escape(str(one.settings.get(key, ""))) for key in sweep.keys]
        loss, epoch = loss_word(one)
        star = "*" if one.number == chosen else ""
        cells = [escape(one.run.partition("/")[2]), state_word(one), epoch, loss, kept.get(one.number, "")]
        table.add_row(f"{one.number}{star}", *values, *cells[: len(table.columns) - 1 - len(values)])
    return table


def loss_word(trial: TrialRecord) -> tuple[str, str]:
    """The lowest held-out loss of a trial and the epoch of it; of one that was stopped the lowest so far."""
    if trial.loss is not None and trial.epoch is not None:
        return f"{trial.loss:.4f}", epochs.epoch_word(trial.epoch)
    if not trial.losses:
        return "", ""
    epoch, loss = min(trial.losses, key=lambda one: one[1])
    return f"{loss:.4f}", f"{epoch:.3g}"


def state_word(trial: TrialRecord) -> str:
    """The state of a trial in the user's language."""
    return {
        "planned": _("planned"), "running": _("running"), "finished": _("finished"),
        "pruned": _("stopped early"), "failed": _("failed"),
    }[trial.state]  # fmt: skip


def facts_word(one: Finalist) -> str:
    """`14/20`: the facts that a finalist keeps as it is served, of all; "" where they were not asked."""
    return "{}/{}".format(*one.facts_kept) if one.facts_kept else ""


def answers_table(finalists: tuple[Finalist, ...]) -> Table:
    """A row for each probe question with the answers of the base and of the finalists."""
    table = Table(show_lines=True)
    headings = [_("trial {number} answered", number=one.trial.number) for one in finalists]
    for heading in (_("question"), _("the base answered"), *headings):
        table.add_column(heading, overflow="fold")  # Chinese has no spaces to wrap at
    said = [{probe.question: probe.trained for probe in one.probes} for one in finalists]
    for probe in finalists[0].probes:
        answers = [answer_cell(each.get(probe.question, "")) for each in said]
        table.add_row(escape(probe.question), answer_cell(probe.base, is_cut=probe.base_cut), *answers)
    return table


def next_lines(sweep: Sweep, after: Aftermath, root: Path) -> list[str]:
    """The commands that use what was chosen, and those that train a stopped trial to its end."""
    lines = []
    if after.finalists:
        types = [word for one in sweep.types or ("q8_0",) for word in ("--gguf", one)]
        export = command_line(["export", after.finalists[0].run.id, *types, *runs_option(root)])
        lines.append(_("write its GGUF file: `{command}`", command=export))
    if len(after.finalists) > 1:
        ids = [one.run.id for one in after.finalists]
        compare = command_line(["compare", *ids, *runs_option(root)])
        lines.append(_("compare the two: `{command}`", command=compare))
    pruned = [run for one in sweep.trials if one.state == "pruned" and (run := store.by_id(root, one.run))]
    lines += [_("train {run} to its end: `{command}`", run=run.id, command=resume_command(run))
              for run in pruned if is_newest(run)]  # fmt: skip
    return lines


def is_newest(run: Run) -> bool:
    """Whether `fasttune run` would resume this run: the newest of its series."""
    return store.list_runs(run.root, run.series)[-1] == run


def document(sweep: Sweep, after: Aftermath, diff: str, findings: list[Finding]) -> dict[str, Any]:
    """The document of `fasttune sweep --json`."""
    chosen = sweep.finalists[0] if sweep.finalists else None
    return {
        "series": sweep.series,
        "recipe": str(sweep.recipe),
        "vary": list(sweep.keys),
        "trials": [
            asdict(one) | {"losses": [{"epoch": epoch, "eval_loss": loss} for epoch, loss in one.losses]}
            for one in sweep.trials
        ],
        "chosen": chosen and {"trial": chosen.number, "run": chosen.run, "settings": dict(chosen.settings)},
        "finalists": [
            {
                "trial": one.trial.number,
                "run": one.run.id,
                "verdict": summary.read_figures(one.run).verdict,
                "facts_kept": one.facts_kept and one.facts_kept[0],
                "facts": one.facts_kept and one.facts_kept[1],
                "probes": [asdict(probe) for probe in one.probes],
            }
            for one in after.finalists
        ],
        "diff": diff,
        "report": str(sweep.page) if after.has_page else None,
        "findings": [vars(finding) for finding in findings],
    }
