"""The verbs for a finished run: talk to it, pick the epoch it serves, write its files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fasttune.cli.options import json_option, runs_option
from fasttune.console import _, say
from fasttune.terminal import command_line


@click.command(help=_("Talk to the GGUF of a run (a series name, a run id, or a .gguf file)."))
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


@click.command(help=_("Write GGUF files of a finished run, as its recipe or the options say."))
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


@click.command(help=_("List the epochs of a run, or make the adapter of one the run's, for export, chat and the like."))
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option(
    "--epoch", metavar="N|best", shell_complete=command_line.complete_epoch,
    help=_("The epoch, or `best` for the lowest held-out loss."),
)  # fmt: skip
@click.option("--own", is_flag=True, help=_("Back to the run's own adapter, which the training ended with."))
@runs_option
@json_option
def pick(name: str, epoch: str | None, own: bool, root: Path, as_json: bool) -> None:
    from fasttune.runs import store
    from fasttune.terminal import epoch_table

    if own and epoch is not None:
        raise click.UsageError(_("give --epoch or --own, not both"))
    run = store.find(root, name)
    if own or epoch is not None:
        epoch_table.pick(run, epoch)
    if as_json or not (own or epoch is not None):
        epoch_table.show(run, as_json=as_json)
