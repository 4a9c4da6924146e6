"""The page on which a model is talked to. Its answers are streamed, one JSON document a line."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from fasttune.console import _
from fasttune.web.blind_page import form
from fasttune.web.board import board_of
from fasttune.web.conversation import chat_models
from fasttune.web.pages import links, message, page

LONGEST_QUESTION = 8000  # characters


def chat_page(request: Request) -> Response:
    """The conversation so far, and the models there are; ?model names one of them."""
    board = board_of(request)
    known, now = chat_models(board.runs()), board.conversation.model
    named = request.query_params.get("model", now.key if now else "")
    return page(
        request, "chat.html", _("Chat"), models=list(known), chosen=named if named in known else next(iter(known), ""),
        turns=board.conversation.turns, talks_to=now.key if now else "",
        text={
            "model": _("model"), "ask": _("your question"), "send": _("Send"), "stop": _("Stop"),
            "new": _("New conversation"),
            "none": _("nothing to talk to yet: no run has an adapter or a GGUF file"),
            "loading": _("the model is loaded and thinks"), "script": _("Chatting needs scripts; reading does not."),
            "you": _("you"), "other": _("another model begins a new conversation"),
        },
    )  # fmt: skip


async def say(request: Request) -> Response:
    """Ask one model of the list one question; the answer is streamed. 409 while another answer is under way."""
    board, given = board_of(request), await form(request)
    model = chat_models(board.runs()).get(given.get("model", ""))
    question = given.get("question", "").strip()
    if model is None or not question or len(question) > LONGEST_QUESTION:
        return message(request, _("Chat"), _("name a model of the list, and ask something"), 400)
    if board.conversation.is_busy:
        return message(request, _("Chat"), _("another answer is under way; wait for it, or stop it"), 409)
    turn = board.conversation.ask(model, question)
    return StreamingResponse(board.conversation.pieces(turn), media_type="application/x-ndjson")


async def stop(request: Request) -> Response:
    """End the answer that is under way."""
    board_of(request).conversation.stop()
    return Response(status_code=204)


async def begin_anew(request: Request) -> Response:
    """Forget the conversation, and free the model."""
    conversation = board_of(request).conversation
    if conversation.is_busy:
        return message(request, _("Chat"), _("another answer is under way; wait for it, or stop it"), 409)
    conversation.forget()
    return RedirectResponse(links(request)("/chat"), 303)
