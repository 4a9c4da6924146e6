"""The verbs for a finished run: talk to it, write its files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fasttune.cli.options import runs_option
from fasttune.console import _, say, stderr_console
from fasttune.terminal import command_line


@click.command(help=_("Talk to a run (its GGUF file), RUN@STEP, a .gguf file or a base; to several side by side."))
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=command_line.complete_run)
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
@click.option("--adapter", is_flag=True, help=_("Let the adapter answer, by torch, in place of the GGUF file."))
@runs_option
def chat(
    names: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    temperature: float,
    max_new_tokens: int,
    adapter: bool,
    root: Path,
) -> None:
    from fasttune.export.llama import Sampling
    from fasttune.terminal.chat import ChatRequest, chat

    chat(ChatRequest(names, root, prompt, system, Sampling(max_new_tokens, temperature), adapter))


@click.command(help=_("Write GGUF files of a finished run, as its recipe or the options say."))
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option(
    "--gguf",
    "types",
    multiple=True,
    metavar="TYPE",
    help=_("f16, q8_0, q4_k_m …, or auto: the smallest that keeps what was learned; several between commas."),
)
@click.option("--imatrix", metavar="own|none|FILE", help=_("Importance matrix of the types below q8_0."))
@click.option("--ollama", metavar="MODEL", help=_("Import the first file into Ollama under this name."))
@runs_option
def export(name: str, types: tuple[str, ...], imatrix: str | None, ollama: str | None, root: Path) -> None:
    from fasttune.export import export_run
    from fasttune.recipe.load import load_recipe
    from fasttune.runs import documents, store
    from fasttune.terminal.export_table import exports_table
    from fasttune.training import provenance

    run = store.find(root, name)
    given = [f"export.gguf={json.dumps(types)}"] * bool(types)
    given += [f"export.ollama={ollama}"] * bool(ollama) + [f"export.imatrix={imatrix}"] * bool(imatrix)
    recipe = load_recipe(run.recipe, [*documents.recorded_overrides(run), *given])
    base = provenance.locate_base(run, recipe.model)
    provenance.require_same_base(run, base)
    with store.exclusive(run):
        artifacts = export_run(run, base, recipe.export, say)
    if figures := [artifact.figures for artifact in artifacts if artifact.figures is not None]:
        stderr_console.print(exports_table(figures))
    for artifact in artifacts:
        click.echo(artifact.path)
