"""The verbs that show what data and runs hold."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import json_option, overrides_option, runs_option
from fasttune.console import _
from fasttune.terminal import command_line


@click.command("show", help=_("Show the tokens of one sample, FILE:LINE, with the supervised ones marked."))
@click.argument("sample", metavar="FILE:LINE")
@click.option(
    "--base",
    default="builtin:tiny",
    show_default=True,
    help=_("Hub name or folder of the base whose tokenizer and chat template are used."),
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help=_("Take base, system prompt and learn from a recipe."),
)
@overrides_option
@json_option
def show_sample(sample: str, base: str, recipe_file: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    if overrides and recipe_file is None:
        raise click.UsageError(_("--set changes a recipe: name it with --recipe"))
    from fasttune.terminal import tables

    tables.show_sample(sample, base, recipe_file, overrides, as_json=as_json)


@click.command("report", help=_("Write a page about runs, which any browser opens: verdict, curves, answers, data."))
@click.argument("names", metavar="RUN [RUN…]", nargs=-1, required=True, shell_complete=command_line.complete_run)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False),
    help=_("Where to write it (default: report.html in the run's folder, of several runs in this one)."),
)  # fmt: skip
@runs_option
@json_option
def report(names: tuple[str, ...], out: Path | None, root: Path, as_json: bool) -> int:
    from fasttune.terminal import report_page

    return report_page.show(root, names, out, as_json=as_json)


@click.command(
    "runs", help=_("Show the runs of all series, of one, or one run, as a tree with their figures and verdicts.")
)
@click.argument("name", metavar="[NAME|RUN]", required=False, shell_complete=command_line.complete_run)
@runs_option
@json_option
def list_runs(name: str | None, root: Path, as_json: bool) -> int:
    from fasttune.terminal import runs_tree

    return runs_tree.show_runs(root, name, as_json=as_json)


@click.command(help=_("Show all runs in a browser, live, on this machine alone: curves, stop, blind comparison, chat."))
@click.option(
    "--port", default=8321, show_default=True, type=click.IntRange(0, 65535), help=_("Its port; 0 for any free one.")
)
@runs_option
def board(port: int, root: Path) -> None:
    from fasttune.web import server

    server.serve(root, port)
