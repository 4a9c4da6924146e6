"""history.jsonl: torn and trimmed lines, and the means over the last epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune import files
from fasttune.console import FasttuneError
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


STEP = '{"step": %d, "epoch": %d, "loss": 2.5, "mean_token_accuracy": 0.5, "note": "é"}'


def test_a_history_of_several_blocks_is_every_line_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are parsed a block at a time, and one longer than a block is still one line."""
    monkeypatch.setattr(history, "BLOCK", 300)
    run = store.create(tmp_path, "linzhi", "fresh")
    long = '{"step": 50, "memory": "%s"}' % ("x" * 1000)
    files.write_text(run.history, "".join(f"{STEP % (n, n)}\n" for n in range(1, 50)) + long + '\n{"step": 51')
    read = history.read_history(run)
    assert [line["step"] for line in read] == [*range(1, 51)] and len(read[-1]["memory"]) == 1000
    assert read[0] == {"step": 1, "epoch": 1, "loss": 2.5, "mean_token_accuracy": 0.5, "note": "é"}


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        ('{"step": 3}, {"step": 4}', ""),
        ('{"step": 3\n"x": 4}', ""),
        ('{"a": [{}\n{}]}\n{"step": 3},{"step": 4}', ""),
        ('{"step": 3, "x": "{"', ""),
        ('{"step": 3.5}', "step"),
        ('{"step": true}', "step"),
        ('{"step": 3, "loss": 1, "epoch": "1", "mean_token_accuracy": 0}', "epoch"),
        ('{"step": 3, "eval_loss": null}', "eval_loss"),
        ("[]", "step"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_line_that_is_damaged_is_named_however_many_braces_it_has(tmp_path: Path, damage: str, field: str) -> None:
    """Also what would be whole lines of JSON if the line ends between them were left out."""
    run = store.create(tmp_path, "linzhi", "fresh")
    files.write_text(run.history, f"{STEP % (1, 1)}\n{STEP % (2, 2)}\n{damage}\n{STEP % (5, 5)}\n")
    with pytest.raises(FasttuneError) as problem:
        history.read_history(run)
    assert problem.value.findings[0].where == f"{run.history}:3" and field in problem.value.findings[0].what


def test_whole_lines_with_nested_figures_are_read_as_they_are(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    files.write_text(run.history, '{"step": 1, "more": {"a": [1, {}]}}\n{"step": 2, "more": "}\\n{"}\n')
    assert history.read_history(run) == [{"step": 1, "more": {"a": [1, {}]}}, {"step": 2, "more": "}\n{"}]
