"""`fasttune board`: serves the board on this machine until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from fasttune.command import command_line, runs_option
from fasttune.console import _, error, say
from fasttune.machine import is_wsl
from fasttune.web import address
from fasttune.web.app import application
from fasttune.web.board import Board

PORT = 8321
GRACE_SECONDS = 1  # for open connections, of which event streams never end by themselves


def serve(root: Path, port: int = PORT) -> None:
    """Serve the board of a runs folder on 127.0.0.1 until Ctrl-C; its address goes to stdout.

    Raises FasttuneError where the port is in use.
    """
    listening = listen(root, port)
    port = listening.getsockname()[1]
    board = Board(root, port)
    server = server_of(board)
    try:
        with listening, ended_by_signals(server), address.announced(root, port, board.token):
            print(address.url(port, board.token), flush=True)
            say(_("open this address in a browser; Ctrl-C ends the board and leaves trainings alone"))
            if is_wsl():
                say(_("it opens in Windows' browser as well"))
            server.run(sockets=[listening])
    finally:
        board.close()
    say(_("the board has ended"))


@contextlib.contextmanager
def ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """In the block, Ctrl-C and SIGTERM end the server, also one that has not begun to run.

    Uvicorn listens to them itself only once its event loop runs: an interrupt just before leaves a coroutine that was
    never awaited, which Python warns about; and it raises them again when it has ended, which these handlers absorb.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, server.handle_exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def listen(root: Path, port: int) -> socket.socket:
    """A socket of this machine alone; 0 lets the system choose the port. Raises FasttuneError where it is in use."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("127.0.0.1", port))
        made.listen(64)
    except OSError as problem:
        made.close()
        running = address.running(root)
        another = command_line(["board", "--port", "0", *runs_option(root)])
        fix = _("a board of these runs is running: {url}", url=running) if running else ""
        raise error(
            "port-in-use", _("port {port} can't be used: {reason}", port=port, reason=problem.strerror or str(problem)),
            where="--port", fix=fix or _("take another one: `{command}`", command=another),
        ) from None  # fmt: skip
    return made


def server_of(board: Board) -> uvicorn.Server:
    """Uvicorn with nothing but HTTP: no log of addresses, which hold the token, and no name of itself."""
    settings = uvicorn.Config(
        application(board), log_level="error", access_log=False, server_header=False, lifespan="off", ws="none",
        http="h11", loop="asyncio", proxy_headers=False, timeout_graceful_shutdown=GRACE_SECONDS, timeout_keep_alive=30,
    )  # fmt: skip
    return uvicorn.Server(settings)
