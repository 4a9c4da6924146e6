"""What a running training is doing, and the events that a page gets of it (server-sent events).

    points   the lines of the history that the page does not have yet; their id is the place behind them, with which a
             browser that lost the connection asks for the rest
    state    texts of the page that have changed, by the name of their place in it, in the language of the page
    ended    the training has ended or was killed, or the history was written anew: the page is loaded again

The next piece is read when the browser has taken the one before: a slow one gets larger gaps in time, nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from fasttune.analysis.words import status_word
from fasttune.console import FasttuneError, _
from fasttune.files import is_locked
from fasttune.runs import summary
from fasttune.runs.store import Run
from fasttune.terminal.estimates import duration
from fasttune.web import history_tail
from fasttune.web.board import Board
from fasttune.web.history_tail import FIELDS, Place, Point

SILENCE = 15.0  # seconds, after which a comment is sent, so that a connection that broke is noticed
RATE_FROM = 20  # logged steps, for the time left
HEADERS = {"X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Standing:
    """How far a training is, in words; `done` and `total` are steps. Empty where nothing is known yet."""

    status: str
    step: str = ""
    loss: str = ""
    accuracy: str = ""
    rate: str = ""
    left: str = ""
    done: int = 0
    total: int = 1


def standing(run: Run, points: Sequence[Point]) -> Standing:
    """How far a run is, by the newest points of its history."""
    status = run.status
    text = status_word(status)
    if status == "finished" and is_locked(run.lock):
        text = _("trained; its files are being written")
    trained = [figures for point in points if (figures := named(point))["loss"] is not None]
    total = total_steps(run)
    if not trained:
        waiting = _("the first step is awaited") if status == "running" else ""
        return Standing(text, step=waiting, total=total)
    last = trained[-1]
    step = int(last["step"] or 0)
    return Standing(
        text,
        step=_("step {step:,} of {total:,}", step=step, total=total),
        loss=f"{last['loss']:.3f}",
        accuracy=shown(last["mean_token_accuracy"], ".1%"),
        rate=shown(last["tokens_per_second"], ",.0f"),
        left=time_left(trained, total - step) if status == "running" else "",
        done=step,
        total=max(1, total, step),
    )


def time_left(trained: Sequence[Mapping[str, float | None]], steps: int) -> str:
    """How long so many more steps take, as the last ones did; empty where their times are not known."""
    seconds = [one["step_seconds"] for one in trained[-RATE_FROM:]]
    known = [value for value in seconds if value is not None]
    if not known or steps <= 0:
        return ""
    return _("about {duration} left", duration=duration(sum(known) / len(known) * steps))


def named(point: Point) -> dict[str, float | None]:
    """A point's figures by their names in history.jsonl."""
    return dict(zip(FIELDS, point, strict=True))


def shown(value: float | None, form: str) -> str:
    """A figure in a format; empty for none."""
    return "" if value is None else format(value, form)


def total_steps(run: Run) -> int:
    """The steps that a run is planned to have; 1 where its plan can't be read."""
    try:
        plan = summary.read_plan(run)
    except FasttuneError:
        return 1
    return plan.total_steps if plan else 1


def event(name: str, document: Any, place: Place | None = None) -> str:
    """One server-sent event; JSON has no line breaks."""
    id = f"id: {place}\n" if place else ""
    return f"{id}event: {name}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n"


async def of_run(request: Request, board: Board, run: Run) -> AsyncIterator[str]:
    """The events of one run, from the place on that the page names, until the training has ended."""
    place = Place.read(request.headers.get("last-event-id") or request.query_params.get("from", ""))
    recent = await run_in_threadpool(history_tail.latest, run.history)
    sent, quiet = None, 0.0
    while True:
        news = await run_in_threadpool(history_tail.news, run.history, place)
        if news.is_new_file:
            yield event("ended", {})
            return
        place = news.place
        if news.points:
            recent = (*recent, *news.points)[-RATE_FROM:]
            yield event("points", news.points, place)
        if news.more:
            continue
        now = await run_in_threadpool(standing, run, recent)
        if now != sent:
            yield event("state", asdict(now))
            sent, quiet = now, 0.0
        if not await run_in_threadpool(is_busy, run):
            yield event("ended", {})
            return
        if quiet >= SILENCE:
            yield ": \n\n"
            quiet = 0.0
        quiet += board.poll_seconds
        await asyncio.sleep(board.poll_seconds)


def is_busy(run: Run) -> bool:
    """Whether a live process trains a run or writes its files."""
    return run.folder.is_dir() and is_locked(run.lock)


async def of_all(board: Board) -> AsyncIterator[str]:
    """The events of the page of all runs: the state of those that are trained now, by their id; and `ended` where a run
    has come, gone, begun or ended."""
    before, sent, quiet = None, None, 0.0
    while True:
        runs = await run_in_threadpool(statuses, board)
        if before is not None and runs != before:
            yield event("ended", {})
            return
        before = runs
        states = await run_in_threadpool(all_standings, board, runs)
        if states != sent:
            yield event("states", states)
            sent, quiet = states, 0.0
        if quiet >= SILENCE:
            yield ": \n\n"
            quiet = 0.0
        quiet += 2 * board.poll_seconds
        await asyncio.sleep(2 * board.poll_seconds)


def statuses(board: Board) -> dict[str, str]:
    """{run id: status} of all runs."""
    return {run.id: run.status for run in board.runs()}


def all_standings(board: Board, runs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{run id: Standing} of the runs that are trained now."""
    running = [Run(board.root, id) for id, status in runs.items() if status == "running"]
    return {run.id: asdict(standing(run, history_tail.latest(run.history))) for run in running}
