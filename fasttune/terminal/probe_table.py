"""The probe questions with the answers of base, parent and trained model, and what counting finds wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from fasttune.analysis import answer_faults
from fasttune.console import FasttuneError, _, ngettext
from fasttune.runs import epochs
from fasttune.runs.documents import Probe
from fasttune.runs.run_files import RunFiles
from fasttune.runs.store import Run

if TYPE_CHECKING:
    from fasttune.export import Artifact


def probes_table(run: Run, probes: Sequence[Probe], *, by_gguf: bool) -> Table:
    """A row for each probe question with the answers of the base, of the run's parent where it was asked the same, and
    of the run."""
    table, parent = Table(show_lines=True), parent_answers(run, probes)
    trained = _("the trained GGUF answers") if by_gguf else _("the trained adapter answers")
    headings = [_("the base answered"), *([_("its parent answered")] if parent else []), trained]
    for heading in (_("question"), *headings):
        table.add_column(heading, overflow="fold")  # Chinese has no spaces to wrap at
    for probe in probes:
        question = escape(probe.question)
        if probe.is_trained:
            question += remark(_("in the training data"))
        cells = [answer_cell(probe.base, is_cut=probe.base_cut)]
        cells += [answer_cell(parent.get(probe.question, ""))] if parent else []
        table.add_row(question, *cells, answer_cell(probe.trained, is_cut=probe.trained_cut))
    return table


def why_not_asked(probes: Sequence[Probe], artifacts: Sequence[Artifact]) -> str:
    """Why the column of the trained model is empty: every exported file lost most of what was learned, and none of them
    speaks for the run. "" where it is not empty."""
    if not probes or any(probe.trained for probe in probes) or any(one.is_served for one in artifacts) or not artifacts:
        return ""
    return ngettext("no answers of the GGUF file: it keeps too little of what was learned to speak for the run",
                    "no answers of the {n} GGUF files: they keep too little of what was learned to speak for the run",
                    len(artifacts))  # fmt: skip


def parent_answers(run: Run, probes: Sequence[Probe]) -> Mapping[str, str]:
    """{question: answer} of the run's parent, as it is served, to these questions; none where it was asked others."""
    try:
        parent = RunFiles(run).parent
        known = epochs.served_probes(parent.run) if parent else ()
    except FasttuneError:  # a finding about the parent, which its own commands show
        return {}
    asked = {probe.question for probe in probes}
    return {probe.question: probe.trained for probe in known if probe.trained and probe.question in asked}


def answer_cell(answer: str, *, is_cut: bool = False) -> str:
    """An answer, and below it that it repeats itself or was cut."""
    cell = escape(answer)
    if answer_faults.repeated_share(answer) > answer_faults.REPEATED:
        cell += remark(_("repeats itself"))
    if is_cut:
        cell += remark(_("cut at probe.max_new_tokens"))
    return cell


def remark(text: str) -> str:
    """A remark below what stands in a cell; in brackets, so that it shows without colour."""
    return f"\n[yellow]({escape(text)})[/]"
