"""benchmarks/report.py: tables and charts from a matrix, and the table in the project's READMEs."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from bench_matrix import Matrix, script

pytest_plugins = ["bench_matrix"]


def test_tables_and_charts(matrix: Matrix, tmp_path: Path) -> None:
    report = script("report")
    larger = matrix.entry | {"batch_size": 8}
    document = {"name": "x", "entries": [matrix.entry, larger], "growth": [
        {"samples": 1000, "plan_seconds": 0.1}, {"samples": 10000, "plan_seconds": 1.1}]}  # fmt: skip
    other = matrix.entry | {"dtype": "bfloat16"}  # of another table: no point of the chart's lines
    charts = report.draw(document | {"entries": [other, matrix.entry, larger]}, tmp_path)
    assert charts == ["sharing.svg", "growth.svg"]
    for name in charts:
        lines = xml.parse(tmp_path / name).getroot().findall("{http://www.w3.org/2000/svg}polyline")
        assert all(len(line.get("points", "").split()) == 2 for line in lines)
        assert len(lines) == (3 if name == "sharing.svg" else 1)
    page = report.whole_page(document, charts)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| persona, 4 (stock 2 at a time) |")]
    ours, stock = matrix.arms["fasttune"], matrix.arms["stock"]
    assert "1 warmup steps (the first of 3 samples) and 1 timed" in page and ours["commits"][0] in page
    assert f"{ours['samples_per_second']['median'] / stock['samples_per_second']['median']:.1f}" in rows[0][3]
    assert rows[0][2] == f"**{ours['samples_per_second']['median']:.3g}**"
    assert rows[0][5] == f"{ours['arithmetic_ratio']:.1f}×"
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {3, 10, 15}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_readme_takes_the_table(matrix: Matrix, tmp_path: Path, language: str) -> None:
    report = script("report")
    page = tmp_path / "README.md"
    page.write_text(report.PAGES[language].read_text(encoding="utf-8"), encoding="utf-8")
    for _turn in range(2):
        report.put(page, report.summary([matrix.entry], language, "LINK"))
    text = page.read_text(encoding="utf-8")
    assert text.count("| persona, 4 (stock 2 at a time) |") == 1
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert "(LINK)" in text


def test_an_invalid_arm_has_no_speed_in_the_table(matrix: Matrix) -> None:
    report = script("report")
    ours = matrix.arms["fasttune"] | {"status": "invalid"}
    row = report.summary_row(matrix.entry | {"arms": [matrix.arms["stock"], ours]})
    assert row[2] == "invalid" and row[3:] == [""] * 6
    assert report.arm_row(ours)[1:10] == ["invalid", *[""] * 8]
