"""Other trainers' logs, as they are found: nulls, NaN, two writers, closing rows, seams, several trainings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import trainings
from trainings import factory_line, write_factory, write_lines, write_state, write_swift

from fasttune.analysis.trainer_logs import find_log, read_log
from fasttune.console import UsageError
from fasttune.runs.curves import Evaluation


def test_one_history_from_three_formats(tmp_path: Path) -> None:
    rows = trainings.good(1)
    state, factory, swift = (
        read_log(write(tmp_path / name, rows))
        for name, write in (("a", write_state), ("b", write_factory), ("c", write_swift))
    )
    assert state.attempts[0].losses == factory.attempts[0].losses == swift.attempts[0].losses
    assert state.attempts[0].evaluations == factory.attempts[0].evaluations == swift.attempts[0].evaluations
    assert {one.total_steps for one in (state, factory, swift)} == {300}
    assert [one.learning_rate for one in factory.attempts[0].points] == [
        one.learning_rate for one in state.attempts[0].points
    ]


def test_the_folder_its_newest_checkpoint_or_the_file(tmp_path: Path) -> None:
    out = tmp_path / "out" / "lora_x"
    for step in (20, 100, 300):
        write_state(out / f"checkpoint-{step}", [one for one in trainings.good(1) if one["step"] <= step])
    assert find_log(out) == out / "checkpoint-300" / "trainer_state.json", "by number, not by name"
    assert find_log(out / "checkpoint-100") == out / "checkpoint-100" / "trainer_state.json"
    own = write_state(out, trainings.good(1))
    assert find_log(out) == own == find_log(own)
    assert find_log(tmp_path) is None and find_log(tmp_path / "nothing") is None
    log = read_log(own)
    assert (log.checkpoints, log.folder) == ((20, 100, 300), out)
    assert read_log(out / "checkpoint-300" / "trainer_state.json").folder == out


def test_numbers_that_are_none(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "epoch": 0.1, "loss": math.nan, "grad_norm": math.inf, "learning_rate": None},
        {"step": 2, "epoch": 0.2, "loss": 1.0, "grad_norm": True, "learning_rate": "1e-4"},
        {"step": 2, "epoch": 0.2, "eval_loss": None},
        {"step": 3, "train_loss": 1.0, "train_runtime": 3.0},
    ]
    (curve,) = read_log(write_state(tmp_path, lines)).attempts
    assert math.isnan(curve.points[0].loss) and curve.points[0].grad_norm == math.inf
    assert curve.points[1].grad_norm is None and curve.points[1].learning_rate is None
    assert curve.evaluations == () and len(curve.points) == 2


def test_the_closing_row_counts_batches_and_not_steps(tmp_path: Path) -> None:
    """LLaMA-Factory's last evaluation says 40 of 40: it is that of the last step, and repeats the one before."""
    lines = [factory_line(line) for line in trainings.good(1)]
    lines.append(
        {"current_steps": 40, "total_steps": 40, "loss": None, "eval_loss": lines[-1]["eval_loss"], "epoch": 3.0}
    )
    log = read_log(write_lines(tmp_path / "trainer_log.jsonl", lines))
    assert len(log.attempts) == 1 and log.total_steps == 300
    assert [one.step for one in log.attempts[0].evaluations] == [50, 100, 150, 200, 250, 300]


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Every row twice, the second writer's up to two rows late, its losses rounded otherwise."""
    rows = [factory_line(line) for line in trainings.rows(trainings.decay(3, 1, 0.5), 1)]
    late = [line | {"loss": line["loss"] + 1e-4} for line in rows]
    mixed = [line for index, row in enumerate(rows) for line in ([row, late[index - 2]] if index > 1 else [row])]
    log = read_log(write_lines(tmp_path / "trainer_log.jsonl", mixed))
    assert log.writers == 2 and len(log.attempts) == 1
    assert log.attempts[0].losses == [line["loss"] for line in rows]


def test_two_processes_that_were_resumed(tmp_path: Path) -> None:
    rows = [factory_line(line) for line in trainings.rows(trainings.decay(3, 1, 0.5), 1)]
    twice = [line for row in [*rows[:180], *rows[150:]] for line in (row, row)]
    log = read_log(write_lines(tmp_path / "trainer_log.jsonl", twice))
    assert [(one.points[0].step, one.points[-1].step) for one in log.attempts] == [(1, 180), (151, 300)]


def test_a_step_counter_that_falls_begins_another_training(tmp_path: Path) -> None:
    log = read_log(write_state(tmp_path, trainings.restarted(1)))
    assert [len(one.points) for one in log.attempts] == [84, 84, 84]
    same = [line for row in trainings.good(1) for line in (row, row)]
    assert len(read_log(write_state(tmp_path / "b", same)).attempts) == 1, "a row that stands twice is none"


def test_checkpoints_of_several_trainings_in_one_folder(tmp_path: Path) -> None:
    """Trained again into the same folder: the older training's checkpoint is left, with another first loss."""
    rows = trainings.restarted(1)
    write_state(tmp_path / "checkpoint-40", rows[:40])
    write_state(tmp_path / "checkpoint-84", rows[84:168])
    log = read_log(tmp_path / "checkpoint-84" / "trainer_state.json")
    assert [one.points[-1].step for one in log.attempts] == [40, 84]
    write_state(tmp_path / "checkpoint-40", rows[84:124])
    assert len(read_log(tmp_path / "checkpoint-84" / "trainer_state.json").attempts) == 1, "its own beginning"


def test_lines_that_cant_be_read_are_named(tmp_path: Path) -> None:
    path = write_factory(tmp_path, trainings.good(1))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:3], "{half", "[1]", *lines[3:], '{"current_st']), encoding="utf-8")
    log = read_log(path)
    assert log.unreadable == (4, 5), "and a last line that a killed process left is none"
    assert len(log.attempts[0].points) == 300


def test_preference_accuracy_is_no_token_accuracy(tmp_path: Path) -> None:
    lines = [{"current_steps": n, "total_steps": 9, "loss": 0.69, "accuracy": 1.0, "lr": 1e-6} for n in range(1, 10)]
    (curve,) = read_log(write_lines(tmp_path / "trainer_log.jsonl", lines)).attempts
    assert {one.accuracy for one in curve.points} == {None}
    (swift,) = read_log(
        write_lines(tmp_path / "logging.jsonl", [{"global_step": 1, "loss": 1.0, "token_acc": 0.5}])
    ).attempts
    assert swift.points[0].accuracy == 0.5


def test_an_evaluation_says_how_many_samples_were_held_out(tmp_path: Path) -> None:
    evaluated = {"step": 2, "eval_loss": 1.2, "eval_runtime": 2.5, "eval_samples_per_second": 18.0}
    log = read_log(write_state(tmp_path, [{"step": 1, "loss": 1.0}, evaluated]))
    assert log.held_out == 45 and log.attempts[0].evaluations == (Evaluation(2, 1.2),)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"log_history": 3}', '{"log_history": []}', "\x00", "[" * 100_000]
)
def test_what_is_no_log_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    for name in ("trainer_state.json", "trainer_log.jsonl"):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(UsageError) as refused:
            read_log(tmp_path / name)
        assert refused.value.findings[0].code == "not-a-log"


def test_what_lies_beside_the_log(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16, "base_model_name_or_path": "Qwen/x"}), "utf-8")
    log = read_log(write_state(tmp_path, trainings.good(1)))
    assert (log.rank, log.base) == (16, "Qwen/x")
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    assert read_log(tmp_path / "trainer_state.json").rank is None
