"""What follows from the figures of a file, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from exports import read_model

from fasttune.export import verdict
from fasttune.runs.outcomes import ExportFigures

FIGURES = ExportFigures(
    file="linzhi-Q4_K_M.gguf", type="q4_k_m", bytes=398_000_000, judgement="loses-much", measured_on="held-out",
    conversations=14, tokens=822, kl=0.2, top1=0.8, perplexity=90.0, trained_perplexity=88.0, base_perplexity=187.0,
    learned=0.8, kept=0.75, tensor_types={"Q5_0": 132},
)  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(1.0, "keeps"), (0.9, "keeps"), (0.89, "loses-much"), (0.5, "loses-much"), (0.49, "loses-training"),
     (-3.0, "loses-training"), (None, "not-judged")],
)  # fmt: skip
def test_the_judgement_follows_what_is_kept(kept: float | None, expected: str) -> None:
    assert verdict.judge(kept, 0.9) == expected


def test_a_type_that_loses_much_is_warned_about_with_one_that_keeps_more() -> None:
    shape = read_model(None)[0].shape
    finding = verdict.loss_of_type(FIGURES, shape, "linzhi/001-fresh", Path("/elsewhere/runs"))
    assert finding is not None and (finding.code, finding.level) == ("gguf-loses-much", "warning")
    assert finding.what == "q4_k_m keeps 75% of what was learned (KL 0.2 of 0.8)"
    assert "q8_0 keeps more (5 MB)" in finding.fix and "--gguf auto --runs /elsewhere/runs" in finding.fix
    largest = verdict.loss_of_type(replace(FIGURES, type="q8_0"), shape, "linzhi/001-fresh", None)
    assert largest is not None and largest.fix.startswith("f16 keeps more") and "auto" not in largest.fix


def test_a_type_that_loses_most_is_not_served_and_a_grid_is_named() -> None:
    shape = read_model(None)[0].shape
    lost = replace(FIGURES, judgement="loses-training", kept=-0.2, base_bits=5)
    finding = verdict.loss_of_type(lost, shape, "linzhi/001-fresh", None)
    assert finding is not None and finding.code == "gguf-loses-training" and "keeps 0% of" in finding.what
    assert "on a grid of 5 bits" in finding.why


def test_a_good_file_and_one_that_can_not_be_judged_are_passed_over() -> None:
    shape = read_model(None)[0].shape
    for quiet in (replace(FIGURES, judgement="keeps"), replace(FIGURES, judgement="not-judged", kept=None)):
        assert verdict.loss_of_type(quiet, shape, "linzhi/001-fresh", None) is None


def test_a_run_that_learned_nothing_is_told_from_a_file_that_lost_it() -> None:
    finding = verdict.learned_nothing("linzhi/001-fresh", verdict.LITTLE / 2)
    assert finding is not None and (finding.code, finding.level) == ("run-learned-nothing", "warning")
    assert verdict.learned_nothing("x", verdict.LITTLE) is None and verdict.learned_nothing("x", None) is None
