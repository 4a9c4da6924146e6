"""The verbs that say what data and runs are like, and why."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import json_option, overrides_option
from fasttune.console import _


@click.command(help=_("Find what is wrong with a data file, or with the data of a recipe, before training."))
@click.argument("path", metavar="FILE|RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--fix", "out", metavar="OUT", type=click.Path(path_type=Path),
    help=_("Write a copy in which everything is mended that can be mended safely; the original stays as it is."),
)  # fmt: skip
@overrides_option
@json_option
def check(path: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> int:
    from fasttune.analysis import check as checking
    from fasttune.terminal import check_report

    if out is not None:
        return check_report.show_mended(out, checking.mended_copy(path, out, overrides), as_json=as_json)
    return check_report.show(checking.check(path, overrides), as_json=as_json)
