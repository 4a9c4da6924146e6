"""The page of one run: its verdict first, curves that grow while it is trained, the button that stops it."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from fasttune.analysis import words
from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, _, finite
from fasttune.runs import holder
from fasttune.runs.store import Run
from fasttune.terminal import runs_tree
from fasttune.web import curves, history_tail, live, pick_page
from fasttune.web.board import board_of
from fasttune.web.figures import Read
from fasttune.web.live import is_busy, standing
from fasttune.web.pages import links, message, page
from fasttune.web.run_words import next_commands, tables, tone


def named_run(request: Request) -> Run:
    """The run that an address names. Raises HTTPException (404) where there is none."""
    return board_of(request).run("{series}/{number}".format(**request.path_params))


def run_page(request: Request) -> Response:
    """Everything about one run."""
    board, run = board_of(request), named_run(request)
    (read,) = board.figures.of([run])
    busy = is_busy(run)
    history = history_tail.thinned(run.history)
    return page(
        request, "run.html", run.id,
        run=run, figures=read.figures, findings=read.findings, summary=summary_lines(read),
        badge=badge(read), tone=tone(run.status, read.figures.verdict if read.figures else None),
        is_live=busy, standing=standing(run, history.points[-live.RATE_FROM :]) if busy else None,
        can_stop=run.status == "running", has_report=report_file(run).is_file(),
        charts=curves.of_run(history.points, curves.epoch_length(run)), place=str(history.place),
        points=json.dumps(finite(history.points)) if busy else "", fields=" ".join(history_tail.FIELDS),
        epoch_length=curves.epoch_length(run), tables=tables(run), commands=next_commands(run),
        kept=pick_page.picture(run), kept_text=pick_page.texts(),
        refresh=2 if read.is_pending and not busy else 0, text=texts(read),
    )  # fmt: skip


def badge(read: Read) -> str:
    """The verdict of a finished run in a word, else its state."""
    if read.findings:
        return _("damaged")
    status = read.run.status
    if status != "finished":
        return words.status_word(status)
    return words.verdict_word(read.figures.verdict) if read.figures else _("is being read")


def summary_lines(read: Read) -> list[str]:
    """The verdict with its reason, figures, and what was changed."""
    one = read.figures
    if one is None:
        return []
    changed = words.changed_line(one.changes) if one.parent else ""
    parent = _("continues from {run}", run=one.parent) if one.parent else ""
    if read.run.status == "running":  # figures and verdict would be those of a moment ago
        return [line for line in (parent, changed) if line]
    lines = (words.verdict_line(one), runs_tree.figures_line(one), runs_tree.picked_line(one), words.best_line(one),
             parent, changed, runs_tree.files_line(one))  # fmt: skip
    return [line for line in lines if line]


def texts(read: Read) -> dict[str, str]:
    """What the page says besides names and figures."""
    return {
        "stop": _("Stop the training"), "loss": _("loss"), "accuracy": _("accuracy"), "rate": _("tokens/s"),
        "pending": _("this history is long and is still being read"), "none": _("no step was logged yet"),
        "report": _("the whole report"), "curves": _("Curves"), "next": _("Next"), "in_use": _("in use"),
        "date": read.figures.date if read.figures else "",
    }  # fmt: skip


def run_events(request: Request) -> Response:
    """The events of one run."""
    board, run = board_of(request), named_run(request)
    return StreamingResponse(live.of_run(request, board, run), media_type="text/event-stream", headers=live.HEADERS)


# A page that `fasttune report` has written has its style in it; sandboxed, it can do nothing but be read.
STILL = {
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


def run_report(request: Request) -> Response:
    """The page that `fasttune report` has written into the folder of a run."""
    run = named_run(request)
    try:
        text = report_file(run).read_text(encoding="utf-8")
    except (OSError, ValueError):
        what, how = _("this run has no report yet"), command_line(["report", run.id, *runs_option(run.root)])
        return message(request, run.id, what, 404, _("write it: `{command}`", command=how))
    return HTMLResponse(text, headers=STILL)


def report_file(run: Run) -> Path:
    """Where `fasttune report` writes the page of a run."""
    return run.folder / "report.html"


# Stopping -----------------------------------------------------------------------------------------------------------


def ask_to_stop(request: Request) -> Response:
    """The question before a training is stopped."""
    run = named_run(request)
    text = _("It ends after its current step and writes a checkpoint, as after Ctrl-C; running it again resumes there.")
    return page(
        request, "confirm.html", _("Stop the training of {run}?", run=run.id), text=text, action=request.url.path,
        yes=_("Stop it"), no=_("Let it train"), back=f"/runs/{run.id}",
    )  # fmt: skip


def stop(request: Request) -> Response:
    """Ask the process that trains a run to end; its page then shows when it has."""
    run = named_run(request)
    try:
        holder.interrupt(run)
    except FasttuneError as problem:
        first = problem.findings[0]
        return message(request, run.id, first.what, 409, first.fix)
    return RedirectResponse(links(request)(f"/runs/{run.id}"), 303)
