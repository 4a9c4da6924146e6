"""The charts of a page: losses, accuracy, learning rate, gradient norm and speed by epoch, several runs in one.

One run has its training and its held-out loss in one chart. Several runs have a chart for each of the two: what is
compared is the held-out loss, and two lines a run in one chart are too many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fasttune.analysis import charts
from fasttune.analysis.chart_scales import Point
from fasttune.analysis.charts import Chart, Series
from fasttune.analysis.run_report import RunReport
from fasttune.console import _

FEW = 60  # logged steps: of so many each is drawn, of more their running mean before them


def charts_of(reports: Sequence[RunReport]) -> list[Chart]:
    """The charts of a page, those without a single value left out."""
    reports = [of_its_own(one, reports) for one in reports]
    epoch = _("epoch")
    figures = (
        ("accuracy", _("Token accuracy"), "mean_token_accuracy"),
        ("learning-rate", _("Learning rate"), "learning_rate"),
        ("gradient", _("Gradient norm"), "grad_norm"),
        ("speed", _("Tokens a second"), "tokens_per_second"),
    )
    found = losses(reports, epoch)
    for name, title, key in figures:
        series = tuple(line(one, key, one.name if len(reports) > 1 else title, n) for n, one in enumerate(reports))
        if name == "accuracy" and len(reports) == 1:
            series = (line(reports[0], key, _("training"), 0), held_out(reports[0], _("held-out"), 1, of_accuracy=True))
        kept = tuple(one for one in series if one.points)
        found.append(Chart(name, title, epoch, kept, seams(reports), log=None if name == "gradient" else False,
                           from_zero=name == "speed"))  # fmt: skip
    return [chart for chart in found if any(one.points for one in chart.series)]


def losses(reports: Sequence[RunReport], epoch: str) -> list[Chart]:
    """Training and held-out loss: one chart of one run, two of several."""
    if len(reports) == 1:
        pair = (line(reports[0], "loss", _("training"), 0), held_out(reports[0], _("held-out"), 1))
        kept = tuple(one for one in pair if one.points)
        return [Chart("loss", _("Loss"), epoch, kept, seams(reports), log=charts.loss_axis(kept))]
    evaluated = tuple(held_out(one, one.name, n) for n, one in enumerate(reports))
    trained = (line(one, "loss", one.name, n) for n, one in enumerate(reports))
    kept = tuple(one for one in trained if one.points)
    return [
        Chart("held-out-loss", _("Held-out loss"), epoch, tuple(one for one in evaluated if one.points), log=False),
        Chart("loss", _("Training loss"), epoch, kept, log=charts.loss_axis(kept)),
    ]


def of_its_own(report: RunReport, reports: Sequence[RunReport]) -> RunReport:
    """A run with the history to draw: without its parents' where one of them is drawn beside it, so that no line covers
    another; the last step of the parent stays, so that the line begins where the other ends."""
    shown = {one.id for one in reports if one is not report}
    parents = [older for (older, _step) in report.joined[1:]]
    first = report.plan.parent if report.plan else None
    if not report.joined or not shown & {*parents, first}:
        return report
    start = report.joined[0][1]
    return replace(report, history=[one for one in report.history if one["step"] >= start])


def line(report: RunReport, key: str, name: str, style: int) -> Series:
    """A figure of the logged steps by epoch; of many steps their running mean, before the single values."""
    points = tuple(
        (epoch, figure(one.get(key)))
        for epoch, one in zip(report.line_epochs, report.history, strict=True)
        if "loss" in one
    )
    if not any(math.isfinite(value) for _epoch, value in points):
        return Series(name, (), style=style)
    seen = tuple(charts.reduced(points, charts.COLUMNS))
    if len(points) <= FEW or key == "learning_rate":
        return Series(name, seen, style=style)
    return Series(name, charts.smoothed(points), raw=seen, style=style)


def held_out(report: RunReport, name: str, style: int, *, of_accuracy: bool = False) -> Series:
    """The held-out loss, or accuracy, with a mark at each evaluation."""
    key = "eval_mean_token_accuracy" if of_accuracy else "eval_loss"
    points = [(report.epoch_of(one), figure(one.get(key))) for one in report.history if "eval_loss" in one]
    values: tuple[Point, ...] = tuple(point for point in points if math.isfinite(point[1]))
    return Series(name, values, marked=True, style=style)


def figure(value: Any) -> float:
    """A figure of a line; NaN, which is a gap, where it is missing or no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def seams(reports: Sequence[RunReport]) -> tuple[tuple[float, str], ...]:
    """Where a run continued from its parents, with the name of the run that begins there; none of several runs."""
    if len(reports) > 1:
        return ()
    size = reports[0].steps_per_epoch
    return tuple((step / size, run.rpartition("/")[2]) for run, step in reversed(reports[0].joined))
