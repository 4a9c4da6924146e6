"""What `fasttune compare` prints: answers side by side, the figures of both models, and where they differ most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from fasttune.analysis.words import general_heading
from fasttune.console import _, exit_code, print_json, show_findings, stdout_console
from fasttune.data.general import LANGUAGES

if TYPE_CHECKING:
    from fasttune.analysis.compare import Comparison, Figures
    from fasttune.runs.outcomes import Answered


def show_comparison(found: Comparison, *, as_json: bool) -> int:
    """Print a comparison; returns the exit code."""
    if as_json:
        print_json(asdict(found))
        return exit_code(found.findings)
    stdout_console.print(answers_table(found.models, found.questions))
    stdout_console.print(figures_table(found.figures))
    if found.differences:
        stdout_console.print(differences_table(found))
    show_findings(found.findings)
    return exit_code(found.findings)


def answers_table(models: Sequence[str], questions: Sequence[Answered]) -> Table:
    """A row for each question and sampling, with a column for each model."""
    table = Table(show_lines=True)
    for heading in (_("question"), *models):
        table.add_column(escape(heading), overflow="fold")  # Chinese has no spaces to wrap at
    for one in questions:
        for seed in range(len(one.answers[models[0]])):
            by_seed = _("seed {seed}", seed=seed)
            asked = f"[dim]{by_seed}[/]" if seed else escape(one.question)
            table.add_row(asked, *(escape(one.answers[model][seed]) for model in models))
    return table


def figures_table(figures: Mapping[str, Figures]) -> Table:
    """A row for each figure that one of the models has."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in figures:
        table.add_column(escape(name), justify="right", overflow="fold")
    rows: list[tuple[str, Callable[[Figures], str]]] = [
        (_("held-out loss"), lambda one: shown(one.loss, ".3f")),
        (_("held-out accuracy"), lambda one: shown(one.accuracy, ".1%")),
        (_("perplexity"), lambda one: shown(one.perplexity, ",.1f")),
        (_("chrF against held-out answers"), lambda one: shown(one.chrf, ".1f")),
        *((general_heading(one), general_cell(one)) for one in LANGUAGES),
        (_("facts kept"), lambda one: "" if one.facts_kept is None else f"{one.facts_kept}/{one.facts}"),
        (_("length of an answer, in characters"), lambda one: shown(one.length, ".0f")),
        (_("repeated stretches of four"), lambda one: shown(one.repetition, ".1%")),
        (_("different openings"), lambda one: shown(one.distinct_openings, ".0%")),
    ]
    for heading, cell in rows:
        cells = [cell(one) for one in figures.values()]
        if any(cells):
            table.add_row(heading, *(text or "–" for text in cells))
    return table


def general_cell(language: str) -> Callable[[Figures], str]:
    """The cell of a model's loss on the general conversations of a language."""
    return lambda one: shown(one.general.get(language), ".3f")


def shown(value: float | None, form: str) -> str:
    """A figure in a format; empty for none."""
    return "" if value is None else format(value, form)


def differences_table(found: Comparison) -> Table:
    """A row for each of the samples on which the models differ most."""
    title = {"loss": _("where the held-out loss differs most"), "chrf": _("where chrF differs most")}[found.measure]
    table = Table(show_lines=True, title=title, title_justify="left")
    table.add_column(_("sample"), no_wrap=True)
    for heading in (_("question"), _("held-out answer"), *found.models):
        table.add_column(escape(heading), overflow="fold")
    form = ".3f" if found.measure == "loss" else ".1f"
    for one in found.differences:
        cells = [f"[bold]{one.values[name]:{form}}[/] {escape(one.answers[name])}" for name in found.models]
        table.add_row(escape(one.sample), escape(one.question), escape(one.reference), *cells)
    return table
