"""A finished GGUF file with the document beside it, NAME.json: how it gets its name, and how it is read again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, Finding, _, error, show_findings
from fasttune.files import file_sha256, sync_file, sync_folder
from fasttune.machine import package_versions
from fasttune.runs import documents, epochs
from fasttune.runs.documents import ArtifactDocument
from fasttune.runs.outcomes import ExportFigures
from fasttune.runs.store import Run

PACKAGES = ("fasttune", "gguf", "llama-cpp-python", "numpy")  # what decides a file's contents


@dataclass(frozen=True)
class Artifact:
    """A finished GGUF file: `type` as in the recipe, `system` the prompt it was trained with and is to be served with.

    `checks` holds the figures of verify.py, or {"unchecked": reason}; `figures` what it keeps of the training, None
    where that was not measured.
    """

    path: Path
    type: str
    sha256: str
    bytes: int
    run_id: str
    system: str | None
    checks: Mapping[str, Any]
    figures: ExportFigures | None = None

    @property
    def is_served(self) -> bool:
        """Whether chat, the probe questions and Ollama take it without being asked for it by name."""
        return self.figures is None or self.figures.judgement != "loses-training"


def publish(partial: Path, artifact: Artifact, base: Path, inputs: str, adapter: str, imatrix: str = "none") -> None:
    """Give a checked partial file its name, once it and its document are on the disk; `adapter` is the sha256 of the
    weights that were merged into it, `imatrix` as in ExportFigures.

    The document is written first: a GGUF file without one can only be of another origin.
    """
    sync_file(partial)
    document = ArtifactDocument(
        path=artifact.path.name,
        type=artifact.type,
        sha256=artifact.sha256,
        bytes=artifact.bytes,
        run_id=artifact.run_id,
        system=artifact.system,
        checks=artifact.checks,
        base=str(base),
        inputs=inputs,
        versions=package_versions(PACKAGES),
        figures=artifact.figures,
        imatrix=imatrix,
        adapter=adapter,
    )
    documents.write(document_path(artifact.path), document)
    os.replace(partial, artifact.path)
    sync_folder(artifact.path.parent)


def read_artifact(path: Path) -> Artifact:
    """The artifact of a GGUF file that exists. Raises FasttuneError where its document can't be read."""
    document = read_document(path)
    return Artifact(
        path, document.type, document.sha256, document.bytes, document.run_id, document.system, document.checks,
        document.figures,
    )  # fmt: skip


def read_document(path: Path) -> ArtifactDocument:
    """The document beside a GGUF file. Raises FasttuneError where it can't be read."""
    return documents.read(document_path(path), ArtifactDocument)


def is_held_back(path: Path) -> bool:
    """Whether a GGUF file lost most of what was learned, as the document beside it says: it is served only where it is
    named."""
    try:
        return not read_artifact(path).is_served
    except FasttuneError:
        return False


def gguf_files(run: Run) -> list[Path]:
    """The GGUF files of a run, oldest first."""
    files = (path for path in run.exports.glob("*.gguf") if path.is_file()) if run.exports.is_dir() else ()
    return sorted(files, key=lambda path: path.stat().st_mtime)


def is_of_served_adapter(run: Run, path: Path) -> bool:
    """Whether a GGUF file was made of the adapter that the run serves. One without a document, or with one from before
    adapters could be picked, counts as made of the run's own. Raises FasttuneError as `served_adapter` does."""
    try:
        made_of = read_document(path).adapter
    except FasttuneError:
        made_of = ""
    own = epochs.weights_digest(run.adapter)
    return (made_of or own) == epochs.weights_digest(epochs.served_adapter(run))


def is_unchanged(path: Path, document: ArtifactDocument) -> bool:
    """Whether a GGUF file still has the checksum that its document recorded."""
    return document.sha256 == file_sha256(path)


def require_unchanged(path: Path) -> None:
    """Raises FasttuneError where a GGUF file is not the one that was exported; a warning where its document is lost."""
    try:
        document = read_document(path)
    except FasttuneError as problem:
        what = _("{name} can't be compared with what was exported: {problem}", name=path.name, problem=problem)
        show_findings([Finding("gguf-unverified", "warning", str(path), what)])
        return
    if not is_unchanged(path, document):
        raise error("gguf-damaged", not_as_exported(path), where=str(path), fix=make_again(path, document.run_id))


def not_as_exported(path: Path) -> str:
    """What is said of a GGUF file with another checksum than its document's."""
    return _("{name} is not what was exported: {document} has another sha256", name=path.name,
             document=document_path(path).name)  # fmt: skip


def make_again(path: Path, run_id: str) -> str:
    """How a damaged file is made again."""
    remove = shlex.join(["rm", str(path)])
    run = next((folder for folder in path.parents if (folder / "plan.json").is_file()), None)
    options = runs_option(run.parent.parent) if run else ["--out", str(path.parent)]
    again = command_line(["export", run_id, *options])
    return _("remove it with `{remove}` and make it again: `{again}`", remove=remove, again=again)


def document_path(path: Path) -> Path:
    """linzhi-Q4_K_M.gguf -> linzhi-Q4_K_M.json"""
    return path.with_suffix(".json")
