"""The parts of a page about files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fasttune.analysis import page_files
from fasttune.analysis.run_report import RunReport
from fasttune.runs.documents import ArtifactDocument
from fasttune.runs.outcomes import ExportFigures
from fasttune.runs.store import Run


def test_a_file_is_shown_with_what_it_keeps_and_an_older_one_with_its_check() -> None:
    checks = {"logits": {"kl_mean": 0.00123, "top1": 0.971}}
    old = ArtifactDocument("a.gguf", "q8_0", "0", 12_300_000, "p/001-fresh", None, checks, "base", "0", {})
    figures = ExportFigures(
        "a.gguf", "q4_k_m", 1, "keeps", "held-out", 3, 90, 0.0213, 0.95, 41.256, 40.0, 60.0, 1.0, 0.978, {}
    )
    report = RunReport(Run(Path("runs"), "p/001-fresh"))
    report.exports = [("a.gguf", 12_300_000, replace(old, figures=figures)), ("b.gguf", 1, old), ("c.gguf", 1, None)]
    part = page_files.exported(report)
    assert part is not None and part.table is not None
    assert [row.cells[1:] for row in part.table.rows] == [
        ("12 MB", "q4_k_m", "0.021", "98%", "41.26", "95.0%"),
        ("0.0 MB", "q8_0", "0.0012", "–", "–", "97.1%"),
        ("0.0 MB", "–", "–", "–", "–", "–"),
    ]
