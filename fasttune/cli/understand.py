"""The verbs that tell why a model is as it is: its facts, and how it compares with others."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import json_option, runs_option
from fasttune.console import _
from fasttune.terminal import command_line


@click.command(help=_("Ask a run the questions of a fact sheet: what it keeps, has lost and contradicts."))
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help=_("A fact sheet in place of the one that the recipe names."),
)
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help=_("Longest answer."))
@click.option(
    "--at-least",
    metavar="SHARE",
    type=click.FloatRange(0, 1),
    help=_("End with exit code 1 where a smaller share of the facts is kept."),
)
@runs_option
@json_option
def facts(name: str, file: Path | None, max_new_tokens: int, at_least: float | None, root: Path, as_json: bool) -> int:
    from fasttune.analysis.facts import facts, findings
    from fasttune.runs import store
    from fasttune.terminal import fact_table

    run = store.find(root, name)
    scores = facts(run, file, max_new_tokens)
    return fact_table.show_facts(run, scores, findings(run, scores, at_least), as_json=as_json)
