"""The figures of a run's exported files, for tables, the report and diagnoses."""

from __future__ import annotations

from fasttune.console import FasttuneError
from fasttune.runs import documents
from fasttune.runs.documents import ArtifactDocument
from fasttune.runs.outcomes import ExportFigures
from fasttune.runs.store import Run


def export_figures(run: Run) -> tuple[ExportFigures, ...]:
    """The figures of the GGUF files that a run has, the smallest first; those of files that were not measured, or whose
    document can't be read, are left out."""
    found = []
    for path in run.exports.glob("*.gguf") if run.exports.is_dir() else ():
        try:
            document = documents.read(path.with_suffix(".json"), ArtifactDocument)
        except FasttuneError:
            continue
        if document.figures is not None:
            found.append(document.figures)
    return tuple(sorted(found, key=lambda one: (one.bytes, one.file)))
