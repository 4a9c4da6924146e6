"""The pages of a blind comparison: which two, one pair of answers after the other, then the names."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fasttune.console import _, ngettext
from fasttune.web.blind import BASE, NEITHER, STOP, Sitting
from fasttune.web.board import board_of
from fasttune.web.guard import fields
from fasttune.web.pages import links, message, page


async def form(request: Request) -> dict[str, str]:
    """The fields of a form; of a field that is there twice the first. guard.py has limited its size."""
    return {name: values[0] for name, values in fields(await request.body()).items()}


def choices(request: Request) -> list[str]:
    """The models that can be compared: the base, and the run ids with an adapter."""
    runs = [run.id for run in board_of(request).runs() if run.adapter.is_dir()]
    return [*reversed(runs), BASE] if runs else []


def blind_start(request: Request) -> Response:
    """Which two models to compare; ?run names them."""
    named, known = request.query_params.getlist("run"), choices(request)
    chosen = [name for name in named if name in known][:2]
    chosen += [name for name in (known[:1] + known[-1:]) if name not in chosen]
    return page(
        request, "blind_start.html", _("Blind comparison"), known=known, chosen=chosen[:2],
        text={
            "why": _("Both models answer the same questions. You see two answers without names and pick the better "
                     "one; the names and the count come at the end."),
            "first": _("one model"), "second": _("the other"), "begin": _("Ask both"),
            "none": _("nothing to compare yet: no run has an adapter"), "base": _("the untrained base"),
        },
    )  # fmt: skip


async def blind_ask(request: Request) -> Response:
    """Begin a comparison of two models of the list."""
    given = await form(request)
    names, known = (given.get("first", ""), given.get("second", "")), choices(request)
    if not set(names) <= set(known) or names[0] == names[1]:
        return message(request, _("Blind comparison"), _("choose two different models"), 400)
    sitting = board_of(request).sittings.begin(names)
    return RedirectResponse(links(request)(f"/blind/{sitting.key}"), 303)


def named_sitting(request: Request) -> Sitting:
    """The sitting that an address names. Raises HTTPException (404) where there is none."""
    found = board_of(request).sittings.by_key.get(request.path_params["key"])
    if found is None:
        raise HTTPException(404)
    found.look()
    return found


def blind_page(request: Request) -> Response:
    """What a sitting is at: waiting for the answers, a pair, or the end."""
    sitting = named_sitting(request)
    title, pair = _("Blind comparison"), sitting.pair
    if sitting.problem and not sitting.is_over:
        return message(request, title, sitting.problem, 500)
    if not sitting.is_ready:
        text = _("both models answer; this takes a moment")
        return page(request, "waiting.html", title, text=text, log=sitting.last_line(), refresh=2)
    if pair is None:
        return blind_end(request, sitting)
    answers = [(str(at), pair.answers[name]) for at, name in enumerate(pair.order, 1)]
    return page(
        request, "blind_pair.html", title, question=pair.question, answers=answers, number=len(sitting.picked),
        total=len(sitting.pairs), action=f"/blind/{sitting.key}/pick",
        rest=((NEITHER, _("no difference")), (STOP, _("stop here"))),
        text={"better": _("{n} is better", n="{}"), "of": _("{n} of {total}", n=len(sitting.picked) + 1,
                                                            total=len(sitting.pairs))},
    )  # fmt: skip


def blind_end(request: Request, sitting: Sitting) -> Response:
    """The names, and how often each was picked."""
    result = sitting.result
    equal = sum(len(next(iter(one.answers.values()))) for one in sitting.questions) - len(sitting.pairs)
    lines = []
    if equal:
        lines.append(ngettext("{n} pair of answers is equal and is not shown",
                              "{n} pairs of answers are equal and are not shown", equal))  # fmt: skip
    lines += [_("kept in {file}", file=sitting.kept_in)] if sitting.kept_in else []
    lines += [sitting.problem] if sitting.problem else []
    return page(
        request, "blind_end.html", _("Blind comparison"), counts=list(result.picks.items()),
        neither=result.no_difference, total=max(1, len(sitting.picked)), choices=result.choices, lines=lines,
        text={"neither": _("no difference"), "picked": _("picked"), "question": _("question")},
    )  # fmt: skip


async def blind_pick(request: Request) -> Response:
    """Note a pick and show the next pair."""
    sitting, given = named_sitting(request), await form(request)
    number = given.get("number", "")
    if number.isascii() and number.isdigit():
        board_of(request).sittings.pick(sitting, int(number), given.get("pick", ""))
    return RedirectResponse(links(request)(f"/blind/{sitting.key}"), 303)
