"""From an adapter to a GGUF file that answers as trained: the only home of gguf, llama_cpp and ollama.

    base + adapter ─ preflight ─► Job ─ write ─► F16, Q8_0 ─ quantize ─► K-quants ─ verify ─► Artifact ─ ollama ─► model
                     all problems      merged in the       llama.cpp's own      token ids and KL      its HTTP API
                     at once           stream, float32     quantizer            against float32

A file gets its name only after it was checked: it is written as `NAME.part`, flushed, measured, described in a .json
beside it and renamed. A failure leaves nothing behind but what was finished before it. A file that is there already is
never overwritten: made from the same inputs it is used as it is, otherwise the export is refused.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fasttune.console import _, error
from fasttune.export import chatml, preflight, quantize, verify
from fasttune.export.merged import write_merged
from fasttune.export.ollama import import_into_ollama, modelfile
from fasttune.export.preflight import ENCODINGS, Job, Request, described_by
from fasttune.export.write import write_gguf
from fasttune.files import file_sha256, read_json, sync_folder, write_json, write_text
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs.store import Run

Say = Callable[[str], None]
# What a disk or a folder refuses; any other OSError is a bug and keeps its traceback.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
PACKAGES = ("fasttune", "gguf", "llama-cpp-python", "numpy")


@dataclass(frozen=True)
class Artifact:
    """A finished GGUF file: `type` as in the recipe, `system` the prompt it was trained with and is to be served with.

    `checks` holds the figures of verify.py, or {"unchecked": why}.
    """

    path: Path
    type: str
    sha256: str
    bytes: int
    run_id: str
    system: str | None
    checks: dict[str, Any]


def export(
    base: Path,
    adapter: Path | None,
    out: Path,
    name: str,
    types: Sequence[str],
    *,
    run_id: str,
    system: str | None,
    num_ctx: int,
    say: Callable[[str], None],
    keep_merged: bool = False,
) -> list[Artifact]:
    """One GGUF file a type in `out`, in the order of `types` ("f16", "q8_0", "q4_k_m" …; see preflight.TYPES).

    `base` is a local Hugging Face folder of Qwen2 weights, `adapter` a PEFT folder to be merged into it, `system` what
    becomes the template's default system message (None keeps the training template as it is), `num_ctx` the context
    length that the Modelfile asks for. `say` gets a line a step. A Modelfile for the first type is (re)written beside
    the files, and with `keep_merged` the merged model as a Hugging Face folder, merged/.

    Raises FasttuneError: everything preflight finds at once; or weights that are not finite, a full disk, a file beyond
    the limits of verify.GATES.
    """
    job = preflight.preflight(
        base, adapter, out, name, types, run_id=run_id, system=system, num_ctx=num_ctx, keep_merged=keep_merged
    )
    for warning in job.warnings:
        say(f"{_(warning.level)}: {warning.where}: {warning.what}")
    with refusals(out):
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(f"{glob.escape(name)}[-.]*.part"):  # by an export that was killed
            left.unlink()
        make_all(job, say)
        artifacts = [read_artifact(job.request, kind) for kind in job.request.types]
        if artifacts:
            write_modelfile(artifacts[0], num_ctx, say)
    return artifacts


def export_run(run: Run, base: Path, wanted: ExportRecipe, say: Say) -> list[Artifact]:
    """What an [export] table asks for, made of a finished run; the first file goes into Ollama where it says so."""
    if not wanted.gguf and not wanted.keep_merged:
        return []
    system = read_json(run.plan)["system"]
    artifacts = export(
        base, run.adapter, run.exports, run.series, wanted.gguf,
        run_id=run.id, system=system, num_ctx=wanted.num_ctx, say=say, keep_merged=wanted.keep_merged,
    )  # fmt: skip
    if wanted.ollama and artifacts:
        import_into_ollama(artifacts[0], wanted.ollama, num_ctx=wanted.num_ctx, say=say)
    return artifacts


def make_all(job: Job, say: Say) -> None:
    """Everything that is not there yet."""
    request, source = job.request, job.source
    for kind in request.types:
        if kind not in job.wanted:
            say(_("{name} is there already", name=request.path(kind).name))
    reference: verify.Reference | None = None
    with temporary(request.out / f"{request.name}.f16.part") as half:
        for kind in job.wanted:
            with temporary(request.path(kind).with_suffix(".gguf.part")) as part:
                make_file(job, kind, half, part, say)
                if job.can_check and reference is None:  # after the first file, whose writing has seen all weights
                    reference = measure_trained(job, say)
                publish(job, kind, part, check(job, kind, part, reference, say))
    if job.merged_wanted:
        say(_("writing the merged model as a Hugging Face folder"))
        description = {"inputs": job.inputs, "run_id": request.run_id, "base": str(request.base)}
        write_merged(request.merged, source.base, source.loras, request.tokenizer, description)


def make_file(job: Job, kind: str, half: Path, part: Path, say: Say) -> None:
    """One file at `part`; `half` is where the F16 file lies that K-quants are made from when none is to be kept."""
    if kind in ENCODINGS:
        write(job, part, kind, say)
        return
    finished = job.request.path("f16")
    if "f16" in job.request.types:
        half = finished
    elif not half.exists():
        write(job, half, "f16", say)
    say(_("{kind}: quantizing", kind=kind))
    quantize.quantize(half, part, kind)


def write(job: Job, path: Path, kind: str, say: Say) -> None:
    """The merged model as F16 or Q8_0."""
    say(_("{kind}: writing the merged model", kind=kind))
    source = job.source
    write_gguf(path, source.base, source.loras, source.vocabulary, job.labels, ENCODINGS[kind])


def measure_trained(job: Job, say: Say) -> verify.Reference:
    """What the files are measured against; computed once for all of them."""
    say(_("computing the reference outputs in float32"))
    base = job.source.base
    return verify.reference(base, job.source.loras, verify.check_ids(base, job.source.tokenizer, job.request.system))


def check(job: Job, kind: str, part: Path, reference: verify.Reference | None, say: Say) -> dict[str, Any]:
    """The figures of a file that passed; raises FasttuneError for one that did not."""
    if reference is None:
        return {"unchecked": _("llama-cpp-python can't be used")}
    tokens = verify.check_tokens(part, job.source.tokenizer)
    figures = verify.check_logits(part, kind, reference)
    kl, top1 = figures["kl_mean"], figures["top1"]
    say(_("{kind}: checked, KL {kl:.2g}, same best token {top1:.1%}", kind=kind, kl=kl, top1=top1))
    return {"tokens": tokens, "logits": figures}


def publish(job: Job, kind: str, part: Path, checks: dict[str, Any]) -> None:
    """Give a checked file its name. Its .json comes first: a file without one can only be somebody else's."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    request, path = job.request, job.request.path(kind)
    size, digest = part.stat().st_size, file_sha256(part)
    system = request.system if request.system is not None else chatml.default_system(job.source.tokenizer)
    artifact = Artifact(path, kind, digest, size, request.run_id, system, checks)
    document = asdict(artifact) | {"path": path.name, "base": str(request.base)}
    write_json(described_by(path), document | {"inputs": job.inputs, "versions": versions()})
    os.replace(part, path)
    sync_folder(path.parent)


def read_artifact(request: Request, kind: str) -> Artifact:
    """The artifact of a file that is there."""
    path = request.path(kind)
    document = read_json(described_by(path))
    fields = {key: document[key] for key in ("type", "sha256", "bytes", "run_id", "system", "checks")}
    return Artifact(path=path, **fields)


def write_modelfile(artifact: Artifact, num_ctx: int, say: Say) -> None:
    """The Modelfile that makes a model of this file with `ollama create`."""
    text = modelfile(artifact.path.name, artifact.system, num_ctx)
    if text is not None:
        write_text(artifact.path.parent / "Modelfile", text)
        return
    say(_("no Modelfile: its system prompt has characters that one can't hold; the import into Ollama carries them"))


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A path that is gone when the block ends, however it ends."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def refusals(folder: Path) -> Iterator[None]:
    """What the disk or the folder refuses becomes an error for people."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in REFUSALS:
            raise
        what = _("can't be written: {problem}", problem=problem.strerror)
        fix = _("make room or choose another folder")
        raise error("cannot-write", what, where=str(folder), fix=fix) from problem


def versions() -> dict[str, str]:
    """Versions of what made a file."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


__all__ = ["Artifact", "export", "export_run", "import_into_ollama"]
