"""Options and the exit code that several verbs share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from fasttune.console import _
from fasttune.terminal import command_line

LONGEST_ANSWER = click.IntRange(1, 32_768)  # tokens, as of probe.max_new_tokens: memory is allocated for the longest
STOPPED = 130  # the exit code of a training that the user stopped, as of a shell command after Ctrl-C

overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=command_line.complete_setting,
    help=_("Override a recipe value, e.g. train.learning_rate=1e-4."),
)
runs_option = click.option(
    "--runs", "root", envvar="FASTTUNE_RUNS", default="runs", type=click.Path(path_type=Path), show_default=True,
    help=_("Folder of the runs (or FASTTUNE_RUNS)."),
)  # fmt: skip
continue_option = click.option(
    "--continue", "strategy", type=click.Choice(["incremental", "retune", "augment", "custom"]),
    help=_(
        "Continue from the series' current run with this strategy, whatever strategy the recipe names. augment chooses "
        "the epochs by the number of samples; it makes none, as `fasttune augment` does."
    ),
)  # fmt: skip
overfit_option = click.option("--allow-overfit", is_flag=True, help=_("Allow more than 10 epochs in total."))
json_option = click.option("--json", "as_json", is_flag=True, help=_("Print one JSON document on stdout."))


class FiniteRange(click.FloatRange):
    """A number between two bounds; click takes NaN for one that is within any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(_("{value!r} is not a valid {number_type}.", value=value, number_type=self.name), param, ctx)
        return number
