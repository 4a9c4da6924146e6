"""The addresses of the board, each with the one function that answers it, behind guard.py."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fasttune.analysis import charts
from fasttune.console import FasttuneError, _
from fasttune.web import blind_page, chat_page, overview, pick_page, run_page, training_page
from fasttune.web.board import Board
from fasttune.web.guard import Guard
from fasttune.web.pages import message

STATIC = Path(__file__).parent / "static"
TYPES = {
    "board.css": "text/css",
    "board.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}  # all static files there are
ROUTES = (
    ("/", "GET", overview.overview),
    ("/events", "GET", overview.overview_events),
    ("/overlay", "GET", overview.overlay),
    ("/runs/{series}/{number}", "GET", run_page.run_page),
    ("/runs/{series}/{number}/events", "GET", run_page.run_events),
    ("/runs/{series}/{number}/report", "GET", run_page.run_report),
    ("/runs/{series}/{number}/stop", "GET", run_page.ask_to_stop),
    ("/runs/{series}/{number}/stop", "POST", run_page.stop),
    ("/runs/{series}/{number}/pick", "POST", pick_page.pick),
    ("/train", "GET", training_page.recipes_page),
    ("/train/plan", "POST", training_page.plan_page),
    ("/train/start", "POST", training_page.start),
    ("/train/started/{key}", "GET", training_page.started_page),
    ("/blind", "GET", blind_page.blind_start),
    ("/blind", "POST", blind_page.blind_ask),
    ("/blind/{key}", "GET", blind_page.blind_page),
    ("/blind/{key}/pick", "POST", blind_page.blind_pick),
    ("/chat", "GET", chat_page.chat_page),
    ("/chat/say", "POST", chat_page.say),
    ("/chat/stop", "POST", chat_page.stop),
    ("/chat/new", "POST", chat_page.begin_anew),
)


def application(board: Board) -> ASGIApp:
    """The board as an ASGI application."""
    routes = [Route(path, function, methods=[method]) for path, method, function in ROUTES]
    app = Starlette(
        routes=[*routes, Route("/static/{name}", static, methods=["GET"])],
        exception_handlers={HTTPException: refused, FasttuneError: failed},
    )
    app.state.board = board
    return Guard(app, board.port, board.token)


def static(request: Request) -> Response:
    """The style sheet, with that of the charts, or the script."""
    name = request.path_params["name"]
    if name not in TYPES:
        raise HTTPException(404)
    text = (STATIC / name).read_text(encoding="utf-8")
    return Response(text + charts.STYLE * (name == "board.css"), media_type=TYPES[name])


def refused(request: Request, problem: Exception) -> Response:
    """The page for an address that leads nowhere."""
    status = problem.status_code if isinstance(problem, HTTPException) else 404
    return message(request, _("Not found"), _("the board has no such page; the run may have been removed"), status)


def failed(request: Request, problem: Exception) -> Response:
    """The page for what a person can mend."""
    assert isinstance(problem, FasttuneError)
    first = problem.findings[0]
    return message(request, _("Not possible"), f"{first.where}: {first.what}".strip(": "), 409, first.fix)
