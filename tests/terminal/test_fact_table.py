"""The table of facts: a row each, by where it stands; the numbers of each arm; JSON and exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import write_run

from fasttune import console
from fasttune.console import Finding
from fasttune.runs.outcomes import ArmFacts, FactResult, FactScores, RuleResult
from fasttune.terminal import fact_table

ARMS = ("base", "base+system", "tuned", "tuned+system")
SCORES = FactScores(
    "data/facts.toml", "0" * 64, 64,
    {arm: ArmFacts(at % 2, 1, 1, 0.25 * at, at) for at, arm in enumerate(ARMS)},
    (
        FactResult("cat", "猫叫定影", "system", ("a?",), {"base": "lost", "base+system": "kept", "tuned": "lost", "tuned+system": "kept"},
                   dict.fromkeys(ARMS, ("定影",))),
        FactResult("price", "二十块一版", "data", ("b?",), dict.fromkeys(ARMS, "contradicted"), dict.fromkeys(ARMS, ("一百",))),
    ),
    (RuleResult("never-ai", "不说语言模型", {arm: ("我是语言模型",) * (arm == "base") for arm in ARMS}),),
)  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    """Cells by the first one of each line that has four more."""
    lines = [line.split() for line in text.splitlines()]
    return {" ".join(cells[:-4]): cells[-4:] for cells in lines if len(cells) > 4}


def test_a_row_for_each_fact_and_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.stdout_console, "_width", 160)
    assert fact_table.show_facts(write_run(tmp_path), SCORES, [], as_json=False) == 0
    found = rows(capsys.readouterr().out)
    assert found["猫叫定影"] == ["lost", "kept", "lost", "kept"]
    assert found["二十块一版"] == ["contradicted"] * 4
    assert found["不说语言模型"] == ["1×", "0×", "0×", "0×"]
    assert found["kept, of those in the system prompt"] == ["0/1", "1/1", "0/1", "1/1"]
    assert found["kept, of the others"] == ["0/1"] * 4
    assert found["wordings answered right"] == ["0%", "25%", "50%", "75%"]
    assert found["rules broken"] == ["0/1", "1/1", "2/1", "3/1"]


def test_the_document_and_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("facts-below", "error", "persona/001-fresh", "too few")
    assert fact_table.show_facts(write_run(tmp_path), SCORES, [finding], as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["run"] == "persona/001-fresh" and document["facts"][0]["states"]["tuned+system"] == "kept"
    assert document["findings"][0]["code"] == "facts-below"
