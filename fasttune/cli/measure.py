"""The verbs that measure this machine."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import json_option, overrides_option, runs_option
from fasttune.console import _, say


@click.command(
    help=_("Measure fasttune beside stock Unsloth and plain peft on a recipe's data and base, losses compared.")
)
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@overrides_option
@click.option(
    "--arms", default="plain,stock,stock-padding-free,fasttune", show_default=True,
    help=_("What to compare, separated by commas; NAME+KEY=VALUE changes a recipe value or an environment variable."),
)  # fmt: skip
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1), help=_("Timed steps of each round."))
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(0), help=_("Steps before those."))
@click.option(
    "--repeats", default=2, show_default=True, type=click.IntRange(1), help=_("Rounds, in alternating order.")
)
@click.option(
    "--warmup-samples", default=0, show_default=True, type=click.IntRange(0),
    help=_("Samples of the first warm-up step, where a whole one takes too long (0: a whole step)."),
)  # fmt: skip
@click.option(
    "--micro-batch", default=0, show_default=True, type=click.IntRange(0),
    help=_("Samples that stock and plain take at a time, with gradient accumulation (0: the whole step)."),
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help=_("The same as --set model.dtype=…"))
@click.option("--out", type=click.Path(path_type=Path), help=_("Folder to keep result.json and the logs in."))
@json_option
def bench(
    recipe_file: Path,
    overrides: tuple[str, ...],
    arms: str,
    steps: int,
    warmup: int,
    repeats: int,
    warmup_samples: int,
    micro_batch: int,
    dtype: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    from fasttune.bench.arms import parse_arms
    from fasttune.bench.experiment import Experiment, run
    from fasttune.terminal import tables

    values = overrides + ((f"model.dtype={dtype}",) if dtype else ())
    experiment = Experiment(recipe_file, values, parse_arms(arms), steps, warmup, repeats, warmup_samples, micro_batch)
    return tables.show_benchmark(run(experiment, out, say), as_json=as_json)


@click.command(help=_("Find out by doing what is wrong with this machine, each with the command that mends it."))
@click.option("--quick", is_flag=True, help=_("Leave out the three training steps."))
@click.option(
    "--report", "as_report", is_flag=True,
    help=_("Print a text for a bug report, without a path, the name of a person or of a computer."),
)  # fmt: skip
@runs_option
@json_option
def doctor(quick: bool, as_report: bool, root: Path, as_json: bool) -> int:
    from fasttune.terminal import examination

    return examination.show_doctor(root, trains=not quick, as_json=as_json, as_report=as_report)
