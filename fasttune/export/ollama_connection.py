"""The connection to an Ollama server that may be anybody's: no redirects, limits on the time and the size of calls.

Redirects would take the model file, and the key in OLLAMA_API_KEY, to whatever host the server names. httpx itself
limits single reads only, so a server that sends a byte a second would hold a run for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

CONNECT_SECONDS = 10.0
QUICK_SECONDS = 30.0  # a question that Ollama answers from memory: the models, a blob, a copy
SILENT_SECONDS = 300.0  # without a byte while it stores the file or makes the model
CREATE_SECONDS = 1800.0  # all of it
CHAT_SECONDS = 600.0  # an answer on a machine without a GPU, the loading of the model included
ANSWER_BYTES = 16 * 2**20
Sent = Callable[[int], None]  # gets how many bytes more of a file are sent


class LimitedAnswer(httpx.SyncByteStream):
    """An answer's body that ends with httpx.ReadTimeout at a deadline, httpx.DecodingError beyond ANSWER_BYTES."""

    def __init__(self, stream: Any, deadline: float) -> None:
        self.stream, self.deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self.stream:
            size += len(chunk)
            if size > ANSWER_BYTES:
                raise httpx.DecodingError(f"more than {ANSWER_BYTES // 2**20} MiB")
            if time.monotonic() > self.deadline:
                raise httpx.ReadTimeout("timed out")
            yield chunk

    def close(self) -> None:
        self.stream.close()


class CountedUpload(httpx.SyncByteStream):
    """A request's body; `sent` gets the size of each part when the next one is asked for: that part is on its way."""

    def __init__(self, stream: Any, sent: Sent) -> None:
        self.stream, self.sent = stream, sent

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.stream:
            yield chunk
            self.sent(len(chunk))


class LimitedTransport(httpx.HTTPTransport):
    """httpx's own transport with limits for each kind of call; `quick_seconds` for one answered from memory. `sent`
    gets the sizes of the parts of an uploaded file."""

    def __init__(self, quick_seconds: float, sent: Sent | None) -> None:
        super().__init__(trust_env=False)
        self.quick_seconds, self.sent = quick_seconds, sent

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        seconds, silent = self.quick_seconds, self.quick_seconds
        if request.method == "POST" and "/api/blobs/" in request.url.path:
            seconds = silent = SILENT_SECONDS  # for the answer; the upload itself may last as long as it moves
            request.stream = CountedUpload(request.stream, self.sent) if self.sent else request.stream
        elif request.method == "POST" and request.url.path.endswith("/api/create"):
            seconds, silent = CREATE_SECONDS, SILENT_SECONDS
        elif request.method == "POST" and request.url.path.endswith("/api/chat"):
            seconds = silent = CHAT_SECONDS
        connect = min(CONNECT_SECONDS, self.quick_seconds)
        timeout = httpx.Timeout(silent, connect=connect, write=QUICK_SECONDS)
        request.extensions = {**request.extensions, "timeout": timeout.as_dict()}
        answer = super().handle_request(request)
        answer.headers.pop("content-encoding", None)  # none was asked for; a packed body could be of any size
        answer.stream = LimitedAnswer(answer.stream, time.monotonic() + seconds)
        return answer


def options(
    seen: Callable[[httpx.Request], None], *, quick_seconds: float | None = None, sent: Sent | None = None
) -> dict[str, Any]:
    """The arguments of an httpx client for Ollama; `seen` is called with each request, `sent` as in LimitedTransport.

    A proxy that is set for the internet must not get what is meant for this machine.
    """
    return {
        "transport": LimitedTransport(quick_seconds or QUICK_SECONDS, sent),
        "trust_env": False,
        "follow_redirects": False,
        "event_hooks": {"request": [seen]},
    }
