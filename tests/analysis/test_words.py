"""Verdicts and figures in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_run

from fasttune.analysis import words
from fasttune.runs import judgement, summary


def test_every_reason_has_its_words(tmp_path: Path) -> None:
    """Of every verdict and reason that judgement.py can give."""
    source = Path(judgement.__file__).read_text(encoding="utf-8")
    documented = re.search(r"The reasons are (.*?)\n\s+\"\"\"", source, re.S)
    assert documented
    reasons = re.findall(r"[a-z]+(?:-[a-z]+)+", documented[1])
    assert len(reasons) == 12
    figures = summary.read_figures(write_run(tmp_path))
    for reason in reasons:
        assert words.reason(replace(figures, verdict_reason=reason))
    for word in (
        "excellent",
        "good",
        "fair",
        "not-enough",
        "over-fitting",
        "cannot-tell",
        "nothing-learned",
        "diverged",
    ):
        assert words.verdict_word(word) == word.replace("-", " " if word != "over-fitting" else "-")


def test_what_users_take_from_the_loss_is_shown_as_theirs(tmp_path: Path) -> None:
    figures = summary.read_figures(write_run(tmp_path, losses=[2.0, 0.05]))
    line = words.verdict_line(replace(figures, verdict_reason="no-held-out"))
    assert line.startswith("verdict: cannot tell; nothing is held out") and "(by itself: excellent)" in line


def test_one_held_out_sample_has_no_loss_to_show(tmp_path: Path) -> None:
    figures = summary.read_figures(write_run(tmp_path, held_out=[0.5, 0.4]))
    assert words.best_line(figures) == "held-out loss 0.400, best 0.400 at step 2 of 2"
    assert words.best_line(replace(figures, held_out_samples=1)) == ""


@pytest.mark.parametrize(("size", "text"), [(4_618_080, "4.6 MB"), (531_000_000, "531 MB"), (1_646_000_000, "1.6 GB")])
def test_sizes(size: int, text: str) -> None:
    assert words.size_word(size) == text
