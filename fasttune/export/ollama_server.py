"""The Ollama server: reached, asked for its version and its models, and each of its failures in one message.

The client has no public attribute with the server's address. The address is that of its first request, which a hook (an
argument of httpx.Client that the client passes on) keeps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fasttune.console import FasttuneError, _, error

if TYPE_CHECKING:
    from httpx import Request
    from ollama import Client

    from fasttune.export.ollama_connection import Sent

# The first whose /api/create takes `files`, the names and checksums of uploaded files, in place of a Modelfile's text.
OLDEST_VERSION = "0.5.5"
INSTALL = "curl -fsSL https://ollama.com/install.sh | sh"
REASON_CHARACTERS = 500


def connect(
    host: str | None, requests: list[Request], *, quick_seconds: float | None = None, sent: Sent | None = None
) -> Client:
    """A client of the server at `host` (None: OLLAMA_HOST, else this machine); its requests are appended to `requests`.
    `quick_seconds` and `sent` are those of `ollama_connection.options`.

    Raises FasttuneError for an address that is none.
    """
    from fasttune.export import ollama_connection

    options = ollama_connection.options(requests.append, quick_seconds=quick_seconds, sent=sent)
    try:
        import ollama  # makes a client of OLLAMA_HOST, whoever asks for which server

        return ollama.Client(host, headers={"Accept-Encoding": "identity"}, **options)
    except ValueError as failure:
        what = _("this is not the address of a server: {problem}", problem=failure)
        fix = _("set it as in OLLAMA_HOST=127.0.0.1:11434, or unset it")
        raise error(
            "ollama-failed", what, where=f"OLLAMA_HOST={os.environ.get('OLLAMA_HOST', '')}", fix=fix
        ) from failure


@dataclass(frozen=True)
class ServerState:
    """An Ollama server that answers: its address, its version, and {name: digest} of its models."""

    address: str
    version: str
    models: dict[str, str]


def ask_server(host: str | None, *, connect_seconds: float | None = None) -> ServerState:
    """The state of the server at an address (None: OLLAMA_HOST, else this machine), each question asked within so many
    seconds (None: as long as for any other). Raises FasttuneError where no Ollama answers."""
    import httpx

    from fasttune.export import ollama_connection

    requests: list[Request] = []
    client = connect(host, requests, quick_seconds=connect_seconds)
    with ollama_errors("", requests):
        with wrong_answers():
            models = {str(found.model): str(found.digest) for found in client.list().models}
        server = address(requests)
        with httpx.Client(**ollama_connection.options(lambda request: None, quick_seconds=connect_seconds)) as plain:
            answer = plain.get(f"{server}/api/version").raise_for_status().json()
        with wrong_answers():
            return ServerState(server, str(answer["version"]), models)


def server_version(host: str | None, seconds: float) -> str:
    """The version of the server at an address. Raises FasttuneError as `ask_server` does."""
    return ask_server(host, connect_seconds=seconds).version


def is_too_old(version: str) -> bool:
    """Whether a server of this version, such as 0.34.4 or 0.6.0-rc1, lacks the endpoint as the import uses it."""
    return version_numbers(version) < version_numbers(OLDEST_VERSION)


def version_numbers(version: str) -> tuple[int, ...]:
    """(0, 34, 4) for 0.34.4; what is no number counts as 0."""
    parts = [*version.split("-")[0].split("."), "0", "0"][:3]
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)


def full_name(model: str) -> str:
    """linzhi -> linzhi:latest"""
    return model if ":" in model else f"{model}:latest"


@contextlib.contextmanager
def ollama_errors(model: str, requests: list[Request]) -> Iterator[None]:
    """Raise FasttuneError for what the client and httpx raise in the block; `requests` are those of the client."""
    import httpx
    import ollama

    try:
        yield
    except (ConnectionError, httpx.ConnectError) as failure:
        raise unreachable(address(requests)) from failure
    except httpx.TimeoutException as failure:
        what = _("Ollama does not answer in time: {problem}", problem=str(failure) or type(failure).__name__)
        fix = _("start Ollama again and look at its log, then import again; the GGUF file is ready")
        raise error("ollama-failed", what, where=address(requests), fix=fix) from failure
    except httpx.HTTPError as failure:
        what = _("the connection to Ollama broke: {problem}", problem=failure)
        fix = _("look at the server's log, then import again")
        raise error("ollama-failed", what, where=model, fix=fix) from failure
    except ollama.ResponseError as failure:
        if 300 <= failure.status_code < 400:
            raise redirected(address(requests)) from failure
        raise refused(model, str(failure.error)) from failure
    except ValueError as failure:
        problem = (str(failure).splitlines() or [""])[0][:REASON_CHARACTERS]
        what = _("the server at this address is not Ollama: {problem}", problem=problem)
        raise error("ollama-failed", what, where=address(requests), fix=_("set OLLAMA_HOST")) from failure


@contextlib.contextmanager
def wrong_answers() -> Iterator[None]:
    """Raise ValueError for what the client raises where an answer is JSON of another shape: null, a list, a number."""
    try:
        yield
    except (TypeError, AttributeError) as failure:
        raise ValueError(_("its answer has another form than Ollama's")) from failure


def address(requests: list[Request]) -> str:
    """The address of the server that the client talks to, from its first request, such as GET …/api/tags."""
    return str(requests[0].url).rpartition("/api/")[0] if requests else ""


def redirected(server: str) -> FasttuneError:
    """The error for a server that sends the client elsewhere: the model file goes to the named server only."""
    what = _("the server redirects to another address, which is not followed")
    why = _("the model file is sent to the server that you name and to no other")
    return error("ollama-failed", what, where=server, why=why, fix=_("set OLLAMA_HOST to the address of Ollama itself"))


def unreachable(server: str) -> FasttuneError:
    """The error for a server that can't be reached."""
    what = _("no Ollama server answers")
    why = _("the import uses its HTTP API")
    fix = _(
        "start it (`ollama serve`, or the Ollama app) or set OLLAMA_HOST; the GGUF file and its Modelfile are ready"
    )
    return error("ollama-unreachable", what, where=server, why=why, fix=fix)


def refused(model: str, reason: str) -> FasttuneError:
    """The error for a server that does not make the model, with its reason."""
    what = _("Ollama refused the model: {reason}", reason=reason.strip()[:REASON_CHARACTERS])
    fix = _("Ollama 0.5.5 or newer is needed (`ollama --version`); names are letters, digits, - _ . and one :TAG")
    return error("ollama-failed", what, where=model, fix=fix)
