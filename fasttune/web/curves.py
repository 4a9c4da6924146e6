"""The curves of runs as charts of analysis/charts.py; static/board.js draws those of a running training anew, in the
same form, while they grow, from `data-points`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fasttune.analysis import charts
from fasttune.analysis.charts import Chart, Series
from fasttune.console import FasttuneError, _
from fasttune.runs import summary
from fasttune.runs.store import Run
from fasttune.web.history_tail import FIELDS, Point

XY = tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """A chart for a template: its title, its SVG and its legend. `fields` are those of the history that it shows, from
    which the page draws it again, with the same axis: `is_linear`, `from_zero`."""

    title: str
    svg: Markup
    legend: Markup
    fields: str = ""
    is_linear: bool = False
    from_zero: bool = False


def drawn(chart: Chart, fields: str = "") -> Drawn:
    """A chart as the template places it; charts.py has escaped every text in it."""
    return Drawn(chart.title, Markup(charts.draw(chart)), Markup(charts.legend(chart)), fields,
                 chart.log is False, chart.from_zero)  # fmt: skip


def column(points: Sequence[Point], name: str, steps_per_epoch: float) -> tuple[XY, ...]:
    """(epoch, value) of one field; older runs have no epoch in the line of an evaluation."""
    at, epoch, step = FIELDS.index(name), FIELDS.index("epoch"), FIELDS.index("step")
    found = []
    for point in points:
        value, x = point[at], point[epoch]
        if value is not None:
            found.append((x if x is not None else (point[step] or 0.0) / steps_per_epoch, value))
    return tuple(found)


def of_run(points: Sequence[Point], steps_per_epoch: float) -> list[Drawn]:
    """The charts of one run, the losses first; those without a value are left out."""
    loss, held_out = (column(points, name, steps_per_epoch) for name in ("loss", "eval_loss"))
    smooth = Series(_("training"), charts.smoothed(loss), raw=loss)
    lines = (smooth, Series(_("held-out"), held_out, marked=True)) if held_out else (smooth,)
    made = [drawn(Chart("loss", _("loss"), _("epoch"), lines, log=charts.loss_axis(lines)), "loss eval_loss")]
    titles: tuple[tuple[str, Callable[[], str]], ...] = (
        ("mean_token_accuracy", lambda: _("token accuracy")),
        ("tokens_per_second", lambda: _("tokens/s")),
        ("learning_rate", lambda: _("learning rate")),
        ("grad_norm", lambda: _("gradient norm")),
    )
    for name, title in titles:
        values = column(points, name, steps_per_epoch)
        exact = name == "learning_rate"  # its schedule is no noise, and a running mean would round its peak off
        one = Series(title(), values) if exact else Series(title(), charts.smoothed(values), raw=values)
        chart = Chart(name, title(), _("epoch"), (one,), log=None if name == "grad_norm" else False,
                      from_zero=name == "tokens_per_second")  # fmt: skip
        made.append(drawn(chart, name))
    return [chart for chart in made if chart.svg]


def overlaid(runs: Sequence[tuple[Run, Sequence[Point]]]) -> list[Drawn]:
    """A chart for the training losses of runs and one for the held-out losses, with a line for each run."""
    training, held_out = [], []
    for style, (run, points) in enumerate(runs):
        length = epoch_length(run)
        training.append(Series(run.id, charts.smoothed(column(points, "loss", length)), style=style))
        held_out.append(Series(run.id, column(points, "eval_loss", length), marked=True, style=style))
    made = [
        drawn(Chart("training", _("training loss"), _("epoch"), tuple(training), log=charts.loss_axis(training))),
        drawn(Chart("held-out", _("held-out loss"), _("epoch"), tuple(held_out), log=False)),
    ]
    return [chart for chart in made if chart.svg]


def epoch_length(run: Run) -> float:
    """Steps an epoch; 1 where the run's plan can't be read."""
    try:
        plan = summary.read_plan(run)
    except FasttuneError:
        return 1.0
    return float(plan.steps_per_epoch) if plan else 1.0
