"""The import into Ollama, over its HTTP API with its official client.

    GET  /api/tags             which models exist
    POST /api/copy             an existing model of that name is kept under the tag before-<run>
    HEAD /api/blobs/sha256:…   is the file there already? If not, POST it
    POST /api/create           files, template, system, parameters

Ollama since 0.34.1 neither takes adapters for a GGUF nor quantizes one (server/create.go), so it gets the merged,
quantized file.

The client has no public call for the HEAD request, and no public attribute with the server's address. The address is
that of its first request, which a hook (an argument of httpx.Client that the client passes on) keeps.
"""

from __future__ import annotations

import contextlib
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fasttune.console import FasttuneError, Finding, _, error
from fasttune.export.artifact import Artifact
from fasttune.export.modelfile import parameters, template
from fasttune.export.serving import DEFAULT, Serving

if TYPE_CHECKING:
    from httpx import Request
    from ollama import Client, ProgressResponse

Report = Callable[[str], None]

MOST_STATUSES = 100  # Ollama has about six
REASON_CHARACTERS = 500
TAG_CHARACTERS = string.ascii_letters + string.digits + "._-"


def import_into_ollama(
    artifact: Artifact,
    model: str,
    *,
    num_ctx: int,
    report: Report,
    serving: Serving = DEFAULT,
    host: str | None = None,
) -> str | None:
    """Make `model` in Ollama from a finished file; returns the name under which an existing model of this name is kept.

    `host` is the address of the server (None: OLLAMA_HOST, else this machine). Raises FasttuneError where the server
    can't be reached or refuses; an existing model of this name is unchanged then.
    """
    requests: list[Request] = []
    client = connect(host, requests)
    with ollama_errors(model, requests):
        kept = keep_existing(client, model, artifact.run_id, report)
        if not has_blob(requests[0], artifact.sha256):
            upload(client, artifact, report)
        create(client, artifact, model, parameters(num_ctx, serving), report)
    report(_("the model is in Ollama; run it with `ollama run {model}`", model=model))
    return kept


def connect(host: str | None, requests: list[Request], **settings: float) -> Client:
    """A client of the server at `host` (None: OLLAMA_HOST, else this machine); its requests are appended to `requests`.
    `settings` are those of `ollama_connection.options`.

    Raises FasttuneError for an address that is none.
    """
    from fasttune.export import ollama_connection

    options = ollama_connection.options(requests.append, **settings)
    try:
        import ollama  # makes a client of OLLAMA_HOST, whoever asks for which server

        return ollama.Client(host, headers={"Accept-Encoding": "identity"}, **options)
    except ValueError as failure:
        what = _("this is not the address of a server: {problem}", problem=failure)
        fix = _("set it as in OLLAMA_HOST=127.0.0.1:11434, or unset it")
        raise error(
            "ollama-failed", what, where=f"OLLAMA_HOST={os.environ.get('OLLAMA_HOST', '')}", fix=fix
        ) from failure


def warn_if_silent(model: str) -> list[Finding]:
    """The warning, before training, that no Ollama server answers; empty where one does, or where `model` is empty.

    Raises FasttuneError for an OLLAMA_HOST that is no address: the import would fail whatever runs.
    """
    if not model:
        return []
    requests: list[Request] = []
    client = connect(None, requests)
    try:
        with ollama_errors(model, requests), wrong_answers():
            client.list()
    except FasttuneError as problem:
        return [replace(finding, level="warning") for finding in problem.findings]
    return []


def server_version(host: str | None, seconds: float) -> str:
    """The version of the Ollama server at an address (None: OLLAMA_HOST, else this machine), asked within so many
    seconds. Raises FasttuneError where no Ollama answers."""
    import httpx

    from fasttune.export import ollama_connection

    requests: list[Request] = []
    client = connect(host, requests, quick_seconds=seconds)
    with ollama_errors("", requests):
        with wrong_answers():
            client.list()
        address_of_server = address(requests)
        with httpx.Client(**ollama_connection.options(lambda request: None, quick_seconds=seconds)) as plain:
            answer = plain.get(f"{address_of_server}/api/version").raise_for_status().json()
        with wrong_answers():
            return str(answer["version"])


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
    """The address of the server that the client talks to, from its first request, GET /api/tags."""
    return str(requests[0].url).removesuffix("/api/tags") if requests else ""


def keep_existing(client: Client, model: str, run_id: str, report: Report) -> str | None:
    """Copy a model of this name to the tag before-<run>, unless an earlier import of the same run did."""
    name, _colon, tag = model.partition(":")
    with wrong_answers():
        present = {found.model for found in client.list().models}
    if f"{name}:{tag or 'latest'}" not in present:
        return None
    run_name = run_id.split("/")[-1]
    kept = f"{name}:before-" + "".join(one if one in TAG_CHARACTERS else "-" for one in run_name)
    if kept not in present:
        with wrong_answers():
            client.copy(model, kept)
        report(_("the existing model {model} is kept as {kept}", model=model, kept=kept))
    return kept


def has_blob(first_request: Request, sha256: str) -> bool:
    """Whether the server has a file of this checksum; asked with the address and the headers of an earlier request."""
    import httpx

    from fasttune.export import ollama_connection

    server = address([first_request])
    headers = {name: value for name, value in first_request.headers.items() if name == "authorization"}
    with httpx.Client(headers=headers, **ollama_connection.options(lambda request: None)) as client:
        response = client.head(f"{server}/api/blobs/sha256:{sha256}")
    if response.status_code == httpx.codes.NOT_FOUND:
        return False
    if response.is_redirect:
        raise redirected(server)
    response.raise_for_status()
    return True


def upload(client: Client, artifact: Artifact, report: Report) -> None:
    """Send the file. Raises FasttuneError where it is no longer the one that was checked."""
    report(_("uploading {name} to Ollama ({size:.0f} MB)", name=artifact.path.name, size=artifact.bytes / 1e6))
    with wrong_answers():
        sent = client.create_blob(artifact.path)
    if sent != f"sha256:{artifact.sha256}":
        what = _("{file}: checksum mismatch", file=artifact.path.name)
        why = _("it is not the file that was exported and checked")
        raise error("export-changed", what, where=str(artifact.path), why=why, fix=_("export it again"))


def create(client: Client, artifact: Artifact, model: str, given: dict[str, Any], report: Report) -> None:
    """Make the model, reporting the server's progress. Raises FasttuneError where the server does not succeed."""
    files = {"model.gguf": f"sha256:{artifact.sha256}"}
    statuses: set[str] = set()
    last = _("it gave no answer")
    lines = client.create(
        model,
        files=files,
        template=template(artifact.system),
        system=artifact.system or None,
        parameters=given,
        stream=True,
    )
    for status in progress_statuses(lines):
        last = status
        if status not in statuses and (len(statuses) < MOST_STATUSES or status == "success"):
            statuses.add(status)
            report(f"Ollama: {status}")
    if "success" not in statuses:
        raise refused(model, last)


def progress_statuses(lines: Iterator[ProgressResponse]) -> Iterator[str]:
    """What the server says while it makes a model. Raises ValueError for lines that are none of Ollama's."""
    while True:
        with wrong_answers():
            progress = next(lines, None)
        if progress is None:
            return
        if progress.status:
            yield progress.status[:REASON_CHARACTERS]


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
