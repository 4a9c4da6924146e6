"""benchmarks/gpu_first.py: answers are kept as they come, what failed is asked again, and all of it runs on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import one_layer
import pytest
from bench_matrix import script
from conftest import REPOSITORY
from graph_stand_in import cuda_graphs_here


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_failure_is_an_answer_and_is_asked_again(tmp_path: Path) -> None:
    kit = script("gpu_first")

    def fail() -> dict[str, Any]:
        raise ArithmeticError("off by one")

    answers = kit.Answers(tmp_path / "answers.jsonl")
    answers.ask("good", lambda: {"value": 1})
    answers.ask("bad", fail)
    assert answers.failed == 1
    again = kit.Answers(tmp_path / "answers.jsonl")
    again.ask("good", fail)
    again.ask("bad", lambda: {"value": 2})
    assert again.failed == 0
    assert [(line["question"], line.get("value"), line.get("failed")) for line in lines(tmp_path)] == [
        ("good", 1, None), ("bad", None, "ArithmeticError: off by one"), ("bad", 2, None),
    ]  # fmt: skip


def test_attention_that_is_off_by_one_token_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from fasttune.training import attention

    kit = script("gpu_first")
    right = attention.layout([(9, [4, 5])], [3])
    assert max(kit.attention_error((4, 2, 16), right)["errors"].values()) < kit.ROUNDING
    mask = attention.dense_mask(right)
    monkeypatch.setattr(attention, "dense_mask", lambda _layout: mask.roll(1, 3) | mask)
    with pytest.raises(ArithmeticError, match="is not dense attention"):
        kit.attention_error((4, 2, 16), right)


def test_the_questions_of_graphs() -> None:
    """On a CPU, where graphs are stood in for: replayed rows are exact, and a recording that waits is refused."""
    kit, base = script("gpu_first"), one_layer.FOLDER
    with cuda_graphs_here() as graphs:
        found = kit.graph_row(base, 4)
        assert len(graphs.made) == 2 and graphs.replays > 8
        assert all(0 <= one["gradient"] < 1e-5 for one in found["differences"]) and len(found["differences"]) == 2
        assert "not permitted when stream is capturing" in kit.failed_recording(base)["said"]
        assert len(graphs.made) == 2


def test_a_wrong_graph_is_an_answer() -> None:
    kit = script("gpu_first")
    with cuda_graphs_here(leave_out="sin"), pytest.raises(ArithmeticError, match="graphs: off"):
        kit.graph_row(one_layer.FOLDER, 4)


@pytest.mark.slow
def test_the_whole_of_it_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu_first.py"), str(tmp_path), "--cpu"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(tmp_path)
    assert [line["question"] for line in found if "failed" in line] == [] and len(found) == 11
    (shared,) = [line["errors"]["shared"] for line in found if line["question"] == "step: checkpointing False"]
    assert shared["gradient"] < 1e-5
