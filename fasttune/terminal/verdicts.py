"""What the end of a training says, and the curves of a run's losses in block characters."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fasttune.analysis.words import best_line, general_line, verdict_line
from fasttune.console import _, ngettext
from fasttune.runs import documents, judgement, summary
from fasttune.runs.store import Run
from fasttune.runs.summary import Figures

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40  # columns, at most


def result_lines(run: Run, one: Figures, seconds: float, width: int, encoding: str) -> list[str]:
    """What the end of `fasttune run` says of a training: losses, curves in at most `width` columns, the verdict, and
    TensorBoard's command."""
    steps = one.steps - documents.read_plan(run).start_step  # its own; a continued run counts on from its parent's
    trained = ngettext("{n} step in {seconds:.0f} s", "{n} steps in {seconds:.0f} s", steps, seconds=seconds)
    lines = [
        _("loss {first:.3f} -> {last:.3f}, accuracy {accuracy:.1%} (last epoch), {trained}", first=one.first_loss,
          last=one.epoch_loss, accuracy=one.mean_token_accuracy, trained=trained),
        best_line(one),
        *map(general_line, documents.read_scores(run).general if run.scores.is_file() else ()),
        *(curves(summary.full_history(run), width) if can_show(BLOCKS, encoding) else []),
        verdict_line(one),
    ]  # fmt: skip
    if run.tensorboard.is_dir():
        lines.append(_("all curves: `tensorboard --logdir {folder}`", folder=shlex.quote(str(run.tensorboard))))
    return [line for line in lines if line]


def can_show(text: str, encoding: str) -> bool:
    """Whether an output encoding has all characters of a text."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# Curves -------------------------------------------------------------------------------------------------------------


def curves(history: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """A line of blocks for the training loss and one for the held-out loss, on one scale over the same steps; none for
    fewer than two logged steps."""
    trained = [(int(line["step"]), float(line["loss"])) for line in history if "loss" in line]
    held_out = [(one.step, one.loss) for one in judgement.evaluations(history)]
    if len(trained) < 2:
        return []
    last = max(step for step, _loss in trained)
    columns = max(2, min(CURVE_WIDTH, width - 12, last))
    rows = {_("training"): held(averages(trained, last, columns))}
    if len(held_out) > 1:
        rows[_("held-out")] = held(averages(held_out, last, columns))
    every = [value for row in rows.values() for value in row if value is not None]
    label = max(len(name) for name in rows)
    return [f"{name:{label}} {blocks(row, min(every), max(every))}" for name, row in rows.items()]


def averages(points: Sequence[tuple[int, float]], last: int, columns: int) -> list[float | None]:
    """The mean of the points' values in each of `columns` equal parts of the steps 1 to `last`; None where there is
    none."""
    parts: list[list[float]] = [[] for _column in range(columns)]
    for step, value in points:
        parts[min(columns - 1, (step - 1) * columns // last)].append(value)
    return [sum(part) / len(part) if part else None for part in parts]


def held(row: Sequence[float | None]) -> list[float | None]:
    """The row where each gap has the value before it; gaps before the first value stay."""
    filled: list[float | None] = []
    for value in row:
        filled.append(value if value is not None or not filled else filled[-1])
    return filled


def blocks(row: Sequence[float | None], low: float, high: float) -> str:
    """A block for each value, from the lowest for `low` to the highest for `high`; a blank for none."""
    span = (high - low) or 1.0
    levels = len(BLOCKS) - 1
    return "".join(" " if value is None else BLOCKS[round((value - low) / span * levels)] for value in row)
