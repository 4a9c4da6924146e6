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


def main_of_few_questions(out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The script with three questions that take no time, and these arguments."""
    kit = script("gpu_first")
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", str(out), *arguments])
    monkeypatch.setattr(kit.shapes, "make", lambda *_anything: out)
    for name, count in (("attention_questions", 1), ("step_questions", 1), ("graph_questions", 0)):
        monkeypatch.setattr(kit, name, lambda *_base, name=name, count=count: [(name, lambda: {})] * count)
    monkeypatch.setattr(kit, "imports", dict)
    monkeypatch.setattr(kit, "bench", lambda _folder, minutes: {"left": minutes})
    return kit


def test_without_a_benchmark_no_minutes_are_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = main_of_few_questions(tmp_path, monkeypatch, "--cpu", "--minutes", "3")
    assert kit.main() == 0
    assert [line["question"] for line in lines(tmp_path)] == ["imports", "attention_questions", "step_questions"]


def test_no_question_begins_in_the_minutes_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = main_of_few_questions(tmp_path, monkeypatch, "--minutes", "9.5")
    monkeypatch.setattr(kit.torch.cuda, "is_available", lambda: True)
    clock = iter([0.0, 60.0, 341.0, 350.0])  # seconds: three questions, and what is left for the benchmark
    monkeypatch.setattr(kit.Answers, "minutes", property(lambda _answers: next(clock) / 60))
    assert kit.main() == 0
    assert [line["question"] for line in lines(tmp_path)] == [
        "imports", "attention_questions", "bench after 0 answers",
    ]  # fmt: skip
    assert lines(tmp_path)[-1]["left"] == pytest.approx(9.5 - 350 / 60)
    assert "not reached in this call: step_questions" in capsys.readouterr().out


def test_attention_that_is_off_by_one_token_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from fasttune.training import attention

    kit = script("gpu_first")
    right = attention.layout([(9, [4, 5])], [3])
    assert max(kit.attention_error((4, 2, 16), right)["errors"].values()) < kit.ROUNDING
    mask = attention.dense_mask(right)
    monkeypatch.setattr(attention, "dense_mask", lambda _layout: mask.roll(1, 3) | mask)
    with pytest.raises(ArithmeticError, match="is not dense attention"):
        kit.attention_error((4, 2, 16), right)


def test_answers_of_other_weights_are_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = script("gpu_first")
    assert max(kit.answer_error(one_layer.FOLDER)["errors"].values()) < 1e-4
    right, calls = kit.models.hidden_states, []

    def without_adapter(model: Any, batch: Any) -> Any:
        calls.append(batch)
        with model.disable_adapter():
            return right(model, batch)

    monkeypatch.setattr(kit.models, "hidden_states", without_adapter)
    with pytest.raises(ArithmeticError, match="answers are not those of the trained model"):
        kit.answer_error(one_layer.FOLDER)
    assert calls


def test_a_shared_base_that_a_trial_has_changed_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = script("gpu_first")
    assert kit.trial_error(one_layer.FOLDER)["errors"] == {"loss": 0, "gradient": 0}
    copied = kit.watch.with_same_weights

    def change(model: Any) -> Any:
        model.model.norm.weight.data.mul_(1.1)
        return copied(model)

    monkeypatch.setattr(kit.watch, "with_same_weights", change)
    with pytest.raises(ArithmeticError, match="a shared base is not the base"):
        kit.trial_error(one_layer.FOLDER)


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
    assert [line["question"] for line in found if "failed" in line] == [] and len(found) == 13
    (shared,) = [line["errors"]["shared"] for line in found if line["question"] == "step: checkpointing False"]
    assert shared["gradient"] < 1e-5
