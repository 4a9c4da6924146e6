"""Questions to a model in Ollama, over its HTTP API with its official client.

GET  /api/tags     which models exist, with the digest of each
POST /api/chat     one conversation, answered as a whole
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fasttune.console import _, error
from fasttune.export import ollama_server
from fasttune.export.llama import Sampling
from fasttune.export.ollama_server import full_name, ollama_errors, wrong_answers

if TYPE_CHECKING:
    from httpx import Request
    from ollama import Client

Messages = Sequence[dict[str, str]]
Answer = Callable[[Messages, Sampling], str]


def digest(model: str, host: str | None = None) -> str | None:
    """The digest of a model's contents; None where the server gives none.

    Raises FasttuneError where the server can't be reached or has no such model.
    """
    with connected(model, host) as client:
        return find(client, model)


@contextlib.contextmanager
def connect(model: str, host: str | None = None) -> Iterator[Answer]:
    """A function that answers a conversation, whose last message is the user's.

    Raises FasttuneError where the server can't be reached, has no such model or refuses.
    """
    with connected(model, host) as client:
        find(client, model)

        def answer(messages: Messages, sampling: Sampling) -> str:
            options: dict[str, Any] = {
                "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed,
                "num_predict": sampling.max_new_tokens, "top_k": sampling.top_k,
                "repeat_penalty": sampling.repeat_penalty,
            }  # fmt: skip
            with wrong_answers():
                reply = client.chat(model, messages=list(messages), options=options, stream=False)
                return str(reply.message.content or "")

        yield answer


@contextlib.contextmanager
def connected(model: str, host: str | None) -> Iterator[Client]:
    """A client of the server, with its errors as FasttuneError."""
    requests: list[Request] = []
    client = ollama_server.connect(host, requests)
    with ollama_errors(model, requests):
        yield client


def find(client: Client, model: str) -> str | None:
    """The digest of a model, which the server must have. Raises FasttuneError with the names there are."""
    with wrong_answers():
        present = {found.model: found.digest for found in client.list().models}
    name = full_name(model)
    if name not in present:
        what = _("Ollama has no model {model}", model=model)
        known = ", ".join(sorted(map(str, present))) or _("none yet")
        raise error("no-ollama-model", what, where=f"ollama:{model}", fix=_("its models are: {names}", names=known))
    return present[name]
