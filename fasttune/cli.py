"""The command line: one function a verb. Reads arguments, calls one worker, shows the result.

stdout is data, stderr is talk. Exit codes: 0 good, 1 failed or an error-level finding, 2 wrong usage, 130 stopped by
the user. Workers are imported inside their verb, so that `fasttune --help` loads no torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fasttune
from fasttune import files
from fasttune.console import FasttuneError, _, can_ask, prepare_streams, say, show_findings
from fasttune.terminal import command_line

if TYPE_CHECKING:
    from fasttune.pipeline import Planner, RunRequest

STOPPED = 130

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
    help=_("Continue from the series' current run with this strategy, whatever strategy the recipe names."),
)  # fmt: skip
overfit_option = click.option("--allow-overfit", is_flag=True, help=_("Allow more than 10 epochs in total."))
json_option = click.option("--json", "as_json", is_flag=True, help=_("Print one JSON document on stdout."))


def main() -> None:
    """The console script: findings instead of tracebacks for what a user can mend."""
    # Before anything loads OpenMP: threads that spin at a barrier starve the late one as soon as another process
    # wants a core; measured here, 40 steps of builtin:tiny beside two busy processes took 65 s spinning and 3 s asleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    command_line.translate_click()
    try:
        code = commands.main(prog_name="fasttune", standalone_mode=False)
    except FasttuneError as problem:
        sys.exit(show_problem(problem))
    except click.ClickException as problem:
        sys.exit(show_problem(command_line.as_usage_error(problem, commands)))
    except OSError as problem:
        known = files.condition_as_error(problem)
        if known is None:
            raise
        sys.exit(show_problem(known))
    except (click.Abort, KeyboardInterrupt):
        say(_("stopped"))
        sys.exit(STOPPED)
    sys.exit(code or 0)


def show_problem(problem: FasttuneError) -> int:
    """Show an error's findings to the person, with --json also as a document on stdout; returns the exit code."""
    show_findings(problem.findings)
    if problem.after:
        say(problem.after)
    if "--json" in sys.argv[1:]:
        show_findings(problem.findings, as_json=True)
    return problem.exit_code


@click.group(
    cls=command_line.Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=_("Train a small Qwen2.5 model on your conversations and get a GGUF file that answers."),
)
@click.version_option(fasttune.__version__, prog_name="fasttune", help=_("Show the version and exit."))
def commands() -> None:
    pass


@commands.command(help=_("Train what the recipe says, export GGUF files, answer the probe questions."))
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@overrides_option
@runs_option
@continue_option
@click.option(
    "--on-existing", type=click.Choice(["resume", "new", "stop", "skip"]),
    help=_(
        "With earlier runs of this name: resume an unfinished one, train a new one, stop, or skip training and show "
        "the run in use. Default: ask at a terminal; without one resume, else stop."
    ),
)  # fmt: skip
@click.option("--overwrite", metavar="NAME/NNN", help=_("Train in place of this run, removed at the end."))
@overfit_option
@json_option
def run(
    recipe_file: Path,
    overrides: tuple[str, ...],
    root: Path,
    strategy: str | None,
    on_existing: Any,
    overwrite: str | None,
    allow_overfit: bool,
    as_json: bool,
) -> int:
    from fasttune.training import distributed

    if distributed.initialize() > 0:
        from fasttune.training import train

        train.train_as_worker()
        return 0
    from fasttune import pipeline
    from fasttune.runs import store
    from fasttune.terminal import tables

    request = pipeline.RunRequest(recipe_file, overrides, root, strategy, on_existing, overwrite, allow_overfit)
    planner = pipeline.Planner()
    request = ask_what_is_open(request, planner)
    if request.on_existing == "skip" and store.list_runs(root, name := planner.recipe(request).name):
        from fasttune.terminal import runs_tree

        runs_tree.show_current(root, name, as_json=as_json)
        return 0
    try:
        result = pipeline.run(request, planner)
    except FasttuneError as problem:
        if pipeline.resumes(request, planner, problem):
            problem.after = _("resume from the newest checkpoint: `{command}`", command=request.resuming.command)
        raise
    if not result.record.finished:
        command = request.resuming.command
        say(_("stopped at step {step}; to resume there: `{command}`", step=result.record.steps, command=command))
        return STOPPED
    tables.show_result(result.record, result.artifacts, result.probes, as_json=as_json)
    return 0


def ask_what_is_open(request: RunRequest, planner: Planner) -> RunRequest:
    """The request, completed by the menu of its series where it must be and a person can be asked."""
    if not can_ask():
        return request
    from fasttune.terminal import series_menu

    return series_menu.ask_about_existing(request, planner) if series_menu.needs_answer(request, planner) else request


@commands.command(help=_("Show every resolved value with its source, and what training would do; starts nothing."))
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@overrides_option
@runs_option
@continue_option
@overfit_option
@json_option
def plan(
    recipe_file: Path,
    overrides: tuple[str, ...],
    root: Path,
    strategy: str | None,
    allow_overfit: bool,
    as_json: bool,
) -> None:
    from fasttune import pipeline
    from fasttune.terminal import tables

    request = pipeline.RunRequest(recipe_file, overrides, root, strategy, allow_overfit=allow_overfit)
    planned = pipeline.Planner().plan(request)
    tables.show_plan(planned, pipeline.trained_by(request, planned).command, as_json=as_json)


@commands.command("show", help=_("Show the tokens of one sample, FILE:LINE, with the supervised ones marked."))
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
    from fasttune.terminal import tables

    tables.show_sample(sample, base, recipe_file, overrides, as_json=as_json)


@commands.command(help=_("Talk to the GGUF of a run (a series name, a run id, or a .gguf file)."))
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option("--prompt", help=_("One question; print the answer and end."))
@click.option("--system", help=_("A system prompt in place of the trained one."))
@click.option(
    "--temperature",
    default=0.7,
    show_default=True,
    type=click.FloatRange(0, 2),
    help=_("Sampling temperature; 0 takes the likeliest token each time."),
)
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1))
@runs_option
def chat(
    name: str, prompt: str | None, system: str | None, temperature: float, max_new_tokens: int, root: Path
) -> None:
    from fasttune.terminal.chat import chat

    chat(name, root, prompt, system, temperature, max_new_tokens)


@commands.command(help=_("Write GGUF files of a finished run, as its recipe or the options say."))
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option(
    "--gguf", "types", multiple=True, metavar="TYPE", help=_("f16, q8_0, q6_k, q5_k_m or q4_k_m; may be repeated.")
)
@click.option("--ollama", metavar="MODEL", help=_("Import the first file into Ollama under this name."))
@runs_option
def export(name: str, types: tuple[str, ...], ollama: str | None, root: Path) -> None:
    from fasttune.export import export_run
    from fasttune.recipe.load import load_recipe
    from fasttune.runs import documents, store
    from fasttune.training import provenance

    run = store.find(root, name)
    given = [f"export.gguf={json.dumps([one.lower() for one in types])}"] * bool(types) + [
        f"export.ollama={ollama}"
    ] * bool(ollama)
    recipe = load_recipe(run.recipe, [*documents.recorded_overrides(run), *given])
    base = provenance.locate_base(run, recipe.model)
    provenance.require_same_base(run, base)
    with store.exclusive(run):
        artifacts = export_run(run, base, recipe.export, say)
    for artifact in artifacts:
        click.echo(artifact.path)


@commands.command(
    "runs", help=_("Show the runs of all series, of one, or one run, as a tree with their figures and verdicts.")
)
@click.argument("name", metavar="[NAME|RUN]", required=False, shell_complete=command_line.complete_run)
@runs_option
@json_option
def list_runs(name: str | None, root: Path, as_json: bool) -> int:
    from fasttune.terminal import runs_tree

    return runs_tree.show_runs(root, name, as_json=as_json)


@commands.command(help=_("Write a recipe with values chosen from the data and this machine, or a complete example."))
@click.argument("name", required=False)
@click.option("--data", "files", multiple=True, metavar="FILE", help=_("The samples; may be repeated."))
@click.option("--base", help=_("Hub name or folder of the base; default: the largest that fits the free memory."))
@click.option(
    "--example", metavar="quickstart|linzhi",
    help=_("Write the recipes and the data of this example, which comes with fasttune, into a folder."),
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path),
    help=_("Where to write the recipe (default: recipes/NAME.toml), or the folder for an example (default: this one)."),
)  # fmt: skip
def init(name: str | None, files: tuple[str, ...], base: str | None, example: str | None, out: Path | None) -> None:
    if example is not None:
        if name or files or base:
            raise click.UsageError(_("--example has its own recipes and data: leave out NAME, --data and --base"))
        from fasttune.planning import examples

        written = examples.write(example, out or Path())
        for path in written:
            say(_("wrote {path}", path=path))
        say(_("train it with: `{command}`", command=examples.command(example, out or Path())))
        click.echo("\n".join(str(path) for path in written if path.suffix == ".toml"))
        return
    if not name or not files:
        raise click.UsageError(
            _("give NAME and --data FILE for a recipe of your own, or --example quickstart for a complete example")
        )
    from fasttune.planning.init import command
    from fasttune.planning.init import init as write_recipe

    path = write_recipe(name, files, base, out)
    say(_("train it with: `{command}`", command=command("run", path)))
    click.echo(path)


@commands.command(
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


@commands.command(help=_("Pick a series, a recipe or a data file, and what to do with it."))
@runs_option
def menu(root: Path) -> int:
    from fasttune.terminal.entry_menu import ask_for_command

    while arguments := ask_for_command(root):
        try:
            code = commands.main(arguments, prog_name="fasttune", standalone_mode=False)
        except FasttuneError as problem:
            show_findings(problem.findings)
            continue
        if arguments[0] == "run":
            return int(code or 0)
    return 0
