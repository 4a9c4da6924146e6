"""The end of a training, and curves of blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from run_folders import write_run

from fasttune.runs import documents, summary
from fasttune.terminal import verdicts


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_end_of_a_run_in_a_few_lines(tmp_path: Path, width: int) -> None:
    losses = [4.0 - 0.03 * n for n in range(100)]
    run = write_run(tmp_path, losses=losses, held_out=[3.0 - 0.01 * n for n in range(100)])
    run.tensorboard.mkdir()
    lines = verdicts.result_lines(run, summary.read_figures(run), 7.0, width, "utf-8")
    assert lines[0] == "loss 4.000 -> 1.030, accuracy 95.0% (last epoch), 100 steps in 7 s"
    assert lines[1] == "held-out loss 2.010, best 2.010 at step 100 of 100"
    curve = lines[2:4]
    assert curve[0].startswith("training █") and curve[1].startswith("held-out ") and "▁" in curve[0]
    assert all(cell_len(line) <= width for line in curve)
    assert lines[-1] == f"all curves: `tensorboard --logdir {run.tensorboard}`"
    plain = verdicts.result_lines(run, summary.read_figures(run), 7.0, width, "ascii")
    assert all(line.isascii() for line in plain) and len(plain) == len(lines) - 2


def test_a_continued_run_counts_its_own_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=[4.0 - 0.03 * n for n in range(100)])
    documents.write(run.plan, replace(documents.read_plan(run), start="checkpoint", start_step=94))
    line = verdicts.result_lines(run, summary.read_figures(run), 7.0, 80, "utf-8")[0]
    assert line.endswith("6 steps in 7 s")


def test_a_curve_has_a_block_a_part_of_the_steps() -> None:
    history: list[dict[str, Any]] = [{"step": step, "loss": 9.0 - step} for step in range(1, 9)]
    assert verdicts.curves(history, 80) == ["training █▇▆▅▄▃▂▁"]
    history += [{"step": 4, "eval_loss": 8.0}, {"step": 8, "eval_loss": 5.0}]
    assert verdicts.curves(history, 80) == ["training █▇▆▅▄▃▂▁", "held-out    ████▅"]
    assert verdicts.curves(history[:1], 80) == []
    assert verdicts.curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}], 80) == ["training ▁▁"]
