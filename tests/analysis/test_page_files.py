"""The parts of a page about files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from run_folders import PROVENANCE

from fasttune.analysis import page_files
from fasttune.analysis.run_report import RunReport
from fasttune.runs.documents import ArtifactDocument, PrefixDifference, Provenance
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


def test_a_page_says_how_rows_were_computed_on_a_gpu() -> None:
    def said(found: Provenance) -> dict[str, str]:
        report = RunReport(Run(Path("runs"), "p/001-fresh"))
        report.provenance = found
        part = page_files.versions(report)
        assert part is not None and part.table is not None
        return {str(row.cells[0]): str(row.cells[1]) for row in part.table.rows}

    checked = replace(PROVENANCE, sharing_check=PrefixDifference(1e-7, 2e-6), packing_check=PrefixDifference(0, 3e-6))
    on = said(replace(checked, cuda_graphs="on"))
    assert on["shared prefixes beside single samples"] == "relative difference: loss 1.0e-07, gradient 2.0e-06"
    assert on["packed rows beside single samples"] == "relative difference: loss 0.0e+00, gradient 3.0e-06"
    assert on["CUDA graphs"] == "on"
    assert said(replace(checked, cuda_graphs="off", cuda_graphs_off="dropout"))["CUDA graphs"] == "off: dropout"
    none = said(PROVENANCE)
    assert "CUDA graphs" not in none and not [name for name in none if "beside single samples" in name]
