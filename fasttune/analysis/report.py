"""`fasttune report RUN…`: one page about a run or several, and the same figures as JSON.

    runs ── run_report.read_run ──► RunReport… ── report_curves, page_parts ──► page.render ──► report.html

It reads files and loads no model. The page of one run lies in its folder and is written anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import fasttune
from fasttune import files
from fasttune.analysis import charts, page, page_parts, words
from fasttune.analysis.charts import Chart
from fasttune.analysis.evidence import label
from fasttune.analysis.page import Drawn, Room
from fasttune.analysis.page_blocks import Bars, Part, Row, Table, figure
from fasttune.analysis.report_curves import charts_of
from fasttune.analysis.run_report import RunReport, read_run
from fasttune.console import FasttuneError, Finding, _, ngettext, usage_error, worst_first
from fasttune.runs import judgement, store
from fasttune.runs.store import Run

MOST_FINDINGS, LONGEST_FINDING = 12, 600
DOCTYPE = b"<!doctype html>"  # with which a page begins
JSON_POINTS = 60  # columns of a curve in the figures: at most two points for each
TONES = {
    "excellent": "good",
    "good": "good",
    judgement.OVER_FITTING: "bad",
    judgement.DIVERGED: "bad",
    judgement.NOTHING_LEARNED: "bad",
}
SIGNS = {"good": "✓", "fair": "○", "bad": "✗"}


@dataclass(frozen=True)
class RunView:
    """A run as the template lays it out; `tone` is good, fair or bad, `tiles` are (name, value, remark)."""

    id: str
    name: str
    tone: str
    sign: str
    word: str
    reason: str
    tiles: Sequence[tuple[str, str, str]]
    findings: Sequence[Finding]
    more_findings: str
    next: str
    command: str
    parts: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Written:
    """Where a page lies, the figures in it, and what of the runs could not be read."""

    path: Path
    figures: Mapping[str, Any]
    problems: tuple[Finding, ...]


def report(root: Path, names: Sequence[str], out: Path | None = None) -> Written:
    """Write the page of runs or series of a runs folder: into the run's folder, of several runs into the current one,
    or to `out`.

    Raises UsageError for a name that no run has and where something else than a page lies at `out`, and FasttuneError
    where the page can't be written.
    """
    if out is not None:
        require_own_page(out)
    runs = list({run.id: run for run in (store.find(root, name) for name in names)}.values())
    return write(runs, out or default_path(runs))


def require_own_page(path: Path) -> None:
    """Raises UsageError where a file lies that is no page: a page is written again, data are never overwritten."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(len(DOCTYPE) + 40).lstrip().lower()
    if head and not head.startswith(DOCTYPE):
        fix = _("name a file that does not exist yet, or a page")
        raise usage_error("file-exists", _("the file already exists, and is no page"), where=str(path), fix=fix)


def default_path(runs: Sequence[Run]) -> Path:
    """Where a page lies by itself."""
    return runs[0].report if len(runs) == 1 else Path(runs[0].report.name)


def write(runs: Sequence[Run], path: Path, *, counts_tokens: bool = True) -> Written:
    """Write the page of runs to a file, whole or not at all. Raises FasttuneError where it can't be written.

    Without `counts_tokens` the tokens of samples are estimated, which saves a second.
    """
    reports = [read_run(run, counts_tokens=counts_tokens) for run in runs]
    for one in reports:
        one.with_series = len({run.series for run in runs}) > 1
    figures = document(reports)
    text = page.render("report.html.jinja", lambda room: laid_out(reports, figures, room))
    try:
        files.write_text(path, text)
    except OSError as problem:
        raise unwritable(path, problem) from None
    return Written(path, figures, tuple(one for each in reports for one in each.problems))


def unwritable(path: Path, problem: OSError) -> FasttuneError:
    """The error for a place that no page can be written to."""
    known = files.known_condition(problem)
    fix = _("name another place by `--out FILE`")
    return known or usage_error("report-not-written", problem.strerror or str(problem), where=str(path), fix=fix)


# Laid out -----------------------------------------------------------------------------------------------------------


def laid_out(reports: Sequence[RunReport], figures: Mapping[str, Any], room: Room) -> Mapping[str, Any]:
    """The values of the template, for a room."""
    views = [view(one, n, room) for n, one in enumerate(reports, 1)]
    curves = page.drawn(charts_of(reports), room)
    return {
        "title": reports[0].id if len(reports) == 1 else title_of(reports),
        "made": _(
            "{date}, fasttune {version}", date=datetime.now().strftime("%Y-%m-%d %H:%M"), version=fasttune.__version__
        ),
        "several": len(reports) > 1,
        "runs": views,
        "charts": curves,
        "figures": page.in_script(figures),
        "comparison": comparison(reports) if len(reports) > 1 else None,
        "contents": contents(views, bool(curves)),
    }


def title_of(reports: Sequence[RunReport]) -> str:
    """The names of several runs: the series once where they share it."""
    series = {one.run.series for one in reports}
    names = ", ".join(one.name for one in reports)
    return f"{next(iter(series))}: {names}" if len(series) == 1 else names


def contents(views: Sequence[RunView], has_curves: bool) -> list[tuple[str, str]]:
    """(anchor, name) of the sections: the parts of one run, or the runs."""
    first = [("verdict", _("Verdict")), *([("curves", _("Curves"))] if has_curves else [])]
    if len(views) == 1:
        return [*first, *((str(part["anchor"]), str(part["title"])) for part in views[0].parts)]
    return [*first, *((f"run-{n}", one.name) for n, one in enumerate(views, 1))]


def comparison(reports: Sequence[RunReport]) -> Table:
    """Several runs in a table, the lowest held-out loss set off."""
    headings = (
        _("run"),
        _("verdict"),
        _("epochs"),
        _("training loss"),
        _("held-out loss"),
        _("best"),
        _("token accuracy"),
    )
    known = [one.figures for one in reports if one.figures]
    lowest = min((one.best_eval_loss for one in known if one.best_eval_loss is not None), default=None)
    rows = []
    for one in reports:
        found = one.figures
        cells = ("–",) * 6
        if found:
            cells = (
                words.verdict_word(found.verdict),
                f"{found.epochs:.3g}",
                figure(found.epoch_loss),
                figure(found.eval_loss),
                figure(found.best_eval_loss),
                figure(found.mean_token_accuracy, ".1%"),
            )
        rows.append(
            Row((one.name, *cells), here=lowest is not None and found is not None and found.best_eval_loss == lowest)
        )
    return Table(headings, tuple(rows))


def view(report: RunReport, number: int, room: Room) -> RunView:
    """A run for the template."""
    figures, diagnosis = report.figures, report.diagnosis
    verdict = figures.verdict if figures else None
    tone = TONES.get(verdict or "", "fair")
    found = worst_first([*report.problems, *(diagnosis.findings if diagnosis else ())])
    shown = [shortened(without_repeats(one, report)) for one in found[:MOST_FINDINGS]]
    return RunView(
        id=report.id,
        name=report.name,
        tone=tone,
        sign=SIGNS[tone],
        word=words.verdict_word(verdict) if verdict else nothing_yet(report),
        reason=words.reason(figures) if figures and verdict else "",
        tiles=tiles(report),
        findings=shown,
        more_findings=more_word(len(found) - len(shown)),
        next=_("type this next:"),
        command=diagnosis.command if diagnosis else "",
        parts=[part_view(one, number, room) for one in page_parts.parts_of(report)],
    )


def more_word(more: int) -> str:
    """How many findings are not shown."""
    return ngettext("and {n} more finding", "and {n} more findings", more) if more else ""


def without_repeats(finding: Finding, report: RunReport) -> Finding:
    """A finding without what stands beside it anyway: the name of its run, and the command that is to be typed next."""
    command = report.diagnosis.command if report.diagnosis else ""
    where = "" if finding.where == report.id else finding.where
    return replace(finding, where=where, fix="" if finding.fix == f"`{command}`" else finding.fix)


def nothing_yet(report: RunReport) -> str:
    """What is said in place of a verdict."""
    return _("no verdict yet: {status}", status=words.status_word(report.run.status))


def shortened(finding: Finding) -> Finding:
    """A finding whose texts are at most so long."""
    parts = {
        name: value[:LONGEST_FINDING] + "…" if len(value) > LONGEST_FINDING else value
        for name, value in vars(finding).items()
    }
    return Finding(**parts)


def tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """The figures that are read first."""
    found = report.figures
    if found is None or found.loss is None:
        return []
    tiles = [(_("training loss"), figure(found.epoch_loss), _("from {first:.3f}", first=found.first_loss))]
    if words.has_held_out_loss(found):
        tiles.insert(
            0,
            (
                _("held-out loss"),
                figure(found.eval_loss),
                _("best {loss:.3f} at step {step}", loss=found.best_eval_loss, step=found.best_step),
            ),
        )
    tiles.append((_("token accuracy"), figure(found.mean_token_accuracy, ".1%"), _("last epoch")))
    steps = ngettext("{n} step", "{n} steps", found.steps)
    tiles.append((_("epochs"), f"{found.epochs:.3g}", f"{steps}, {words.status_word(found.status)}"))
    if report.plan:
        held_out = _("{n} held out", n=report.plan.val_samples)
        if report.plan.general_samples:
            held_out = _("{n} held out, and {general} general ones trained on", n=report.plan.val_samples,
                         general=report.plan.general_samples)  # fmt: skip
        tiles.append((_("samples"), f"{report.plan.train_samples:,}", held_out))
    return tiles


def part_view(part: Part, number: int, room: Room) -> Mapping[str, Any]:
    """A part for the template: its charts drawn, its id one of its own among several runs."""
    anchor = part.name if number == 1 else f"{part.name}-{number}"
    return {
        **vars(part),
        "anchor": anchor,
        "charts": [as_drawn(one, number, room) for one in part.charts],
        "table": short_cells(part.table, room),
    }


def as_drawn(chart: Chart | Bars, number: int, room: Room) -> Drawn:
    """A chart or a histogram as markup."""
    name = chart.name if number == 1 else f"{chart.name}-{number}"
    if isinstance(chart, Chart):
        return page.draw(replace(chart, name=name), room)
    return page.draw_bars(replace(chart, name=name))


def short_cells(table: Table | None, room: Room) -> Table | None:
    """A table whose cells are at most so long."""
    if table is None:
        return None
    most = min(room.characters, 400)
    rows = tuple(
        Row(tuple(one if len(one) <= most else one[:most] + "…" for one in row.cells), row.here) for row in table.rows
    )
    return Table(table.headings, rows, table.numbers)


# Figures ------------------------------------------------------------------------------------------------------------


def document(reports: Sequence[RunReport]) -> dict[str, Any]:
    """The figures of a page, which it holds as JSON and --json prints."""
    return {"format": 1, "fasttune": fasttune.__version__, "runs": [run_document(one) for one in reports]}


def run_document(report: RunReport) -> dict[str, Any]:
    """The figures of one run; curves are reduced as those that are drawn."""
    diagnosis, figures = report.diagnosis, report.figures
    found = [*report.problems, *(diagnosis.findings if diagnosis else ())]
    return {
        "id": report.id,
        "figures": asdict(figures) if figures else None,
        "findings": [asdict(shortened(one)) for one in worst_first(found)[:MOST_FINDINGS]],
        "findings_in_all": len(found),
        "command": diagnosis.command if diagnosis else "",
        "evidence": [{"name": one.name, "label": label(one), "value": one.value} for one in diagnosis.evidence]
        if diagnosis
        else [],
        "epochs": [asdict(one) for one in report.epoch_rows[: page_parts.MOST_ROWS]],
        "seams": [{**asdict(one), "difference": one.difference} for one in report.seams[: page_parts.MOST_ROWS]],
        "kept_epochs": [
            {
                "epoch": one.epoch,
                "step": one.step,
                "eval_loss": one.eval_loss,
                "best": one.is_best,
                "served": one.is_served,
            }
            for one in report.kept
        ],
        "facts": {arm: asdict(one) for arm, one in report.facts.arms.items()} if report.facts else None,
        "worst_samples": [{"sample": one.sample, "loss": one.loss, "base_loss": one.base_loss} for one in report.worst],
        "data": report.data.figures.document() | {"changed": report.data.is_changed} if report.data else None,
        "exports": [
            {"file": name, "bytes": size, "checks": dict(one.checks) if one else None}
            for name, size, one in report.exports
        ],
        "curves": curves_document(report),
    }


def curves_document(report: RunReport) -> dict[str, list[tuple[float, float]]]:
    """{figure: [(epoch, value), …]} of what is drawn, each reduced to so many columns."""
    curves = {}
    for key in ("loss", "mean_token_accuracy", "learning_rate", "grad_norm", "tokens_per_second", "eval_loss"):
        points = [
            (epoch, float(line[key]))
            for epoch, line in zip(report.line_epochs, report.history, strict=True)
            if isinstance(line.get(key), (int, float))
        ]
        curves[key] = [(round(epoch, 4), value) for epoch, value in charts.reduced(points, JSON_POINTS)]
    return curves
