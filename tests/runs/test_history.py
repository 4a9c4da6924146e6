"""history.jsonl: torn and trimmed lines, and the means over the last epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune import files
from fasttune.runs import history, store
from fasttune.runs.history import EpochMeans


def test_history_is_trimmed_to_a_step_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    for step in range(1, 5):
        files.append_line(run.history, {"step": step, "loss": 1 / step, "epoch": step / 4, "mean_token_accuracy": 0.5})
    with open(run.history, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    assert [line["step"] for line in history.read_history(run)] == [1, 2, 3, 4]
    history.trim_history(run, 2)
    assert run.history.read_text().count("\n") == 2


def test_without_a_history_there_is_nothing_to_read_or_trim(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    history.trim_history(run, 2)
    assert history.read_history(run) == [] and not run.history.exists()


def line(step: int, loss: float, accuracy: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "mean_token_accuracy": accuracy}


@pytest.mark.parametrize(
    ("lines", "steps_per_epoch", "means"),
    [
        ([], 3, None),
        ([{"step": 3, "eval_loss": 9.0}], 3, None),
        ([line(1, 4.0, 0.0), line(2, 2.0, 0.5), line(3, 1.0, 1.0)], 2, EpochMeans(1.5, 0.75)),
        ([line(1, 4.0, 0.0), line(2, 2.0, 0.5), {"step": 2, "eval_loss": 9.0}], 5, EpochMeans(3.0, 0.25)),
        ([line(2, 4.0, 0.0), line(4, 2.0, 0.5), line(6, 1.0, 1.0)], 4, EpochMeans(1.5, 0.75)),  # logged every 2 steps
    ],
)
def test_the_means_over_the_last_epoch(
    lines: list[dict[str, float]], steps_per_epoch: int, means: EpochMeans | None
) -> None:
    assert history.last_epoch(lines, steps_per_epoch) == means
