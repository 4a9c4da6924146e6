"""The page of all series and runs, as `fasttune runs` shows them, and runs laid over each other by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fasttune.analysis import words
from fasttune.command import command_line
from fasttune.console import _, ngettext
from fasttune.runs.store import Run
from fasttune.terminal import runs_tree
from fasttune.web import curves, history_tail, live
from fasttune.web.board import Board, board_of
from fasttune.web.figures import Read
from fasttune.web.live import Standing, standing
from fasttune.web.pages import message, page
from fasttune.web.run_words import tone

MOST_OVERLAID = 6  # lines that charts.py tells apart
DEEPEST = 4  # levels of the tree that are indented: a narrow page has no room for more


@dataclass(frozen=True)
class Row:
    """A run as the page of all runs shows it. `tone` is the colour of its badge; `standing` is there while it is
    trained."""

    run: Run
    depth: int
    badge: str
    tone: str
    in_use: bool
    date: str
    lines: tuple[str, ...]
    standing: Standing | None


def overview(request: Request) -> Response:
    """All series, the one with the newest run first."""
    board = board_of(request)
    runs = board.runs()
    read = {one.run.id: one for one in board.figures.of(runs)}
    series: dict[str, list[Read]] = {}
    for run in runs:
        series.setdefault(run.series, []).append(read[run.id])
    newest = sorted(series, key=lambda name: series[name][-1].run.folder.stat().st_mtime, reverse=True)
    pending = any(one.is_pending for one in read.values())
    return page(
        request, "overview.html", _("Runs"),
        series=[(name, rows(series[name])) for name in newest],
        refresh=2 if pending else 0,
        text=texts(board, len(runs)),
    )  # fmt: skip


def texts(board: Board, count: int) -> dict[str, str]:
    """What the page says besides names and figures."""
    return {
        "count": ngettext("{n} run in {root}", "{n} runs in {root}", count, root=board.root),
        "none": _("no runs in {root} yet", root=board.root),
        "first": _("begin with an example: `{command}`", command=command_line(["init", "--example", "quickstart"])),
        "overlay": _("Lay the chosen runs over each other"),
        "blind": _("Compare two blind"),
        "in_use": _("in use"),
        "choose": _("choose {run}", run="{}"),
    }


def rows(read: Sequence[Read]) -> list[Row]:
    """The runs of a series, each after its parent, as the tree of `fasttune runs` has them."""
    children: dict[str, list[Read]] = {}
    known = {one.run.id for one in read}
    for one in read:
        parent = one.figures.parent if one.figures else None
        children.setdefault(parent if parent in known else "", []).append(one)

    def below(id: str, depth: int) -> list[Row]:
        return [line for one in children.get(id, []) for line in (row(one, depth), *below(one.run.id, depth + 1))]

    return below("", 0)


def row(read: Read, depth: int) -> Row:
    """One run."""
    run, depth = read.run, min(depth, DEEPEST)
    if read.figures is None:
        lines = tuple(finding.what for finding in read.findings)
        badge = _("damaged") if lines else _("is being read")
        return Row(run, depth, badge, "bad" if lines else "quiet", False, "", lines, None)
    one = read.figures
    status = run.status
    badge = words.status_word(status) if status != "finished" else words.verdict_word(one.verdict)
    changed = words.changed_line(one.changes) if one.parent else ""
    lines = (runs_tree.figures_line(one), runs_tree.picked_line(one), changed, runs_tree.files_line(one))
    now = standing(run, history_tail.latest(run.history)) if status == "running" else None
    return Row(run, depth, badge, tone(status, one.verdict), one.current, one.date, tuple(filter(None, lines)), now)


def overview_events(request: Request) -> Response:
    """The events of the page of all runs."""
    return StreamingResponse(live.of_all(board_of(request)), media_type="text/event-stream", headers=live.HEADERS)


# Over each other ----------------------------------------------------------------------------------------------------


def overlay(request: Request) -> Response:
    """The losses of several runs over the epoch, training and held-out apart."""
    board = board_of(request)
    chosen = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_OVERLAID]
    runs = [board.run(id) for id in chosen]
    if not runs:
        return message(request, _("Runs over each other"), _("choose runs on the page of all runs"), 400)
    figures = [one.figures for one in board.figures.of(runs)]
    listed: list[dict[str, Any]] = [
        {"run": run, "line": runs_tree.state_line(one).partition(" ")[2] if one else ""}
        for run, one in zip(runs, figures, strict=True)
    ]
    return page(
        request, "overlay.html", _("Runs over each other"),
        charts=curves.overlaid([(run, history_tail.thinned(run.history).points) for run in runs]), listed=listed,
        text={"blind": _("Compare two blind"), "none": _("no step was logged yet")},
    )  # fmt: skip
