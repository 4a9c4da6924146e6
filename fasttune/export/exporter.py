"""The export from the request to the finished artifacts.

A file gets its name only after it was checked: it is written as the partial file NAME.gguf.part, measured, flushed,
described in NAME.json and renamed. A failure leaves only what was finished before it. An existing file is never
overwritten: one made from the same inputs is used as it is, otherwise the export is refused.
"""

from __future__ import annotations

import contextlib
import errno
import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fasttune.console import _, error
from fasttune.export import chatml, preflight, quantize, verify
from fasttune.export.artifact import Artifact, gguf_files, is_served, publish, read_artifact
from fasttune.export.merged import write_merged
from fasttune.export.modelfile import modelfile
from fasttune.export.ollama import import_into_ollama
from fasttune.export.preflight import ExportPlan
from fasttune.export.request import ExportRequest, request_for_run
from fasttune.export.write import WRITTEN_TYPES, write_gguf
from fasttune.files import file_sha256, write_text
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs.documents import MergedDocument
from fasttune.runs.epochs import epoch_word, picked_epoch, weights_digest
from fasttune.runs.store import Run

Report = Callable[[str], None]  # gets one line a step
# What a disk or a folder refuses; any other OSError is a bug and keeps its traceback.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


def export(request: ExportRequest, report: Report) -> list[Artifact]:
    """Make what is requested; the artifacts in the order of the request's types.

    A Modelfile for the first type is (re)written beside the files.

    Raises FasttuneError: everything preflight finds at once; or weights that are not finite, a full disk, a file that
    is not the trained model (verify.py).
    """
    plan = preflight.preflight(request)
    for warning in plan.warnings:
        report(f"{_(warning.level)}: {warning.where}: {warning.what}")
    with disk_errors(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
        for partial in request.out.glob(f"{glob.escape(request.name)}[-.]*.part"):  # of an export that was killed
            partial.unlink()
        make_files(plan, report)
        make_merged(plan, report)
        artifacts = [read_artifact(request.path(quantization)) for quantization in request.types]
        if artifacts:
            write_modelfile(artifacts[0], request, report)
    return artifacts


def export_run(run: Run, base: Path, recipe: ExportRecipe, report: Report) -> list[Artifact]:
    """Make what a recipe's [export] table asks for of a finished run; the first file is imported into Ollama where it
    says so. Raises FasttuneError as `export` and `import_into_ollama` do."""
    request = request_for_run(run, base, recipe)
    if request.is_empty:
        return []
    say_what_is_made(run, report)
    artifacts = export(request, report)
    if recipe.ollama and artifacts:
        import_into_ollama(artifacts[0], recipe.ollama, num_ctx=recipe.num_ctx, report=report)
    return artifacts


def say_what_is_made(run: Run, report: Report) -> None:
    """Which epoch is exported where one is picked, and which files are of another one; they stay."""
    picked = picked_epoch(run)
    if picked:
        report(_("epoch {epoch} of {run} is picked; its files have it in their names", epoch=epoch_word(picked.epoch),
                 run=run.id))  # fmt: skip
    others = [path.name for path in gguf_files(run) if not is_served(run, path)]
    if others:
        report(_("made of another epoch, and left as they are: {files}", files=", ".join(others)))


def make_files(plan: ExportPlan, report: Report) -> None:
    """Write, check and publish the GGUF files that do not exist yet."""
    request = plan.request
    for quantization in request.types:
        if quantization not in plan.missing_types:
            report(_("{name} already exists", name=request.path(quantization).name))
    reference: verify.Reference | None = None
    with temporary(request.out / f"{request.name}.f16.part") as f16:
        for quantization in plan.missing_types:
            with temporary(request.path(quantization).with_suffix(".gguf.part")) as partial:
                make_file(plan, quantization, f16, partial, report)
                if plan.can_check and reference is None:  # after the first file, whose writing has seen all weights
                    reference = compute_reference(plan, report)
                checks = check(plan, quantization, partial, reference, report)
                made = describe(plan, quantization, partial, checks)
                publish(partial, made, request.base, plan.inputs, weights_digest(request.adapter))


def make_file(plan: ExportPlan, quantization: str, f16: Path, partial: Path, report: Report) -> None:
    """Write one file at `partial`. K-quants are made from the F16 file: at `f16` where the request has none of it."""
    if quantization in WRITTEN_TYPES:
        write(plan, partial, quantization, report)
        return
    if "f16" in plan.request.types:
        f16 = plan.request.path("f16")
    elif not f16.exists():
        write(plan, f16, "f16", report)
    report(_("{quantization}: quantizing", quantization=quantization))
    quantize.quantize(f16, partial, quantization)


def write(plan: ExportPlan, path: Path, quantization: str, report: Report) -> None:
    """Write the merged model as F16 or Q8_0."""
    report(_("{quantization}: writing the merged model", quantization=quantization))
    source = plan.source
    write_gguf(path, source.base, source.loras, source.vocabulary, plan.metadata, WRITTEN_TYPES[quantization])


def compute_reference(plan: ExportPlan, report: Report) -> verify.Reference:
    """The trained model's logits, which all files are measured against."""
    report(_("computing the reference outputs in float32"))
    base, loras = plan.source.base, plan.source.loras
    ids = verify.check_ids(base, plan.source.tokenizer, plan.request.system)
    return verify.compute_reference(base, loras, ids)


def check(
    plan: ExportPlan, quantization: str, partial: Path, reference: verify.Reference | None, report: Report
) -> dict[str, Any]:
    """The figures of a file, with a warning for a type that loses much. Raises FasttuneError for a file that is not the
    trained model."""
    if reference is None:
        return {"unchecked": _("llama-cpp-python can't be used")}
    tokens = verify.check_tokens(partial, plan.source.tokenizer)
    figures = verify.check_logits(partial, quantization, reference)
    line = _("{quantization}: checked, KL {kl:.2g}, same top-1 token {top1:.1%}", quantization=quantization,
             kl=figures["kl_mean"], top1=figures["top1"])  # fmt: skip
    report(line)
    if warning := verify.type_loss(plan.request.path(quantization).name, quantization, figures):
        hint = _("hint")
        report(f"{_(warning.level)}: {warning.where}: {warning.what}")
        report(f"  {hint}: {warning.fix}")
    return {"tokens": tokens, "logits": figures}


def describe(plan: ExportPlan, quantization: str, partial: Path, checks: dict[str, Any]) -> Artifact:
    """The artifact that a checked partial file becomes."""
    request = plan.request
    system = request.system if request.system is not None else chatml.default_system(plan.source.tokenizer)
    size = partial.stat().st_size
    return Artifact(
        request.path(quantization), quantization, file_sha256(partial), size, request.run_id, system, checks
    )


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
def temporary(path: Path) -> Iterator[Path]:
    """A path whose file is removed when the block ends, however it ends."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


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
