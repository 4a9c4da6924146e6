"""The verbs that say what is wrong with data and runs, and what to do next."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import json_option, runs_option
from fasttune.console import _
from fasttune.terminal import command_line


@click.command(help=_("Say what is wrong with a training, by which figures, and what to type next; loads no model."))
@click.argument("name", metavar="RUN|FOLDER", shell_complete=command_line.complete_run)
@click.option("--checklist", "with_checklist", is_flag=True, help=_("Answer the checklist before, during and after."))
@runs_option
@json_option
def diagnose(name: str, with_checklist: bool, root: Path, as_json: bool) -> int:
    from fasttune.terminal import diagnosis

    return diagnosis.show(root, name, as_json=as_json, with_checklist=with_checklist)
