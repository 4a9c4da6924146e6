"""Everything that can be known to go wrong is found before the first byte is written, and reported at once.

Reads the base, the adapter and the tokenizer (headers only, no weights), and looks at the quantization types requested,
the files that exist, the free disk space and whether llama.cpp can be used. What then still can fail is in the weights
(NaN) or on the machine (another process fills the disk).
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.console import FasttuneError, Finding, _
from fasttune.export import chatml, imatrix, layouts, llama
from fasttune.export.adapter_reader import read_adapter
from fasttune.export.artifact import document_path, is_unchanged, make_again, not_as_exported, read_document
from fasttune.export.base_reader import read_base
from fasttune.export.merged import DOCUMENT, merged_bytes
from fasttune.export.quantize import K_TYPES
from fasttune.export.request import AUTO, NO_BASE, ExportRequest
from fasttune.export.serving import file_sampling
from fasttune.export.vocabulary import Vocabulary, read_vocabulary
from fasttune.export.weights import Base, Lora, Shape
from fasttune.export.write import WRITTEN_TYPES, Metadata, written_bytes
from fasttune.files import file_sha256
from fasttune.runs import documents
from fasttune.runs.checkpoints import first_difference, require_whole_adapter
from fasttune.runs.documents import MergedDocument
from fasttune.training.space import lacking_space

QUANTIZATION_TYPES = (*WRITTEN_TYPES, *K_TYPES)
KEY_BYTES = 16 << 20  # keys and vocabulary of a Qwen2 file are about 6 MB
SPARE_BYTES = 64 << 20
LoadTokenizer = Callable[[Path], chatml.Tokenizer]


@dataclass(frozen=True)
class Source:
    """What the files are made from, read and checked."""

    base: Base
    loras: dict[str, Lora]
    vocabulary: Vocabulary
    tokenizer: chatml.Tokenizer


@dataclass(frozen=True)
class ExportPlan:
    """An export that preflight has nothing against.

    `inputs` is a sha256 of all that decides the files' contents. `missing_types` are the quantization types whose file
    does not exist yet, F16 first, because K-quants are made from it, and AUTO last.
    """

    request: ExportRequest
    source: Source
    metadata: Metadata
    inputs: str
    missing_types: tuple[str, ...]
    merged_missing: bool
    lora_missing: bool
    can_check: bool
    warnings: tuple[Finding, ...]
    imatrix: str  # "none", "own", or the sha256 of the file


def preflight(request: ExportRequest) -> ExportPlan:
    """What `export` would do with this request; writes nothing.

    Raises FasttuneError with every finding. Weights are read only for checksums, once all else is well.
    """
    llama_failure = llama.import_failure()
    can_check = llama_failure is None
    findings: list[Finding] = []
    source = checked_source(request, llama_failure, findings)
    template = chatml.served_template(source.tokenizer, request.system)
    metadata = Metadata(request.name, request.run_id, template, file_sampling(request.base, findings))
    accepted = input_digests(source.base, request, metadata)
    request = with_earlier_pick(request, accepted)
    importance = imatrix_name(request)
    missing = [name for name in request.types if name == AUTO
               or not is_done(request.path(name), accepted, importance, can_check, findings)]  # fmt: skip
    merged_missing = request.keep_merged and not is_merged_done(request.merged, accepted, findings)
    lora_missing = request.adapter_file and not is_done(request.lora_file, accepted, "none", can_check, findings)
    raise_errors(findings)
    missing.sort(key=lambda name: (name != "f16") + (name == AUTO))
    return ExportPlan(
        request,
        source,
        metadata,
        accepted[0],
        tuple(missing),
        merged_missing,
        lora_missing,
        can_check,
        tuple(findings),
        importance,
    )


def with_earlier_pick(request: ExportRequest, accepted: Sequence[str]) -> ExportRequest:
    """The request with the type in the place of AUTO that an earlier export of the same inputs picked, if one did and
    the file keeps what is asked for now."""
    for path in sorted(request.out.glob(f"{glob.escape(request.name)}-*.gguf")) if AUTO in request.types else ():
        try:
            document = read_document(path)
        except FasttuneError:
            continue
        figures = document.figures
        if figures is None or not figures.picked or document.inputs not in accepted:
            continue
        if figures.kept is None or figures.kept >= request.keep:
            return replace(request, types=tuple(document.type if one == AUTO else one for one in request.types))
    return request


def imatrix_name(request: ExportRequest) -> str:
    """What a document says of the importance matrix: "own", "none" (also where the run's conversations could not be
    read), or the sha256 of the file."""
    if request.imatrix == "own":
        return "own" if request.conversations.calibration else "none"
    return "none" if request.imatrix == "none" else file_sha256(Path(request.imatrix))


def check_imatrix(request: ExportRequest, base: Base) -> list[Finding]:
    """A finding where the file of the importance matrix can't be read, or is of another model."""
    if request.imatrix in ("own", "none"):
        return []
    path = Path(request.imatrix)
    try:
        imatrix.check_fits(path, imatrix.load(path), base)
    except FasttuneError as problem:
        return list(problem.findings)
    return []


def check(request: ExportRequest) -> list[Finding]:
    """The warnings about this export once its adapter is trained.

    Raises FasttuneError with every finding where one would stop it. Where nothing is to be made, what training reads of
    the base is checked all the same; what llama.cpp alone could not compute is no reason against it then. Of a base
    that is not on this machine yet (request.NO_BASE) nothing can be said. Reads no weights, and needs no transformers,
    so it can be asked before training.
    """
    findings: list[Finding] = []
    if request.base == NO_BASE:
        findings += check_options(request, llama.import_failure()) if not request.is_empty else []
        raise_errors(findings)
        return findings
    if not request.is_empty:
        checked_source(request, llama.import_failure(), findings, chatml.load_template)
        return findings
    base = read_base(request.base, findings)
    if base is not None:
        read_vocabulary(request.tokenizer, base.shape.vocab_size, findings)
    is_trainable = base is not None and not base.config.get("quantization_config")
    findings = [finding for finding in findings if finding.code != "base-unsupported" or not is_trainable]
    raise_errors(findings)
    return findings


def checked_source(
    request: ExportRequest,
    llama_failure: str | None,
    findings: list[Finding],
    load_tokenizer: LoadTokenizer = chatml.load_tokenizer,
) -> Source:
    """What the files are made from; warnings go to `findings`. Raises FasttuneError with every finding."""
    findings += check_options(request, llama_failure)
    source = read_source(request, findings, load_tokenizer)
    raise_errors(findings)
    assert source is not None  # or there was an error
    return source


def check_options(request: ExportRequest, llama_failure: str | None) -> list[Finding]:
    """Findings about what a request names: its types and the name of its files."""
    return [*check_types(request, llama_failure), *check_name(request.name)]


def read_source(request: ExportRequest, findings: list[Finding], load_tokenizer: LoadTokenizer) -> Source | None:
    """Base, adapter and tokenizer; reasons against them and against this machine's disk go to `findings`."""
    base_findings: list[Finding] = []
    base = read_base(request.base, base_findings)
    findings += base_findings
    loras = {}
    if request.adapter is not None:
        require_whole_adapter(request.adapter)
        loras = read_adapter(request.adapter, base, findings)
    if base is None:
        return None
    vocabulary = read_vocabulary(request.tokenizer, base.shape.vocab_size, findings)
    findings += check_context(base, request.num_ctx)
    if not base_findings:
        findings += [*check_disk(request, base), *check_imatrix(request, base)]
    # transformers reads config.json too, and raises errors of its own for one that is wrong.
    if vocabulary is None or base_findings:
        return None
    tokenizer = load_tokenizer(request.tokenizer)
    findings += chatml.check_template(request.tokenizer, tokenizer)
    return Source(base, loras, vocabulary, tokenizer)


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raises FasttuneError with all findings if one of them is an error."""
    if any(finding.level == "error" for finding in findings):
        raise FasttuneError(*findings)


def check_types(request: ExportRequest, llama_failure: str | None) -> list[Finding]:
    """Findings about types that don't exist, and types that can't be made or checked without llama.cpp."""
    findings = []
    unknown = [name for name in request.types if name not in (*QUANTIZATION_TYPES, AUTO)]
    if request.adapter_file and request.adapter is None:
        findings.append(Finding("no-adapter", "error", "--adapter", _("there is no adapter to write, only a base")))
    if unknown or request.is_empty:
        what = _("unknown GGUF type {types}", types=", ".join(unknown)) if unknown else _("no GGUF type is requested")
        fix = _("choose from {types}", types=", ".join(QUANTIZATION_TYPES))
        findings.append(Finding("unknown-gguf-type", "error", "export.gguf", what, fix=fix))
    if llama_failure is None:
        return findings
    k_quants = ", ".join(name for name in request.types if name in K_TYPES or name == AUTO)
    if k_quants:
        what = _("{types} needs llama-cpp-python, which can't be used: {reason}", types=k_quants, reason=llama_failure)
        fix = _("{install}; f16 and q8_0 can be written without it", install=llama.install_hint())
        return [*findings, Finding("llama-cpp-missing", "error", "export.gguf", what, fix=fix)]
    what = _("llama-cpp-python can't be used, so the files are written but not checked: {reason}", reason=llama_failure)
    return [*findings, Finding("llama-cpp-missing", "warning", "export.gguf", what, fix=llama.install_hint())]


def check_name(name: str) -> list[Finding]:
    """A finding where the name can't be a part of a file name."""
    if name and not set(name) & set('/\\:*?"<>|\0') and not name.startswith("."):
        return []
    what = _("{name} can't be part of a file name", name=repr(name))
    return [Finding("bad-name", "error", "name", what, fix=_("use letters, digits, - and _"))]


def check_context(base: Base, num_ctx: int) -> list[Finding]:
    """A finding where num_ctx is not within the context length of the base."""
    if 0 < num_ctx <= base.shape.context_length:
        return []
    what = _("{found} is not between 1 and the base's {limit}", found=num_ctx, limit=base.shape.context_length)
    return [Finding("bad-num-ctx", "error", "export.num_ctx", what)]


def check_disk(request: ExportRequest, base: Base) -> list[Finding]:
    """A finding where the disk can't hold all files, with the F16 file that K-quants are made from."""
    types = {name for name in request.types if name in QUANTIZATION_TYPES}
    if types & K_TYPES.keys() or AUTO in request.types:
        types |= {"f16", "q8_0"} if AUTO in request.types else {"f16"}
    needed = sum(expected_bytes(base.shape, name) + KEY_BYTES for name in types) + SPARE_BYTES
    needed += merged_bytes(base) if request.keep_merged else 0
    needed += expected_bytes(base.shape, "f16") if request.adapter_file else 0  # the base that it is tried on
    folder = layouts.existing_part(request.out)
    if not folder.is_dir():
        what, fix = _("is not a folder, so no file can be written into it"), _("name another folder")
        return [Finding("not-a-folder", "error", str(folder), what, fix=fix)]
    return lacking_space(needed, folder, _("free some space, export fewer types or elsewhere"))


def expected_bytes(shape: Shape, quantization: str) -> int:
    """The size of a file in bytes without its keys: exact for f16 and q8_0, an upper bound for K-quants.

    Rows that 256 does not divide fall back to larger types (Qwen2.5-0.5B: Q4_K_M is 80 % of Q8_0), at most Q8_0.
    """
    if quantization in WRITTEN_TYPES:
        return written_bytes(shape, WRITTEN_TYPES[quantization])
    falls_back = shape.hidden_size % 256 or shape.intermediate_size % 256
    share = 1.0 if falls_back or quantization == "q6_k" else 0.75
    return int(share * written_bytes(shape, "Q8_0"))


def input_digests(base: Base, request: ExportRequest, metadata: Metadata) -> tuple[str, ...]:
    """sha256 digests of all that decides a file's contents: weights, adapter, tokenizer, template, name and run.

    The first, with the base's files before the adapter's, is written into documents. Documents of format 0 had the
    files in the order of their paths, so theirs may be the second.
    """
    base_files = {tensor.file for tensor in base.tensors.values()} | {base.folder / "config.json"}
    adapter_files: set[Path] = set()
    if request.adapter is not None:
        adapter_files = {request.adapter / "adapter_config.json", request.adapter / "adapter_model.safetensors"}
    (base_files if request.tokenizer == request.base else adapter_files).add(request.tokenizer / "tokenizer.json")
    texts = [metadata.name, metadata.run_id, metadata.chat_template]
    first, second = ([file_sha256(file) for file in sorted(files)] for files in (base_files, adapter_files))
    orders = ([*first, *second, *texts], [*second, *first, *texts])
    return tuple(hashlib.sha256(json.dumps(parts).encode()).hexdigest() for parts in orders)


def is_done(path: Path, accepted: Sequence[str], importance: str, can_check: bool, findings: list[Finding]) -> bool:
    """Whether a GGUF file exists, made from inputs of an accepted digest, with this importance matrix if it is of a
    type that takes one; any other file there becomes a finding. A file of before there were any is taken as it is.

    A file that could not be checked when it was made is made again once it can be.
    """
    if not path.exists():
        return False
    why = ""
    try:
        document = read_document(path)
        fits = document.figures is None or document.imatrix == (importance if document.type in K_TYPES else "none")
        if document.inputs in accepted and fits:
            if is_unchanged(path, document):
                return not (can_check and "unchecked" in document.checks)
            fix = make_again(path, document.run_id)
            findings.append(Finding("export-exists", "error", str(path), not_as_exported(path), fix=fix))
            return False
        what = _("already exists and was made from something else")
    except (FasttuneError, OSError) as failure:
        what, why = _("already exists, without a readable {name}", name=document_path(path).name), str(failure)
    fix = _("move it away or export under another name; fasttune overwrites no file")
    findings.append(Finding("export-exists", "error", str(path), what, why=why, fix=fix))
    return False


def is_merged_done(folder: Path, accepted: Sequence[str], findings: list[Finding]) -> bool:
    """Whether the merged folder exists, made from inputs of an accepted digest; any other one becomes a finding."""
    if not folder.exists():
        return False
    why = ""
    try:
        document = documents.read(folder / DOCUMENT, MergedDocument)
        flaw = first_difference(folder, document.sha256)
        if document.inputs in accepted and not flaw:
            return True
        what = (
            _("is not what was exported: {flaw}", flaw=flaw)
            if flaw
            else _("already exists and was made from something else")
        )
    except (FasttuneError, OSError) as failure:
        what, why = _("already exists, without a readable {name}", name=DOCUMENT), str(failure)
    findings.append(Finding("export-exists", "error", str(folder), what, why=why, fix=_("move it away")))
    return False
