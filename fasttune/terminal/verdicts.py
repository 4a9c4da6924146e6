"""Verdicts in words, with their reasons, and the curves of a run's losses in block characters."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fasttune.console import _, ngettext
from fasttune.runs import judgement, summary
from fasttune.runs.judgement import CANNOT_TELL, DIVERGED, NOT_ENOUGH, NOTHING_LEARNED, OVER_FITTING
from fasttune.runs.store import Run
from fasttune.runs.summary import Figures

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40  # columns, at most


def verdict_word(verdict: str | None) -> str:
    """A verdict in the user's language; a dash for none."""
    words = {
        "excellent": _("excellent"),
        "good": _("good"),
        "fair": _("fair"),
        NOT_ENOUGH: _("not enough"),
        OVER_FITTING: _("over-fitting"),
        CANNOT_TELL: _("cannot tell"),
        NOTHING_LEARNED: _("nothing learned"),
        DIVERGED: _("diverged"),
    }
    return words[verdict] if verdict else "–"


def verdict_line(one: Figures) -> str:
    """`verdict: good; the held-out loss is at its best at the end`; "" where there is none."""
    if not one.verdict or not one.verdict_reason:
        return ""
    return _("verdict: {verdict}; {reason}", verdict=verdict_word(one.verdict), reason=reason(one))


def reason(one: Figures) -> str:
    """Why a run has its verdict, and what helps."""
    band = verdict_word(one.loss_band)
    reasons: dict[str, Callable[[], str]] = {
        "loss-rose": lambda: _(
            "the training loss rose far above its best and stayed there: lower train.learning_rate"),
        "loss-hardly-moved": lambda: _("the training loss hardly moved: raise train.learning_rate"),
        "no-held-out": lambda: _(
            "nothing is held out, and the training loss alone (by itself: {band}) does not show over-fitting; set "
            "`data.val`, for example to 0.1", band=band),
        "one-held-out-sample": lambda: _("one held-out sample tells nothing; hold out ten or more"),
        "few-held-out": lambda: _(
            "{samples} held-out samples are too few: their loss moves by chance; hold out {enough} or more",
            samples=one.held_out_samples, enough=judgement.ENOUGH_HELD_OUT),
        "not-evaluated": lambda: _("it has no held-out loss"),
        "evaluated-once": lambda: _(
            "the held-out loss was computed once, so that it is unknown whether it falls; set `train.eval_steps`"),
        "past-best": lambda: _(
            "the held-out loss is past its best: fewer epochs, a lower learning rate or more samples help"),
        "above-best": lambda: _("the held-out loss is a little above its best: more epochs would not help"),
        "still-falling": lambda: _("the held-out loss still falls fast: more epochs help"),
        "at-best": lambda: _("the held-out loss is at its best at the end"),
    }  # fmt: skip
    return reasons[one.verdict_reason or "not-evaluated"]()


def best_line(one: Figures) -> str:
    """`held-out loss 4.545, best 4.545 at step 62 of 62`; "" where nothing tells it."""
    if one.eval_loss is None or one.best_step is None or one.held_out_samples < judgement.FEW_HELD_OUT:
        return ""
    return _("held-out loss {loss:.3f}, best {best:.3f} at step {step} of {total}",
             loss=one.eval_loss, best=one.best_eval_loss, step=one.best_step, total=one.steps)  # fmt: skip


def result_lines(run: Run, one: Figures, seconds: float, width: int, encoding: str) -> list[str]:
    """What the end of `fasttune run` says of a training: losses, curves in at most `width` columns, the verdict, and
    TensorBoard's command."""
    trained = ngettext("{n} step in {seconds:.0f} s", "{n} steps in {seconds:.0f} s", one.steps, seconds=seconds)
    lines = [
        _("loss {first:.3f} -> {last:.3f}, accuracy {accuracy:.1%} (last epoch), {trained}", first=one.first_loss,
          last=one.epoch_loss, accuracy=one.mean_token_accuracy, trained=trained),
        best_line(one),
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
