"""A real board: uvicorn in a thread on a free port, asked by httpx over a real connection."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fasttune.web import server
from fasttune.web.board import Board


@dataclass(frozen=True)
class Served:
    """A board and a client that knows its token; `bare` is one that knows nothing."""

    board: Board
    port: int

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def bare(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, verify=False, timeout=120)

    def get(self, path: str, **query: Any) -> httpx.Response:
        """A page, as a browser asks for it that was given the address."""
        with self.bare as client:
            return client.get(path, params={**query, "token": self.board.token})

    def settled(self, path: str, **query: Any) -> httpx.Response:
        """A page once the figures on it are read: on a busy machine it is asked for again, as its browser would."""
        while 'http-equiv="refresh"' in (answer := self.get(path, **query)).text:
            time.sleep(0.05)
        return answer

    def post(self, path: str, *, origin: str | None = None, **fields: str) -> httpx.Response:
        """A form, sent from a page of the board."""
        with self.bare as client:
            headers = {"Origin": origin or self.origin}
            return client.post(path, params={"token": self.board.token}, data=fields, headers=headers)

    def events(
        self, path: str, seconds: float = 120, beginning: str = "", **query: str
    ) -> Iterator[tuple[str, Any, str]]:
        """(name, data, id) of the events of a stream from a place on, as they come, for at most so many seconds."""
        query |= {"from": beginning}
        deadline = time.monotonic() + seconds
        with self.bare as client, client.stream("GET", path, params={**query, "token": self.board.token}) as response:
            assert response.status_code == 200, response.status_code
            name, id = "", ""
            for line in response.iter_lines():
                assert time.monotonic() < deadline, "no such event came"
                key, _colon, value = line.partition(": ")
                if key == "id":
                    id = value
                elif key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value), id


@contextlib.contextmanager
def served(root: Path, poll_seconds: float = 0.05) -> Iterator[Served]:
    """A board of a runs folder, until the end of the block."""
    listening = server.listen(root, 0)
    port = listening.getsockname()[1]
    board = Board(root, port, poll_seconds=poll_seconds)
    running = server.server_of(board)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield Served(board, port)
    finally:
        running.should_exit = True
        thread.join(60)
        board.close()
        listening.close()
