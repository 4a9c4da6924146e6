"""The verbs that prepare and start a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fasttune.cli.options import STOPPED, continue_option, json_option, overfit_option, overrides_option, runs_option
from fasttune.command import TRIALS
from fasttune.console import FasttuneError, _, can_ask, findings_of, say, show_findings, stderr_console
from fasttune.data.fact_samples import SEED
from fasttune.terminal import command_line

if TYPE_CHECKING:
    from fasttune.pipeline import Planner, RunRequest


@click.command(help=_("Write a recipe with values chosen from the data and this machine, or a complete example."))
@click.argument("name", required=False)
@click.option("--data", "files", multiple=True, metavar="FILE", help=_("The samples; may be repeated."))
@click.option("--base", help=_("Hub name or folder of the base; default: the largest that fits the free memory."))
@click.option(
    "--example", metavar="quickstart|nell|qin|linzhi",
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
        click.echo("\n".join(str(path) for path in written if path.parent.name == "recipes"))
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


@click.command(
    help=_(
        "Write training samples of a fact sheet's `ask` and `say`, so that its facts stay; `--continue augment` "
        "makes none, it trains longer."
    )
)
@click.argument("source", metavar="FACTS|RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE",
    help=_("Where to write them (default: facts-train.jsonl beside the sheet)."),
)  # fmt: skip
@click.option(
    "--per-fact", type=click.IntRange(1, 1000),
    help=_("Samples of each fact (default: 2 to 8, so that there are as many in all as conversations)."),
)  # fmt: skip
@click.option("--seed", default=SEED, show_default=True, type=int, help=_("Another one makes other samples."))
@click.option(
    "--system", type=click.Path(path_type=Path), metavar="FILE",
    help=_("The system prompt of the samples (default: the usual one of the recipe's training data, else none)."),
)  # fmt: skip
@json_option
def augment(source: Path, out: Path | None, per_fact: int | None, seed: int, system: Path | None, as_json: bool) -> int:
    from fasttune.planning.augment import AugmentRequest
    from fasttune.terminal import augmentation

    return augmentation.show_augmented(AugmentRequest(source, out, per_fact, seed, system), as_json=as_json)


@click.command(help=_("Show what training would do, and what it takes: values, tokens, memory, time; starts nothing."))
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@overrides_option
@runs_option
@continue_option
@overfit_option
@click.option("--all", "show_all", is_flag=True, help=_("Show the settings that have their defaults, too."))
@json_option
def plan(
    recipe_file: Path,
    overrides: tuple[str, ...],
    root: Path,
    strategy: str | None,
    allow_overfit: bool,
    show_all: bool,
    as_json: bool,
) -> None:
    from fasttune import pipeline
    from fasttune.terminal import tables
    from fasttune.training import hub
    from fasttune.training.estimate import estimate
    from fasttune.training.plan_check import base_and_samples

    request = pipeline.RunRequest(recipe_file, overrides, root, strategy, allow_overfit=allow_overfit)
    planned = pipeline.Planner().plan(request)
    trains, resume = pipeline.trained_by(request, planned)
    base = hub.find_offline(planned.recipe.model)
    found = findings_of(lambda: base_and_samples(planned), lambda: pipeline.foreseen(planned, base, root, resume))
    planned, taken = replace(planned, findings=(*found, *planned.findings)), estimate(planned, root)
    fits = replace(trains, overrides=(*trains.overrides, *taken.change)).command if taken.change else ""
    tables.show_plan(planned, trains.command, taken, fits, as_json=as_json, show_all=show_all)


@click.command(help=_("Train what the recipe says, export GGUF files, answer the probe questions."))
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@overrides_option
@runs_option
@continue_option
@click.option(
    "--on-existing", type=click.Choice(["resume", "new", "stop", "skip"]),
    help=_(
        "With earlier runs of this name: resume an unfinished one, train a new one, stop, or skip training and show "
        "the run in use, which is resumed where it is unfinished. Default: ask at a terminal; without one resume, else "
        "stop."
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
    from fasttune.terminal import report_page, tables
    from fasttune.web import address

    request = pipeline.RunRequest(recipe_file, overrides, root, strategy, on_existing, overwrite, allow_overfit)
    planner = pipeline.Planner()
    request = ask_what_is_open(request, planner)
    request = pipeline.resumed_instead_of_skipped(request, planner)
    if request.on_existing == "skip" and store.list_runs(root, name := planner.recipe(request).name):
        from fasttune.terminal import runs_tree

        runs_tree.show_current(root, name, as_json=as_json)
        return 0
    if url := address.running(root, with_token=stderr_console.is_terminal):
        say(_("watch it on the board: {url}", url=url))
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
    page = report_page.written_after(result.record.run)
    return tables.show_result(
        result.record, result.artifacts, result.probes, ollama=result.ollama, page=page, as_json=as_json
    )


@click.command(help=_("Train a recipe with several values of a setting and choose the best by held-out loss."))
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--vary", multiple=True, required=True, metavar="KEY=VALUE,VALUE|KEY=LOW..HIGH",
    shell_complete=command_line.complete_setting,
    help=_("The setting that varies; may be repeated: then one after the other, each with the best of those before."),
)  # fmt: skip
@click.option("--together", is_flag=True, help=_("Try all combinations of several settings at once."))
@click.option(
    "--trials", default=TRIALS, show_default=True, type=click.IntRange(2, 10_000),
    help=_("How many values of a range are tried."),
)  # fmt: skip
@click.option(
    "--storage", metavar="URL", default="", envvar="FASTTUNE_STORAGE",
    help=_("Where the trials are kept (or FASTTUNE_STORAGE), for several processes: postgresql+psycopg://…"),
)  # fmt: skip
@click.option("--no-prune", is_flag=True, help=_("Train every trial to its end, also those that fall behind."))
@click.option("--no-facts", is_flag=True, help=_("Ask the best trials no questions of the recipe's fact sheet."))
@overrides_option
@runs_option
@continue_option
@overfit_option
@json_option
def sweep(
    recipe_file: Path,
    vary: tuple[str, ...],
    together: bool,
    trials: int,
    storage: str,
    no_prune: bool,
    no_facts: bool,
    overrides: tuple[str, ...],
    root: Path,
    strategy: str | None,
    allow_overfit: bool,
    as_json: bool,
) -> int:
    from fasttune import pipeline
    from fasttune.sweep import aftermath
    from fasttune.sweep.recipe_diff import as_trained, recipe_diff
    from fasttune.sweep.study import Stopped
    from fasttune.sweep.sweep import SweepRequest
    from fasttune.sweep.sweep import sweep as train_all
    from fasttune.terminal import sweep_table

    request = pipeline.RunRequest(recipe_file, overrides, root, strategy, allow_overfit=allow_overfit)
    asked = SweepRequest(request, vary, together, trials, storage, not no_prune, not no_facts)
    try:
        found = train_all(asked)
    except Stopped:
        say(_("stopped; the same command continues the sweep: `{command}`", command=asked.command))
        return STOPPED
    after = aftermath.settle(found, root, asks_facts=not no_facts)
    chosen = as_trained(overrides, found.finalists[0].settings) if found.finalists else {}
    diff = recipe_diff(recipe_file, chosen)
    return sweep_table.show(found, after, diff, root, as_json=as_json)


def ask_what_is_open(request: RunRequest, planner: Planner) -> RunRequest:
    """The request, completed by the menu of its series where it must be and a person can be asked."""
    if not can_ask():
        return request
    from fasttune.terminal import series_menu

    return series_menu.ask_about_existing(request, planner) if series_menu.needs_answer(request, planner) else request


@click.command(help=_("Pick a series, a recipe or a data file, and what to do with it."))
@overrides_option
@runs_option
@click.pass_context
def menu(context: click.Context, overrides: tuple[str, ...], root: Path) -> int:
    from fasttune import files
    from fasttune.recipe.load import check_overrides
    from fasttune.terminal.entry_menu import Commands, ask_for_command

    commands = context.find_root().command
    assert isinstance(commands, click.Group)
    check_overrides(overrides)
    options = {
        verb: [name for parameter in command.params for name in parameter.opts]
        for verb, command in commands.commands.items()
    }
    while arguments := ask_for_command(Commands(root, overrides, options)):
        try:
            with files.condition_as_error():
                code = commands.main(arguments, prog_name="fasttune", standalone_mode=False)
        except FasttuneError as problem:
            show_findings(problem.findings)
            continue
        if arguments[0] == "run":
            return int(code or 0)
    return 0
