"""Who gets an answer from the board: the person who has its address, and nobody else.

    Host             localhost:PORT or 127.0.0.1:PORT: a name that another site's DNS leads here gets nothing
    token            in the query of every address, new at each start, compared in constant time
    Origin           the board's own where there is one, and there must be one on all that changes something
    Sec-Fetch-Site   a request that a page of another site makes gets nothing, even with the token

The token stands in every link, and in no cookie: a cookie is sent to every server of localhost, whatever its port, thus
also to another user's on the same machine; and a request that a foreign page makes lacks the token by its nature.
What a link costs, a line in the browser's history, is worth nothing once the board has ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fasttune.console import _, language, speaking

LARGEST_BODY = 64 << 10  # bytes: a question, or the choices of a form
MOST_FIELDS = 1000  # every run may be chosen on the page of all runs
LANGUAGES = ("en", "zh")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # The token is in the address: no other site may learn it. "no-referrer" would make the browser send `Origin: null`.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """The application behind the checks above; every answer carries HEADERS. `?lang` is the language of the answer."""

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self.app, self.token = app, token
        self.hosts = (f"localhost:{port}", f"127.0.0.1:{port}")
        self.origins = tuple(f"http://{host}" for host in self.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        query = fields(scope["query_string"])
        chosen = query.get("lang", [""])[-1]
        with speaking(chosen if chosen in LANGUAGES else language()):
            refused = self.refusal(scope, query.get("token", []))
            await (refused or self.app)(scope, receive, with_headers(send))

    def refusal(self, scope: Scope, tokens: Sequence[str]) -> PlainTextResponse | None:
        """The answer to a request that gets nothing; None for one of the person who has the address."""
        headers = scope["headers"]
        if one(headers, b"host") not in self.hosts:
            return PlainTextResponse("", 421)
        if not self.is_own(scope["method"], headers):
            return PlainTextResponse("", 403)
        if len(tokens) != 1 or not secrets.compare_digest(tokens[0].encode(), self.token.encode()):
            return PlainTextResponse(_("open the address that `fasttune board` has printed") + "\n", 403)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("", 405)
        size = one(headers, b"content-length")
        if scope["method"] == "POST" and not (size.isdigit() and len(size) < 12 and int(size) <= LARGEST_BODY):
            return PlainTextResponse("", 413)
        return None

    def is_own(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether a request comes from a page of the board, or, where it only reads, from no page at all."""
        origin, site = one(headers, b"origin"), one(headers, b"sec-fetch-site")
        if method not in ("GET", "HEAD") or origin:
            return origin in self.origins and site in ("", "same-origin")
        return site in ("", "same-origin", "none")


def fields(text: bytes) -> dict[str, list[str]]:
    """The fields of a query or a form; none where there are more than any page of the board sends."""
    try:
        return parse_qs(text.decode("utf-8", errors="replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        return {}


def one(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of a header; empty where it is missing, "?" where it is there twice."""
    values = [value.decode("latin-1") for key, value in headers if key == name]
    return values[0] if len(values) == 1 else "?" * bool(values)


def with_headers(send: Send) -> Send:
    """A `send` that adds HEADERS to the answer; one that the application has set itself is kept."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message["headers"])
            names = {name for name, _value in own}
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in names]
            message = {**message, "headers": [*own, *extra]}
        await send(message)

    return send_with_headers
