"""What a running board knows: where the runs lie, its own address, and what it has started."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from fasttune.runs import store
from fasttune.runs.store import Run
from fasttune.web.blind import Sittings
from fasttune.web.children import Children
from fasttune.web.conversation import Conversation
from fasttune.web.figures import FigureCache


@dataclass
class Board:
    """The runs folder, the port and token of the address, and the state of the pages; one for each process."""

    root: Path
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    poll_seconds: float = 1.0  # how often files and locks are looked at for a live page
    figures: FigureCache = field(init=False)
    children: Children = field(init=False)
    sittings: Sittings = field(init=False)
    conversation: Conversation = field(init=False)

    def __post_init__(self) -> None:
        self.figures = FigureCache(self.root)
        self.children = Children(self.root)
        self.sittings = Sittings(self.root)
        self.conversation = Conversation()

    def close(self) -> None:
        """End what would be of no use without the board: not the trainings that it has started."""
        self.conversation.free()
        self.sittings.close()
        self.figures.close()

    def runs(self) -> list[Run]:
        """Every run that there is: no page opens anything else."""
        return [run for series in store.list_series(self.root) for run in store.list_runs(self.root, series)]

    def run(self, id: str) -> Run:
        """The run of an id that a page names. Raises HTTPException (404) where the list has no such run."""
        for run in store.list_runs(self.root, id.partition("/")[0]):
            if run.id == id:
                return run
        raise HTTPException(404)


def board_of(request: Request) -> Board:
    """The board that a request is for."""
    board: Board = request.app.state.board
    return board
