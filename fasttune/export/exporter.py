"""The export from the request to the finished artifacts.

A file gets its name only after it was checked: it is written as the partial file NAME.gguf.part, measured, flushed,
described in NAME.json and renamed. A failure leaves only what was finished before it. An existing file is never
overwritten: one made from the same inputs is used as it is, otherwise the export is refused.
"""

from __future__ import annotations

import contextlib
import errno
import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.console import COLON, _, error
from fasttune.export import preflight, smallest
from fasttune.export.artifact import Artifact, gguf_files, is_of_served_adapter, read_artifact
from fasttune.export.lora_file import make_lora_file
from fasttune.export.making import FileMaker, Report, temporary
from fasttune.export.merged import write_merged
from fasttune.export.modelfile import modelfile
from fasttune.export.preflight import ExportPlan
from fasttune.export.request import AUTO, ExportRequest, request_for_run
from fasttune.export.served import to_serve
from fasttune.files import write_text
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs import documents
from fasttune.runs.documents import MergedDocument
from fasttune.runs.epochs import epoch_word, picked_epoch
from fasttune.runs.store import Run

# What a disk or a folder refuses; any other OSError is a bug and keeps its traceback.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


def export(request: ExportRequest, report: Report) -> list[Artifact]:
    """Make what is requested; the artifacts in the order of the request's types.

    A Modelfile for the first file that is served is (re)written beside the files.

    Raises FasttuneError: everything preflight finds at once; or weights that are not finite, a full disk, a file that
    is not the trained model (verify.py).
    """
    plan = preflight.preflight(request)
    for warning in plan.warnings:
        report(f"{_(warning.level)}{_(COLON)}{warning.where}{_(COLON)}{warning.what}")
    with disk_errors(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
        killed = request.out.glob(f"{glob.escape(request.name)}[-.]*.part")
        for partial in (*killed, *request.lora_file.parent.glob("*.gguf.part")):  # of an export that was killed
            partial.unlink()
        artifacts = make_files(plan, report)
        make_merged(plan, report)
        if plan.lora_missing:
            make_lora_file(plan, report)
        if artifacts:
            write_modelfile(to_serve(artifacts) or artifacts[0], request, report)
    return artifacts


def export_run(run: Run, base: Path, recipe: ExportRecipe, report: Report) -> list[Artifact]:
    """Make the files that a recipe's [export] table asks for of a finished run, and put the figures into its scores.

    Raises FasttuneError as `export`.
    """
    request = request_for_run(run, base, recipe)
    if request.is_empty:
        return []
    say_what_is_made(run, report)
    artifacts = export(request, report)
    record_figures(run, artifacts)
    return artifacts


def say_what_is_made(run: Run, report: Report) -> None:
    """Which epoch is exported where one is picked, and which files are of another one; they stay."""
    picked = picked_epoch(run)
    if picked:
        report(_("epoch {epoch} of {run} is picked; its files have it in their names", epoch=epoch_word(picked.epoch),
                 run=run.id))  # fmt: skip
    others = [path.name for path in gguf_files(run) if not is_of_served_adapter(run, path)]
    if others:
        report(_("made of another epoch, and left as they are: {files}", files=", ".join(others)))


def record_figures(run: Run, artifacts: Sequence[Artifact]) -> None:
    """Put the figures of files into scores.json, in the place of older ones of the same name."""
    if not any(artifact.figures for artifact in artifacts):
        return
    scores = documents.read_scores(run)
    found = {one.file: one for one in scores.exports}
    found |= {artifact.figures.file: artifact.figures for artifact in artifacts if artifact.figures is not None}
    documents.write(run.scores, replace(scores, exports=tuple(found.values())))


def make_files(plan: ExportPlan, report: Report) -> list[Artifact]:
    """Write, measure and publish the GGUF files that do not exist yet; all files of the request, in its order."""
    request = plan.request
    for quantization in request.types:
        if quantization not in plan.missing_types:
            report(_("{name} already exists", name=request.path(quantization).name))
    f16, importance = (request.out / f"{request.name}.{name}.part" for name in ("f16", "imatrix"))
    chosen = {}
    with temporary(f16), temporary(importance):
        maker = FileMaker(plan, f16, importance, report)
        for quantization in plan.missing_types:
            if quantization == AUTO:
                chosen[AUTO] = smallest.pick(maker)
                continue
            with temporary(request.path(quantization).with_suffix(".gguf.part")) as partial:
                maker.write(quantization, partial)
                measured = maker.measure(quantization, partial) if plan.can_check else None
                maker.finish(quantization, partial, measured)
    types = dict.fromkeys(chosen.get(quantization, quantization) for quantization in request.types)
    return [read_artifact(request.path(quantization)) for quantization in types]


def make_merged(plan: ExportPlan, report: Report) -> None:
    """Write the merged folder where it is requested and does not exist yet."""
    if not plan.merged_missing:
        return
    report(_("writing the merged model as a Hugging Face folder"))
    request, source = plan.request, plan.source
    document = MergedDocument(inputs=plan.inputs, run_id=request.run_id, base=str(request.base))
    write_merged(request.merged, source.base, source.loras, request.tokenizer, document)


def write_modelfile(artifact: Artifact, request: ExportRequest, report: Report) -> None:
    """Write the Modelfile for `ollama create` with this file, where its system prompt can stand in one."""
    text = modelfile(artifact.path.name, artifact.system, request.num_ctx, request.serving)
    if text is not None:
        write_text(artifact.path.parent / "Modelfile", text)
        return
    report(_("no Modelfile: a Modelfile can't hold some characters of the system prompt; the import into Ollama can"))


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise FasttuneError where the disk or the folder does not take what the block writes."""
    try:
        yield
    except OSError as failure:
        if failure.errno not in DISK_ERRORS:
            raise
        what = _("can't be written: {problem}", problem=failure.strerror)
        fix = _("free some space or choose another folder")
        raise error("cannot-write", what, where=str(folder), fix=fix) from failure
