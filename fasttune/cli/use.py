"""The verbs for a finished run: talk to it, pick the epoch it serves, write its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fasttune.cli.options import LONGEST_ANSWER, FiniteRange, json_option, runs_option
from fasttune.console import _, say
from fasttune.terminal import command_line


@click.command(
    help=_("Talk to a run (its GGUF file), RUN@STEP, RUN@epoch-2, a .gguf file or a base; to several side by side.")
)
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=command_line.complete_run)
@click.option("--prompt", help=_("One question; print the answer and end."))
@click.option("--system", help=_("A system prompt in place of the trained one."))
@click.option(
    "--temperature",
    type=FiniteRange(0, 2),
    help=_("Sampling temperature, 0 for the likeliest token each time (default: as the run is served, else 0.7)."),
)
@click.option(
    "--max-new-tokens",
    type=LONGEST_ANSWER,
    help=_("Longest answer in tokens (default: as the run is served, else 512)."),
)
@click.option("--adapter", is_flag=True, help=_("Let the adapter answer, by torch, in place of the GGUF file."))
@runs_option
def chat(
    names: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    temperature: float | None,
    max_new_tokens: int | None,
    adapter: bool,
    root: Path,
) -> None:
    from fasttune.terminal.chat import ChatRequest, chat

    chat(ChatRequest(names, root, prompt, system, adapter, temperature, max_new_tokens))


@click.command(
    help=_(
        "Write the files of a run, as its recipe or the options say. RUN may be a checkpoint: linzhi/001/checkpoint-10."
    )
)
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option(
    "--gguf",
    "types",
    multiple=True,
    metavar="TYPE",
    help=_("f16, q8_0, q4_k_m …, or auto: the smallest that keeps what was learned; several between commas."),
)
@click.option("--merged", is_flag=True, help=_("The merged 16-bit model as a Hugging Face folder."))
@click.option("--adapter", is_flag=True, help=_("The adapter alone as a GGUF file, for llama.cpp's --lora."))
@click.option("--epoch", metavar="N|best", help=_("Of the adapter that was kept after so many epochs."))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=_("Folder for the files (default: the run's exports/)."),
)
@click.option(
    "--to", metavar="lmstudio|DIR", help=_("Copy the GGUF files to where LM Studio looks for them, or into a folder.")
)
@click.option(
    "--ollama", metavar="[MODEL]", is_flag=False, flag_value="",
    help=_("Import the first file into Ollama under this name (default: the recipe's, or the series'), and prove it."),
)  # fmt: skip
@click.option("--restore", metavar="TAG", help=_("Only give the model in Ollama back what is kept under this tag."))
@click.option("--imatrix", metavar="own|none|FILE", help=_("Importance matrix of the types below q8_0."))
@runs_option
@json_option
def export(name: str, root: Path, restore: str | None, as_json: bool, types: tuple[str, ...], **given: Any) -> int:
    from fasttune.export.run_export import ExportOptions, export_named, restore_named
    from fasttune.terminal.exporting import show_exported

    if restore is not None:
        click.echo(restore_named(name, root, given["ollama"] or "", restore, say))
        return 0
    options = ExportOptions(types=types or None, **given)
    return show_exported(export_named(name, root, options, say), as_json=as_json)


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
