"""The import into Ollama, over its HTTP API with its official client.

    GET  /api/tags             which models exist
    POST /api/copy             an existing model of that name is kept under the tag before-<run>
    HEAD /api/blobs/sha256:…   is the file there already? If not, POST it
    POST /api/create           files, template, system, parameters

Ollama since 0.34.1 neither takes adapters for a GGUF nor quantizes one (server/create.go), so it gets the merged,
quantized file.

The client has no public call for the HEAD request.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fasttune.console import FasttuneError, Finding, _, error
from fasttune.export.artifact import Artifact
from fasttune.export.modelfile import parameters, template
from fasttune.export.ollama_server import (
    INSTALL,
    OLDEST_VERSION,
    REASON_CHARACTERS,
    address,
    ask_server,
    connect,
    full_name,
    is_too_old,
    ollama_errors,
    redirected,
    refused,
    wrong_answers,
)
from fasttune.export.serving import DEFAULT, Serving
from fasttune.training.progress import ByteLine

if TYPE_CHECKING:
    from httpx import Request
    from ollama import Client, ProgressResponse

Report = Callable[[str], None]

BEFORE_SECONDS = 5.0  # for a server on this machine or in its network, asked before a training of hours
MOST_STATUSES = 100  # Ollama has about six
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
            upload(host, requests, artifact, report)
        create(client, artifact, model, parameters(num_ctx, serving), report)
    report(_("the model is in Ollama; run it with `ollama run {model}`", model=model))
    return kept


def look_before_training(model: str) -> list[Finding]:
    """What is worth knowing before training of a server that is to get `model` after it, none of it an error: that it
    does not answer, that it is too old, that the name is taken. Empty where all is well, or `model` is empty.

    Raises FasttuneError for an OLLAMA_HOST that is no address: the import would fail whatever runs.
    """
    if not model:
        return []
    try:
        server = ask_server(None, connect_seconds=BEFORE_SECONDS)
    except FasttuneError as problem:
        if problem.findings[0].where.startswith("OLLAMA_HOST="):
            raise
        return [replace(finding, level="warning") for finding in problem.findings]
    findings = []
    if is_too_old(server.version):
        what = _("Ollama {version} answers; the import after training needs {oldest} or newer", version=server.version,
                 oldest=OLDEST_VERSION)  # fmt: skip
        why = _("older ones take no file over the HTTP API")
        fix = _("update it: `{command}`", command=INSTALL)
        findings.append(Finding("ollama-too-old", "warning", server.address, what, why, fix))
    if full_name(model) in server.models:
        what = _("Ollama has a model {model}; it is kept under a tag when the new one gets the name", model=model)
        findings.append(Finding("ollama-name-taken", "info", "export.ollama", what))
    return findings


def restore(model: str, tag: str, report: Report, host: str | None = None) -> str | None:
    """Give `model` the contents that are kept under the tag `tag` of its name; what it holds now is kept too, under a
    tag whose full name is returned (None: it is another tag's, or there is none).

    Raises FasttuneError where the server can't be reached, or has no such tag.
    """
    requests: list[Request] = []
    client = connect(host, requests)
    present = ask_server(host).models
    name, source = model.partition(":")[0], f"{model.partition(':')[0]}:{tag}"
    if source not in present:
        known = sorted(one.partition(":")[2] for one in present if one.startswith(f"{name}:"))
        fix = _("the tags of {name}: {tags}", name=name, tags=", ".join(known) or _("none yet"))
        what = _("Ollama has no model {model}", model=source)
        raise error("no-ollama-model", what, where="--restore", fix=fix)
    kept, now = None, full_name(model)
    with ollama_errors(model, requests), wrong_answers():
        if now in present and list(present.values()).count(present[now]) == 1:
            kept = next(free for free in numbered(f"{name}:before-restore") if free not in present)
            client.copy(model, kept)
            report(_("the existing model {model} is kept as {kept}", model=model, kept=kept))
        client.copy(source, model)
    report(_("{model} is {source} again; run it with `ollama run {model}`", model=model, source=source))
    return kept


def numbered(name: str) -> Iterator[str]:
    """The name, then name-2, name-3 …"""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def keep_existing(client: Client, model: str, run_id: str, report: Report) -> str | None:
    """Copy a model of this name to the tag before-<run>, unless an earlier import of the same run did."""
    name = model.partition(":")[0]
    with wrong_answers():
        present = {found.model for found in client.list().models}
    if full_name(model) not in present:
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


def upload(host: str | None, requests: list[Request], artifact: Artifact, report: Report) -> None:
    """Send the file, with its progress. Raises FasttuneError where it is no longer the one that was checked."""
    report(_("uploading {name} to Ollama ({size:.0f} MB)", name=artifact.path.name, size=artifact.bytes / 1e6))
    with ByteLine(artifact.path.name, artifact.bytes) as line, wrong_answers():
        sent = connect(host, requests, sent=line.advance).create_blob(artifact.path)
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
