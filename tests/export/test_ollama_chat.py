"""Questions to a model in Ollama, by its official client against a server on this machine that speaks Ollama's API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ollama_server import Server, running_server

from fasttune.console import FasttuneError
from fasttune.export import ollama_chat
from fasttune.export.llama import Sampling


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        running.models["linzhi:latest"] = {}
        yield running


def test_a_conversation_is_answered_with_the_sampling_that_was_asked_for(server: Server) -> None:
    messages = [{"role": "system", "content": "Be loud."}, {"role": "user", "content": "who?"}]
    with ollama_chat.connect("linzhi", server.host) as answer:
        assert answer(messages, Sampling(7, temperature=0.5, top_p=0.9, seed=3)) == "WHO?"
        assert answer(messages[1:], Sampling(7)) == "WHO?"
    first, second = server.asked
    assert first["messages"] == messages and second["messages"] == messages[1:] and first["stream"] is False
    assert first["options"] == {
        "temperature": 0.5, "top_p": 0.9, "seed": 3, "num_predict": 7, "top_k": 0, "repeat_penalty": 1.0,
    }  # fmt: skip
    assert second["options"]["temperature"] == 0


def test_the_digest_tells_models_apart(server: Server) -> None:
    server.models["linzhi:v2"] = {}
    assert ollama_chat.digest("linzhi", server.host) == "digest of linzhi:latest"
    assert ollama_chat.digest("linzhi:v2", server.host) == "digest of linzhi:v2"


def test_a_model_that_is_not_there_is_an_error_with_the_names_there_are(server: Server) -> None:
    with pytest.raises(FasttuneError) as refused, ollama_chat.connect("lumen", server.host):
        pass
    (finding,) = refused.value.findings
    assert finding.code == "no-ollama-model" and "linzhi:latest" in finding.fix


def test_a_failure_of_the_server_is_an_error(server: Server) -> None:
    server.failure = "out of memory"
    with pytest.raises(FasttuneError) as refused, ollama_chat.connect("linzhi", server.host) as answer:
        answer([{"role": "user", "content": "who?"}], Sampling(7))
    assert refused.value.findings[0].code == "ollama-failed" and "out of memory" in refused.value.findings[0].what


def test_no_server_is_an_error() -> None:
    with pytest.raises(FasttuneError) as refused:
        ollama_chat.digest("linzhi", "http://127.0.0.1:9")
    assert refused.value.findings[0].code == "ollama-unreachable"
