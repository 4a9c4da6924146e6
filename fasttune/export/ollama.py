"""Into Ollama: a Modelfile beside the file, and the import over Ollama's HTTP API with its official client.

    HEAD /api/blobs/sha256:…   there already? else POST the file
    POST /api/copy             a model of that name is kept under the tag before-<run> first
    POST /api/create           files, template, system, parameters

Ollama since 0.34.1 takes neither adapters nor its own quantization for GGUF (server/create.go), so what it gets is the
merged, quantized file. TEMPLATE renders exactly what the training template does (chatml.py checks that it is ChatML);
the template inside the file says the same, because Ollama prefers that one where it can do more.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fasttune.console import FasttuneError, _, error

if TYPE_CHECKING:
    from ollama import Client

    from fasttune.export import Artifact

# The newline at the end is part of the prompt: the answer starts on the line after "assistant".
TEMPLATE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
STOPS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPERATURE = 0.7
TAG_CHARACTERS = string.ascii_letters + string.digits + "._-"


def modelfile(file_name: str, system: str | None, num_ctx: int) -> str | None:
    """A Modelfile for `ollama create NAME -f Modelfile`; None for a system prompt that a Modelfile can't hold.

    Ollama's parser (parser/parser.go) ends a quoted text at three quotes and drops every character that Go calls
    unprintable, an ideographic space or an emoji's joiner among them. Over the HTTP API any text arrives as it is.
    """
    if system is not None and ('"""' in system or not all(sign.isprintable() or sign in "\n\t" for sign in system)):
        return None
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{TEMPLATE}"""']
    if system is not None:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in STOPS]
    lines += [f"PARAMETER temperature {TEMPERATURE}", f"PARAMETER num_ctx {num_ctx}"]
    return "\n".join(lines) + "\n"


def import_into_ollama(
    artifact: Artifact, model: str, *, num_ctx: int, say: Callable[[str], None], host: str | None = None
) -> str | None:
    """Make `model` in Ollama from a finished file; returns the name that an earlier model of this name is kept under.

    `host` is that of the server (None: OLLAMA_HOST, else this machine). Raises FasttuneError where the server can't be
    reached or refuses; the model that was there before is still there then.
    """
    import httpx
    import ollama

    # A proxy set for the internet must not get what is meant for this machine.
    client = ollama.Client(host, trust_env=False)
    try:
        kept = keep_old(client, model, artifact.run_id, say)
        upload(client, artifact, say)
        create(client, artifact, model, num_ctx, say)
    except ConnectionError as problem:
        raise unreachable(client) from problem
    except httpx.HTTPError as problem:
        what = _("the connection to Ollama broke: {problem}", problem=problem)
        raise error(
            "ollama-failed", what, where=model, fix=_("look at the server's log, then import again")
        ) from problem
    except ollama.ResponseError as problem:
        raise refused(model, problem.error) from problem
    except ValueError as problem:
        what = _("what answers there is not Ollama: {problem}", problem=str(problem).splitlines()[0])
        raise error("ollama-failed", what, where=str(client._client.base_url), fix=_("set OLLAMA_HOST")) from problem
    say(_("Ollama has it: ollama run {model}", model=model))
    return kept


def keep_old(client: Client, model: str, run_id: str, say: Callable[[str], None]) -> str | None:
    """Copy a model of this name to the tag before-<run>, unless an earlier import of the same run has done so."""
    name, _colon, tag = model.partition(":")
    present = {found.model for found in client.list().models}
    if f"{name}:{tag or 'latest'}" not in present:
        return None
    part = run_id.split("/")[-1]
    kept = f"{name}:before-" + "".join(sign if sign in TAG_CHARACTERS else "-" for sign in part)
    if kept not in present:
        client.copy(model, kept)
        say(_("the model that was called {model} is kept as {kept}", model=model, kept=kept))
    return kept


def upload(client: Client, artifact: Artifact, say: Callable[[str], None]) -> None:
    """Give the server the file, unless it has it."""
    import ollama

    try:
        client._request_raw("HEAD", f"/api/blobs/sha256:{artifact.sha256}")
    except ollama.ResponseError as problem:
        if problem.status_code != 404:
            raise
        say(_("uploading {name} to Ollama ({size:.0f} MB)", name=artifact.path.name, size=artifact.bytes / 1e6))
        if client.create_blob(artifact.path) != f"sha256:{artifact.sha256}":
            what = _("is not the file that was exported and checked")
            raise error("export-changed", what, where=str(artifact.path), fix=_("export it again")) from None


def create(client: Client, artifact: Artifact, model: str, num_ctx: int, say: Callable[[str], None]) -> None:
    """Make the model, passing on what the server reports."""
    parameters: dict[str, Any] = {"stop": list(STOPS), "temperature": TEMPERATURE, "num_ctx": num_ctx}
    files = {"model.gguf": f"sha256:{artifact.sha256}"}
    reported: list[str] = []
    for progress in client.create(
        model, files=files, template=TEMPLATE, system=artifact.system, parameters=parameters, stream=True
    ):
        if progress.status and progress.status not in reported:
            reported.append(progress.status)
            say(f"Ollama: {progress.status}")
    if "success" not in reported:
        raise refused(model, reported[-1] if reported else _("it gave no answer"))


def unreachable(client: Client) -> FasttuneError:
    """The server is not there."""
    what = _("no Ollama server answers")
    why = _("the import goes over its HTTP API")
    fix = _(
        "start it (`ollama serve`, or the Ollama app) or set OLLAMA_HOST; the GGUF file and its Modelfile are ready"
    )
    return error("ollama-unreachable", what, where=str(client._client.base_url), why=why, fix=fix)


def refused(model: str, reason: str) -> FasttuneError:
    """The server said no."""
    what = _("Ollama refused the model: {reason}", reason=reason.strip())
    fix = _("Ollama 0.5.5 or newer is needed (`ollama --version`); names are letters, digits, - _ . and one :TAG")
    return error("ollama-failed", what, where=model, fix=fix)
