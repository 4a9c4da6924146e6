"""The verbs that say what data and runs are like, and why."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import json_option, overrides_option
from fasttune.console import _


@click.command(help=_("Find what is wrong with a data file, or with the data of a recipe, before training."))
@click.argument("path", metavar="FILE|RECIPE", type=click.Path(path_type=Path))
@overrides_option
@json_option
def check(path: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    from fasttune.analysis.check import check as check_data
    from fasttune.terminal import check_report

    return check_report.show(check_data(path, overrides), as_json=as_json)
