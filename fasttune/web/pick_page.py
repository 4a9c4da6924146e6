"""The kept epochs on the page of a run, and the button that picks one: the same as `fasttune pick`, recorded in
picked.json and undone by another pick."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fasttune.console import FasttuneError, _
from fasttune.runs import epochs
from fasttune.runs.epochs import KeptEpoch, epoch_word
from fasttune.runs.outcomes import Pick
from fasttune.runs.store import Run
from fasttune.web.blind_page import form
from fasttune.web.board import board_of
from fasttune.web.pages import links, message

OWN = "own"  # what the form calls the adapter that the training ended with


@dataclass(frozen=True)
class EpochRow:
    """A kept epoch as the page shows it; `words` say whether it is in use and the best."""

    epoch: str
    step: int
    loss: str
    words: tuple[str, ...]
    answer: str
    is_served: bool


@dataclass(frozen=True)
class EpochPicture:
    """The kept epochs of a run: `state` says which adapter it serves, `undo` is what the form sends to take the last
    pick back, "" where none was made, with its `undo_word`."""

    rows: tuple[EpochRow, ...]
    state: str
    can_pick: bool
    undo: str
    undo_word: str


def picture(run: Run) -> EpochPicture | None:
    """The kept epochs of a run; None where it has kept none, or a document of them is damaged, which its findings say
    or `fasttune pick` does."""
    try:
        kept, picks = epochs.kept_epochs(run), epochs.read_picks(run)
        served, best = epochs.served_epoch(run, kept), epochs.best_epoch(kept)
        own = epochs.own_epoch(run, kept)
    except FasttuneError:
        return None
    if not kept:
        return None
    last = picks[-1] if picks else None
    undo = "" if last is None else OWN if last.from_ is None else epoch_word(last.from_)
    return EpochPicture(
        rows=tuple(row(one, is_served=one == served, is_best=one == best, is_own=one == own) for one in kept),
        state=state_line(run, last), can_pick=run.status == "finished",
        undo=undo, undo_word=undo_words(undo) if undo else "",
    )  # fmt: skip


def row(one: KeptEpoch, *, is_served: bool, is_best: bool, is_own: bool) -> EpochRow:
    """A kept epoch for the page."""
    words = [_("in use")] * is_served + [_("best")] * is_best + [_("the last")] * is_own
    loss = "–" if one.eval_loss is None else f"{one.eval_loss:.3f}"
    answer = one.answers[0] if one.answers else ""
    return EpochRow(epoch_word(one.epoch), one.step, loss, tuple(words), answer, is_served)


def state_line(run: Run, last: Pick | None) -> str:
    """Which adapter a run serves."""
    if run.status != "finished":
        return _("one of them can be picked once the training is finished")
    if last is None or last.to is None:
        return _("the run uses its own adapter, which the training ended with")
    when = datetime.fromisoformat(last.created).astimezone().strftime("%Y-%m-%d %H:%M")
    return _("the run uses the adapter of epoch {epoch}, picked {date}", epoch=epoch_word(last.to), date=when)


def undo_words(undo: str) -> str:
    """The button that takes the last pick back."""
    return _("Undo: the run's own adapter again") if undo == OWN else _("Undo: epoch {epoch} again", epoch=undo)


def texts() -> dict[str, str]:
    """What this part of the page says besides names and figures."""
    return {
        "title": _("Kept epochs"), "epoch": _("epoch"), "step": _("step"), "loss": _("held-out loss"),
        "answer": _("its first answer"), "use": _("Use epoch {epoch}", epoch="{}"),
        "why": _("Export, chat, facts and comparisons use what is picked; files that were exported before stay as they "
                 "are."),
    }  # fmt: skip


async def pick(request: Request) -> Response:
    """Make the adapter of a kept epoch, or its own, the one that a run serves; its page then shows which it is.

    Raises FasttuneError where the run is not finished, has kept no such epoch, or is used by another process.
    """
    board, given = board_of(request), await form(request)
    run = board.run("{series}/{number}".format(**request.path_params))
    if run.status != "finished":
        return message(request, run.id, _("this run has no adapter yet"), 409)
    await run_in_threadpool(carry_out, run, given.get("epoch", ""))
    return RedirectResponse(links(request)(f"/runs/{run.id}") + "#epochs", 303)


def carry_out(run: Run, epoch: str) -> None:
    """The pick that a form asks for. Raises FasttuneError as `epochs.find_epoch` and `epochs.pick` do."""
    epochs.pick(run, None if epoch == OWN else epochs.find_epoch(run, epoch, run.id))
