"""What `fasttune facts` prints: a row for each fact with its state in each arm, the rules, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from fasttune.analysis.words import arm_heading, fact_state_word
from fasttune.console import Finding, _, exit_code, print_json, show_findings, stdout_console
from fasttune.runs import typed_json
from fasttune.runs.outcomes import FactScores, FactState
from fasttune.runs.store import Run

STYLES: dict[FactState, str] = {"kept": "green", "lost": "dim", "contradicted": "bold red"}


def show_facts(run: Run, scores: FactScores, findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print the scores of a run's facts and the findings about them; returns the exit code."""
    if as_json:
        document = typed_json.as_json(scores)
        print_json({"run": run.id} | document | {"findings": [asdict(finding) for finding in findings]})
        return exit_code(findings)
    stdout_console.print(facts_table(scores))
    if scores.rules:
        stdout_console.print(rules_table(scores))
    stdout_console.print(numbers_table(scores))
    show_findings(findings)
    return exit_code(findings)


def state_word(state: FactState) -> str:
    """A state in the user's language, coloured."""
    return f"[{STYLES[state]}]{fact_state_word(state)}[/]"


def arms_table(title: str, heading: str, scores: FactScores) -> Table:
    """A table with a column for each arm beside the first one."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column(heading, overflow="fold")  # Chinese has no spaces to wrap at
    for arm in scores.arms:
        table.add_column(arm_heading(arm))
    return table


def facts_table(scores: FactScores) -> Table:
    """A row for each fact: those of the system prompt first, then those of the data alone."""
    table = arms_table(escape(scores.sheet), _("fact"), scores)
    for source, heading in (("system", _("in the system prompt")), ("data", _("not in the persona's own prompt"))):
        group = [fact for fact in scores.facts if fact.source == source]
        if group:
            table.add_row(f"[bold]{heading}[/]")
        for fact in group:
            table.add_row(f"  {escape(fact.text)}", *(state_word(fact.states[arm]) for arm in scores.arms))
    return table


def rules_table(scores: FactScores) -> Table:
    """A row for each rule: how many answers break it."""
    table = arms_table("", _("never"), scores)
    for rule in scores.rules:
        counts = [len(rule.broken[arm]) for arm in scores.arms]
        cells = [f"[{'red' if count else 'green'}]{count}×[/]" for count in counts]
        table.add_row(f"  {escape(rule.text)}", *cells)
    return table


def numbers_table(scores: FactScores) -> Table:
    """The numbers of each arm."""
    table = arms_table("", "", scores)
    headings = {"system": _("kept, of those in the system prompt"), "data": _("kept, of the others")}
    for source, heading in headings.items():
        group = [fact for fact in scores.facts if fact.source == source]
        if group:
            counts = [sum(fact.states[arm] == "kept" for fact in group) for arm in scores.arms]
            table.add_row(heading, *(f"{count}/{len(group)}" for count in counts))
    arms = scores.arms.values()
    table.add_row(_("contradicted"), *(str(arm.contradicted) for arm in arms))
    table.add_row(_("wordings answered right"), *(f"{arm.right:.0%}" for arm in arms))
    if scores.rules:
        table.add_row(_("rules broken"), *(f"{arm.rules_broken}/{len(scores.rules)}" for arm in arms))
    return table
