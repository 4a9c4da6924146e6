"""The table of exported files, at 50 columns and in both languages."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fasttune.runs.outcomes import ExportFigures
from fasttune.terminal.export_table import exports_table, share

Q4 = ExportFigures(
    file="linzhi-Q4_K_M.gguf", type="q4_k_m", bytes=397_800_000, judgement="keeps", measured_on="held-out",
    conversations=14, tokens=822, kl=0.0123, top1=0.8, perplexity=90.04, trained_perplexity=88.94, base_perplexity=187.5,
    learned=0.7626, kept=0.9839, tensor_types={"Q5_0": 132, "Q8_0": 13},
)  # fmt: skip
Q8 = replace(Q4, type="q8_0", bytes=531_000_000, kl=0.003, kept=0.996, tensor_types={"Q8_0": 169})


def shown(figures: list[ExportFigures]) -> list[str]:
    console = Console(file=io.StringIO(), width=50)
    console.print(exports_table(figures))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rows_stand_whole_in_fifty_columns(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", language)
    lines = shown([Q4, Q8])
    cells = [line.split() for line in lines]
    assert cells[1][1:] == ["0.76", "0%", "187.5"] and cells[2][1:] == ["0", "100%", "88.94"]
    assert cells[3] == ["q4_k_m", "398", "0.012", "98%", "90.04"] and cells[4][:4] == ["q8_0", "531", "0.0030", "99.6%"]
    assert "132 Q5_0, 13 Q8_0" in " ".join(lines) and "169" not in " ".join(lines)


def test_what_a_k_quant_really_is_is_said() -> None:
    """Of a hidden size that 256 does not divide, and of any other; figures from before it was recorded say less."""
    short = replace(Q4, bits_per_weight=6.437, fallback_types={"Q5_0": 132, "Q8_0": 13})
    lines = shown([replace(short, tensor_types={"Q5_0": 132, "Q8_0": 13, "Q4_K": 24}), Q8])
    text = " ".join(" ".join(lines).split())
    assert "q4_k_m is here 6.4 bits a weight: 132 Q5_0, 13 Q8_0, 24 Q4_K" in text
    assert "145 of its 169 matrices have rows that 256 does not divide" in text and "as Q5_0, Q8_0" in text
    assert "256" not in " ".join(shown([replace(short, fallback_types={})])) and "bits" not in " ".join(shown([Q4]))


def test_a_file_without_an_adapter_keeps_nothing_to_speak_of() -> None:
    lines = shown([replace(Q8, learned=None, base_perplexity=None, kept=None)])
    assert lines[2].split() == ["q8_0", "531", "0.0030", "–", "90.04"]


def test_shares_hide_no_loss() -> None:
    assert [share(kept) for kept in (-1, 0.5, 0.994, 0.9999)] == ["0%", "50%", "99.4%", "100%"]


def test_after_qlora_the_table_says_how_far_the_served_base_is_from_the_trained_one() -> None:
    trained = replace(Q4, nf4_kl=0.0312, nf4_perplexity=91.26)
    text = " ".join(shown([trained]))
    assert "KL 0.031 between the two, perplexity 91.26 and 88.94" in text.replace("  ", " ")
    assert "NF4" not in " ".join(shown([Q4]))
