"""`fasttune export`: the files of a run, of one of its checkpoints or kept epochs, and where they go.

    RUN  RUN@10  RUN@epoch-2  --epoch 2 ─► Origin ─► ExportRequest ─► exporter.py ─► Exported
                                                                             copies for LM Studio, import into Ollama

A checkpoint's or an epoch's files have a folder of their own in exports/, so that the served ones stay what they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, _, error, usage_error
from fasttune.export import layouts, ollama
from fasttune.export.artifact import Artifact
from fasttune.export.exporter import disk_errors, export, record_figures
from fasttune.export.ollama_import import OllamaImport, held_back, import_run
from fasttune.export.request import AUTO, ExportRequest, request_for_run
from fasttune.export.served import to_serve
from fasttune.planning.parents import how_to_finish
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import ExportRecipe, Recipe
from fasttune.runs import adapters, checkpoints, documents, epochs, store
from fasttune.runs.store import Run
from fasttune.training import provenance
from fasttune.training.space import lacking_space

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """The options of the verb; `types`, `ollama` and `epoch` are None where they were not given, an empty `ollama`
    takes the name in the recipe, or the series'."""

    types: tuple[str, ...] | None = None
    imatrix: str | None = None
    merged: bool = False
    adapter: bool = False
    ollama: str | None = None
    epoch: str | None = None
    out: Path | None = None
    to: str | None = None

    @property
    def names_files(self) -> bool:
        """Whether the options say what to make; else the recipe does."""
        return self.types is not None or self.merged or self.adapter


@dataclass(frozen=True)
class Origin:
    """The adapter folder that files are made of. `part`: "" for what the run serves, else checkpoint-10 or epoch-2."""

    run: Run
    adapter: Path
    part: str

    @property
    def name(self) -> str:
        """linzhi/001-fresh or linzhi/001-fresh/checkpoint-10, which `fasttune export` takes."""
        return f"{self.run.id}/{self.part}" if self.part else self.run.id

    @property
    def is_finished(self) -> bool:
        """Whether the adapter is one that a finished training ended with, or kept."""
        return not self.part.startswith("checkpoint") and self.run.status == "finished"


@dataclass(frozen=True)
class Exported:
    """What an export has made: the GGUF files, the merged folder, the adapter's GGUF file, the copies elsewhere, the
    import into Ollama, and the command that serves the first file with llama.cpp ("" without a file)."""

    origin: Origin
    artifacts: tuple[Artifact, ...]
    merged: Path | None
    lora_file: Path | None
    copies: tuple[Path, ...]
    ollama: OllamaImport | None
    llama_server: str


def export_named(name: str, root: Path, options: ExportOptions, report: Report) -> Exported:
    """Make what the options, or the recipe, ask for of a run, a checkpoint or an epoch.

    Raises FasttuneError as `export` and `import_run` do, and for a name or a folder that is none; what can be known is
    found before a byte is written.
    """
    origin = find_origin(name, root, options.epoch)
    run = origin.run
    recipe = resolved_recipe(run, options)
    base = provenance.locate_base(run, recipe.model)
    provenance.require_same_base(run, base)
    request = request_for(origin, base, recipe, options)
    folder = layouts.target_folder(options.to, request.name) if options.to else None
    if not origin.is_finished:
        report(_("{name} is of a training that is not finished: it has learned less than the recipe asks for",
                 name=origin.name))  # fmt: skip
    with store.exclusive(run):
        artifacts = export(request, report) if not request.is_empty else []
        if request.out == run.exports:
            record_figures(run, artifacts)
        copies = copy_all(artifacts, folder) if folder else []
        imported = None
        if artifacts and recipe.export.ollama and imports(origin, options):
            imported = into_ollama(run, base, artifacts, recipe.export, options, report)
    served = copies or [artifact.path for artifact in artifacts]
    command = layouts.llama_server(served[0], request.num_ctx, request.serving) if served else ""
    merged = request.merged if request.keep_merged else None
    lora_file = request.lora_file if request.adapter_file else None
    return Exported(origin, tuple(artifacts), merged, lora_file, tuple(copies), imported, command)


def restore_named(name: str, root: Path, model: str, tag: str, report: Report) -> str:
    """Give a run's model in Ollama back what is kept under a tag of its name; returns the name of the model.

    Raises FasttuneError as `ollama.restore`, and where neither recipe nor command line names a model.
    """
    run = find_origin(name, root, None).run
    model = model or resolved_recipe(run, ExportOptions()).export.ollama or run.series
    ollama.restore(model, tag, report)
    return model


# What it is made of --------------------------------------------------------------------------------------------------


def find_origin(name: str, root: Path, epoch: str | None) -> Origin:
    """The adapter that a name and --epoch stand for. Raises FasttuneError where there is none, or it is damaged."""
    if epoch is not None and adapters.is_named(name):
        what = _("{name} names an adapter of its run already", name=name)
        raise usage_error("two-adapters", what, where=f"--epoch {epoch}", fix=_("leave one of the two out"))
    found = adapters.named(name, root)
    run = found.run if found else store.find(root, name)
    if found is None and epoch is not None:
        found = adapters.of_epoch(run, epoch, f"--epoch {epoch}")
    if found:
        return Origin(run, found.folder, found.part)
    if run.status != "finished":
        raise unfinished(run)
    return Origin(run, epochs.served_adapter(run), "")


def unfinished(run: Run) -> FasttuneError:
    """The error for a run that has no adapter yet, with the checkpoint that can be exported in its place."""
    found = checkpoints.list_checkpoints(run)
    fix = how_to_finish(run)
    if found:
        newest = command_line(["export", f"{run.id}/{found[-1].name}", *runs_option(run.root)])
        fix = _("{finish}, or export its newest checkpoint: `{command}`", finish=fix, command=newest)
    return error("not-finished", _("this run has no adapter yet"), where=run.id, fix=fix)


def resolved_recipe(run: Run, options: ExportOptions) -> Recipe:
    """The recipe of a run with the options in place of its own. Raises UsageError for a value that it does not take."""
    given = documents.recorded_overrides(run)
    if options.types is not None:
        given.append(f"export.gguf={json.dumps(options.types)}")
    if options.imatrix:
        given.append(f"export.imatrix={options.imatrix}")
    if options.ollama:
        given.append(f"export.ollama={options.ollama}")
    recipe = load_recipe(run.recipe, given)
    if options.ollama == "" and not recipe.export.ollama:
        recipe = load_recipe(run.recipe, [*given, f"export.ollama={run.series}"])
    return recipe


def request_for(origin: Origin, base: Path, recipe: Recipe, options: ExportOptions) -> ExportRequest:
    """The request of an export; where the options name files, only these are made."""
    request = request_for_run(origin.run, base, recipe.export)
    out = options.out or (request.out / origin.part if origin.part else request.out)
    types, keep_merged = request.types, request.keep_merged
    if options.names_files:
        needs_file = options.to is not None or options.ollama is not None
        types = types if options.types is not None or needs_file else ()
        keep_merged = options.merged
    return replace(
        request, adapter=origin.adapter, out=out, run_id=origin.name, types=types, keep_merged=keep_merged,
        adapter_file=options.adapter,
    )  # fmt: skip


def imports(origin: Origin, options: ExportOptions) -> bool:
    """Whether the first file goes into Ollama: where it is asked for, or the recipe says so of what the run serves."""
    return options.ollama is not None or (not origin.part and options.out is None)


def into_ollama(
    run: Run, base: Path, artifacts: list[Artifact], recipe: ExportRecipe, options: ExportOptions, report: Report
) -> OllamaImport:
    """Import the first file that is served; of files that were asked for by their type the first, whatever it keeps."""
    by_name = options.types is not None and not {AUTO} & {one.lower() for one in options.types}
    served = to_serve(artifacts) or (artifacts[0] if by_name else None)
    if served is None:
        return OllamaImport(recipe.ollama, None, None, (held_back(run, recipe.ollama),))
    return import_run(run, base, served, recipe, report)


def copy_all(artifacts: list[Artifact], folder: Path) -> list[Path]:
    """Copy files into a folder. Raises FasttuneError where it has other files of these names, or no room."""
    needed = sum(artifact.bytes for artifact in artifacts if not (folder / artifact.path.name).exists())
    if findings := lacking_space(needed, folder, _("free some space, or name another folder after --to")):
        raise FasttuneError(*findings)
    with disk_errors(folder):
        return [layouts.copy_file(artifact.path, folder) for artifact in artifacts]
