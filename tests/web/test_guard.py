"""Who gets an answer from the board: real requests to a real server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_server import Served, served
from run_folders import write_run

from fasttune.web.guard import LARGEST_BODY

EVERY = ("/", "/events", "/overlay?run=persona/001-fresh", "/runs/persona/001-fresh", "/train", "/blind", "/chat",
         "/static/board.js", "/runs/persona/001-fresh/events", "/nothing")  # fmt: skip
CHANGING = (
    "/runs/persona/001-fresh/stop",
    "/runs/persona/001-fresh/pick",
    "/train/plan",
    "/train/start",
    "/blind",
    "/chat/say",
    "/chat/stop",
    "/chat/new",
)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("guard") / "runs"
    write_run(root)
    with served(root) as one:
        yield one


def with_token(board: Served, path: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}token={board.board.token}"


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("token", ["", "?token=", "?token=" + "x" * 32, "?token=a&token=b"])
def test_without_the_token_there_is_nothing(board: Served, path: str, token: str) -> None:
    with board.bare as client:
        answer = client.get(path.partition("?")[0] + token)
    assert answer.status_code == 403
    assert answer.text == "open the address that `fasttune board` has printed\n"


def test_an_old_token_opens_nothing(tmp_path: Path, board: Served) -> None:
    with served(tmp_path) as later, later.bare as client:
        assert client.get("/", params={"token": later.board.token}).status_code == 200
        assert client.get("/", params={"token": board.board.token}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost", "localhost:1", "127.0.0.1.evil.example:{port}",
                                  "[::1]:{port}", "localhost:{port}.", ""])  # fmt: skip
def test_another_host_name_gets_nothing(board: Served, host: str) -> None:
    """DNS rebinding: a name of another site that was made to lead to 127.0.0.1."""
    with board.bare as client:
        answer = client.get(with_token(board, "/"), headers={"Host": host.format(port=board.port)})
    assert answer.status_code in (400, 421) and "persona" not in answer.text


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}"])
def test_both_names_of_this_machine_work(board: Served, host: str) -> None:
    with board.bare as client:
        answer = client.get(with_token(board, "/"), headers={"Host": host.format(port=board.port)})
    assert answer.status_code == 200 and "persona/001-fresh" in answer.text


def test_two_hosts_are_none(board: Served) -> None:
    request = f"GET {with_token(board, '/')} HTTP/1.1\r\nHost: localhost:{board.port}\r\nHost: evil.example\r\n\r\n"
    with socket.create_connection(("127.0.0.1", board.port), 10) as connection:
        connection.sendall(request.encode())
        assert b" 400 " in connection.recv(100)


@pytest.mark.parametrize("path", CHANGING)
@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://localhost", "http://localhost:1", "https://localhost:{port}",
               "http://localhost:{port}.evil.example"],
)  # fmt: skip
def test_what_changes_something_comes_from_the_boards_own_pages(board: Served, path: str, origin: str | None) -> None:
    headers = {"Origin": origin.format(port=board.port)} if origin else {}
    with board.bare as client:
        answer = client.post(with_token(board, path), headers=headers)
    assert (answer.status_code, answer.text) == (403, "")


@pytest.mark.parametrize("path", EVERY)
def test_a_page_of_another_site_reads_nothing(board: Served, path: str) -> None:
    with board.bare as client:
        for headers in (
            {"Origin": "http://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            answer = client.get(with_token(board, path), headers=headers)
            assert (answer.status_code, answer.text) == (403, "")


@pytest.mark.parametrize("path", EVERY)
def test_every_answer_forbids_what_the_board_does_not_need(board: Served, path: str) -> None:
    with board.bare as client, client.stream("GET", with_token(board, path)) as answer:
        headers = answer.headers
    assert (
        "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
    )
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control")] and "server" not in headers
    assert "set-cookie" not in headers


def test_a_query_beyond_all_bounds_gets_nothing(board: Served) -> None:
    with board.bare as client:
        assert client.get(with_token(board, "/") + "&x=1" * 2000).status_code == 403


def test_other_methods_do_nothing(board: Served) -> None:
    with board.bare as client:
        for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
            headers = {"Origin": board.origin}
            assert client.request(method, with_token(board, "/chat/new"), headers=headers).status_code in (403, 405)


def test_a_form_has_a_limit(board: Served) -> None:
    assert board.post("/chat/say", question="x" * LARGEST_BODY).status_code == 413
    request = (f"POST {with_token(board, '/chat/say')} HTTP/1.1\r\nHost: localhost:{board.port}\r\nOrigin: {board.origin}\r\n"
               "Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
    with socket.create_connection(("127.0.0.1", board.port), 10) as connection:
        connection.sendall(request.encode())
        assert b" 413 " in connection.recv(100)


@pytest.mark.parametrize("path", [
    "/runs/../../etc/passwd", "/runs/%2e%2e/%2e%2e", "/runs/persona/..%2f..%2f..", "/runs/..%2f..%2f/passwd", "/runs/persona/..",
    "/runs/persona/001-fresh%00", "/runs/persona/002-fresh", "/runs/persona/001", "/static/..%2fapp.py", "/static/%2e%2e/app.py",
    "/static/base.html", "/overlay?run=../../etc", "/overlay?run=/etc/passwd", "/blind/1", "/train/started/../1",
])  # fmt: skip
def test_no_path_leaves_the_list(board: Served, path: str) -> None:
    request = f"GET {with_token(board, path)} HTTP/1.1\r\nHost: localhost:{board.port}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", board.port), 10) as connection:
        connection.sendall(request.encode())
        answer = connection.makefile("rb").read()
    assert b" 404 " in answer[:30], answer[:200]
    assert b"root:" not in answer and b"Starlette" not in answer


def test_it_listens_on_this_machine_alone(board: Served) -> None:
    table = Path("/proc/net/tcp").read_text(encoding="ascii")
    listening = [line.split()[1] for line in table.splitlines() if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{board.port:04X}")] == [f"0100007F:{board.port:04X}"]
