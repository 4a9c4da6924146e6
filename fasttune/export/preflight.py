"""Everything that can be known to go wrong is found before the first byte is written, and all of it is said at once.

Reads the base, the adapter and the tokenizer (headers only, no weights), and looks at the types asked for, the files
already there, the free disk space and whether llama.cpp can be used. What is left can only fail for reasons in the data
(NaN weights) or the machine (disk full by someone else).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttune.console import FasttuneError, Finding, _
from fasttune.export import chatml, llama
from fasttune.export.merged import DESCRIPTION, FOLDER, merged_bytes
from fasttune.export.quantize import K_TYPES
from fasttune.export.vocabulary import Vocabulary, read_vocabulary
from fasttune.export.weights import Base, Lora, Shape, read_adapter, read_base, read_document
from fasttune.export.write import Encoding, Labels, written_bytes
from fasttune.files import file_sha256
from fasttune.recipe.schema import ExportRecipe

ENCODINGS: dict[str, Encoding] = {"f16": "F16", "q8_0": "Q8_0"}
TYPES = (*ENCODINGS, *K_TYPES)
HEADER_BYTES = 16 << 20  # keys and vocabulary of a Qwen2 file are about 6 MB
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the arguments of `export`."""

    base: Path
    adapter: Path | None
    out: Path
    name: str
    types: tuple[str, ...]
    run_id: str
    system: str | None
    num_ctx: int
    keep_merged: bool

    def path(self, kind: str) -> Path:
        """exports/linzhi-Q4_K_M.gguf"""
        return self.out / f"{self.name}-{kind.upper()}.gguf"

    @property
    def merged(self) -> Path:
        return self.out / FOLDER

    @property
    def tokenizer(self) -> Path:
        """The adapter's own tokenizer if it was saved with one (it is the one trained with), else the base's."""
        own = self.adapter is not None and (self.adapter / "tokenizer.json").is_file()
        return self.adapter if own and self.adapter is not None else self.base


@dataclass(frozen=True)
class Source:
    """What a file is made from, read and checked."""

    base: Base
    loras: dict[str, Lora]
    vocabulary: Vocabulary
    tokenizer: chatml.Tokenizer


@dataclass(frozen=True)
class Job:
    """An export that can be done."""

    request: Request
    source: Source
    labels: Labels
    inputs: str  # sha256 of all that decides the files' contents
    wanted: tuple[str, ...]  # types whose file is not there yet
    merged_wanted: bool
    can_check: bool
    warnings: tuple[Finding, ...]


def preflight(
    base: Path,
    adapter: Path | None,
    out: Path,
    name: str,
    types: Sequence[str],
    *,
    run_id: str,
    system: str | None,
    num_ctx: int,
    keep_merged: bool = False,
) -> Job:
    """What `export` with these arguments would do; writes nothing, so it can be asked before a training.

    Raises FasttuneError with every problem there is. Weights are read only for checksums, if all else is well.
    """
    kinds = tuple(dict.fromkeys(kind.lower() for kind in types))
    return accept(Request(base, adapter, out, name, kinds, run_id, system, num_ctx, keep_merged))


def accept(request: Request) -> Job:
    """The request as a job, or FasttuneError with all that is against it."""
    unusable = llama.why_unusable()
    problems: list[Finding] = []
    source = checked_source(request, unusable, problems)
    labels = Labels(request.name, request.run_id, chatml.served_template(source.tokenizer, request.system))
    inputs = fingerprint(source.base, request, labels)
    done = [kind for kind in request.types if is_done(request.path(kind), inputs, unusable is None, problems)]
    merged_done = merged_exists(request.merged, inputs, problems) if request.keep_merged else True
    stop_on_errors(problems)
    # F16 first: K-quants are made from it.
    wanted = tuple(sorted((kind for kind in request.types if kind not in done), key=lambda kind: kind != "f16"))
    return Job(request, source, labels, inputs, wanted, not merged_done, unusable is None, tuple(problems))


def check(base: Path, name: str, wanted: ExportRecipe, system: str | None, folder: Path) -> None:
    """Raises FasttuneError with all that would stop an export to `folder` after training; reads no weights."""
    if not wanted.gguf and not wanted.keep_merged:
        return
    asked = Request(base, None, folder, name, wanted.gguf, "", system, wanted.num_ctx, wanted.keep_merged)
    checked_source(asked, llama.why_unusable(), [])


def checked_source(request: Request, unusable: str | None, problems: list[Finding]) -> Source:
    """What the files are made from; warnings go to `problems`. Raises FasttuneError with all that is against it."""
    problems += [*check_types(request, unusable), *check_name(request.name)]
    source = read_source(request, problems)
    stop_on_errors(problems)
    assert source is not None  # or there was a problem
    return source


def read_source(request: Request, problems: list[Finding]) -> Source | None:
    """Base, adapter and tokenizer; reasons against them and against this machine's disk go to `problems`."""
    against_base: list[Finding] = []
    base = read_base(request.base, against_base)
    problems += against_base
    loras = read_adapter(request.adapter, base, problems) if request.adapter is not None else {}
    if base is None:
        return None
    vocabulary = read_vocabulary(request.tokenizer, base.shape.vocab, problems)
    problems += check_context(base, request.num_ctx)
    if not against_base:
        problems += check_disk(request, base)
    # transformers reads config.json too, and fails in its own words on one that is wrong.
    if vocabulary is None or against_base:
        return None
    tokenizer = chatml.load_tokenizer(request.tokenizer)
    problems += chatml.check_template(request.tokenizer, tokenizer)
    return Source(base, loras, vocabulary, tokenizer)


def stop_on_errors(problems: Sequence[Finding]) -> None:
    """Raises all problems if one of them is more than a warning."""
    if any(problem.level == "error" for problem in problems):
        raise FasttuneError(*problems)


def check_types(request: Request, unusable: str | None) -> list[Finding]:
    """Types that don't exist, and types that can't be made without llama.cpp."""
    problems = []
    unknown = [kind for kind in request.types if kind not in TYPES]
    if unknown or not (request.types or request.keep_merged):
        what = _("unknown GGUF type {types}", types=", ".join(unknown)) if unknown else _("no GGUF type is asked for")
        fix = _("choose from {types}", types=", ".join(TYPES))
        problems.append(Finding("unknown-gguf-type", "error", "export.gguf", what, fix=fix))
    needing = [kind for kind in request.types if kind in K_TYPES]
    if unusable is not None and needing:
        named = ", ".join(needing)
        what = _("{types} needs llama-cpp-python, which can't be used: {reason}", types=named, reason=unusable)
        fix = _("{install}; f16 and q8_0 can be written without it", install=llama.install_hint())
        problems.append(Finding("llama-cpp-missing", "error", "export.gguf", what, fix=fix))
    elif unusable is not None:
        what = _("llama-cpp-python can't be used, so the files are written but not checked: {reason}", reason=unusable)
        problems.append(Finding("llama-cpp-missing", "warning", "export.gguf", what, fix=llama.install_hint()))
    return problems


def check_name(name: str) -> list[Finding]:
    """A name becomes part of a file name."""
    if name and not set(name) & set('/\\:*?"<>|\0') and not name.startswith("."):
        return []
    what = _("{name} can't be part of a file name", name=repr(name))
    return [Finding("bad-name", "error", "name", what, fix=_("use letters, digits, - and _"))]


def check_context(base: Base, num_ctx: int) -> list[Finding]:
    """num_ctx must lie within what the base was trained for."""
    if 0 < num_ctx <= base.shape.context:
        return []
    what = _("{found} is not between 1 and the base's {limit}", found=num_ctx, limit=base.shape.context)
    return [Finding("bad-num-ctx", "error", "export.num_ctx", what)]


def check_disk(request: Request, base: Base) -> list[Finding]:
    """Whether all files fit, with the F16 file that K-quants are made from."""
    kinds = {kind for kind in request.types if kind in TYPES}
    if kinds & K_TYPES.keys():
        kinds.add("f16")
    needed = sum(expected_bytes(base.shape, kind) + HEADER_BYTES for kind in kinds) + SPARE_BYTES
    needed += merged_bytes(base) if request.keep_merged else 0
    folder = next(folder for folder in (request.out.absolute(), *request.out.absolute().parents) if folder.exists())
    if not folder.is_dir():
        return [Finding("not-a-folder", "error", str(folder), _("is not a folder, so no file can be written into it"))]
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    what = _("{needed:.2f} GB are needed, {free:.2f} GB are free", needed=needed / 1e9, free=free / 1e9)
    return [Finding("disk-full", "error", str(folder), what, fix=_("make room, export fewer types or elsewhere"))]


def expected_bytes(shape: Shape, kind: str) -> int:
    """Size of a file: exact for f16 and q8_0, an upper bound for K-quants.

    Rows that 256 does not divide fall back to larger types (Qwen2.5-0.5B: Q4_K_M is 80 % of Q8_0); none is beyond Q8_0.
    """
    if kind in ENCODINGS:
        return written_bytes(shape, ENCODINGS[kind])
    falls_back = shape.hidden % 256 or shape.inner % 256
    share = 1.0 if falls_back or kind == "q6_k" else 0.75
    return int(share * written_bytes(shape, "Q8_0"))


def fingerprint(base: Base, request: Request, labels: Labels) -> str:
    """sha256 over everything that decides a file's contents: weights, adapter, tokenizer, template, name and run."""
    files = {tensor.file for tensor in base.tensors.values()}
    files |= {base.folder / "config.json", request.tokenizer / "tokenizer.json"}
    if request.adapter is not None:
        files |= {request.adapter / "adapter_config.json", request.adapter / "adapter_model.safetensors"}
    parts = [file_sha256(file) for file in sorted(files)]
    parts += [labels.name, labels.run_id, labels.chat_template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def is_done(path: Path, inputs: str, can_check: bool, problems: list[Finding]) -> bool:
    """Whether the file is there already, made from these inputs; any other file of that name is a problem.

    One that could not be checked when it was made is made again once it can be.
    """
    if not path.exists():
        return False
    try:
        document = json.loads(described_by(path).read_text(encoding="utf-8"))
        if document["inputs"] == inputs and document["sha256"] == file_sha256(path):
            return not (can_check and "unchecked" in document["checks"])
        what = _("is there already and was made from something else")
    except (OSError, ValueError, KeyError, TypeError):
        what = _("is there already, without a readable {name}", name=described_by(path).name)
    fix = _("move it away or export under another name; fasttune overwrites no file")
    problems.append(Finding("export-exists", "error", str(path), what, fix=fix))
    return False


def merged_exists(folder: Path, inputs: str, problems: list[Finding]) -> bool:
    """Whether the merged folder is there already, made from these inputs; any other folder there is a problem."""
    if not folder.exists():
        return False
    document = read_document(folder / DESCRIPTION, "export-exists", problems)
    if document is not None and document.get("inputs") != inputs:
        what = _("is there already and was made from something else")
        problems.append(Finding("export-exists", "error", str(folder), what, fix=_("move it away")))
    return True


def described_by(path: Path) -> Path:
    """linzhi-Q4_K_M.gguf -> linzhi-Q4_K_M.json"""
    return path.with_suffix(".json")
