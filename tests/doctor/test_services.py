"""Hub and Ollama: servers of this process that answer, refuse, or are not there."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fasttune.console import error
from fasttune.doctor import services
from fasttune.doctor.situation import Situation
from fasttune.export.ollama_server import server_version
from fasttune.training import hub

NATIVE = Situation(None, "", "", False, Path("runs"))
NOWHERE = "http://127.0.0.1:9"  # the port of discard: nobody listens


@contextlib.contextmanager
def serving(documents: dict[str, Any]) -> Iterator[str]:
    """The address of a server that answers these paths, and 404 to all others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            content = json.dumps(documents.get(path)).encode()
            self.send_response(200 if path in documents else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_HOST", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_answers_and_one_that_does_not() -> None:
    with serving({"/config.json": {}}) as address:
        assert isinstance(services.seconds_to(f"{address}/config.json"), float)
        assert services.seconds_to(f"{address}/other.json") == "HTTP 404"
    assert "refused" in str(services.seconds_to(NOWHERE)).lower()
    assert isinstance(services.seconds_to("no address"), str)


def test_both_hubs_are_asked_and_the_one_that_answers_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"/config.json": {}}) as address:
        monkeypatch.setattr(
            hub, "config_addresses", lambda _name: {"hf": NOWHERE, "modelscope": f"{address}/config.json"}
        )
        found = services.hub(NATIVE)
    assert found.state == "warning" and "model.mirror=modelscope" in found.fix
    both = services.judge_hubs({"hf": 0.4, "modelscope": "HTTP 500"}, is_mirror=False)
    assert both.state == "ok" and "0.4 s" in both.measured
    neither = services.judge_hubs({"hf": "timed out", "modelscope": "timed out"}, is_mirror=True)
    assert neither.state == "warning" and "HF_ENDPOINT" in neither.measured and "HF_ENDPOINT" in neither.fix


def test_the_addresses_are_those_of_a_model() -> None:
    addresses = hub.config_addresses("Qwen/Qwen2.5-0.5B-Instruct")
    assert addresses.keys() == {"hf", "modelscope"}
    assert all("Qwen/Qwen2.5-0.5B-Instruct" in one and "config.json" in one for one in addresses.values())


def test_offline_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert services.hub(NATIVE).state == "not-applicable"


def test_the_version_of_a_server_that_answers() -> None:
    with serving({"/api/tags": {"models": []}, "/api/version": {"version": "0.34.2"}}) as address:
        assert server_version(address, 2.0) == "0.34.2"
        found = services.find_ollama(lambda _host, seconds: server_version(address, seconds), "")
    assert (found.state, found.measured) == ("ok", "version 0.34.2 answers")


@pytest.mark.parametrize(
    ("version", "state"), [("0.5.4", "warning"), ("0.5.5", "ok"), ("0.12.0-rc1", "ok"), ("x", "warning")]
)
def test_its_version_is_judged(version: str, state: str) -> None:
    assert services.judge_ollama(version).state == state


def only(address: str, version: str = "0.30.0") -> Callable[[str | None, float], str]:
    """A `server_version` for a world with one server."""

    def ask(host: str | None, _seconds: float) -> str:
        if host != address:
            raise error("ollama-unreachable", "no Ollama server answers")
        return version

    return ask


def test_the_one_in_windows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = only("http://172.20.0.1:11434")
    found = services.find_ollama(ask, "172.20.0.1")
    assert found.state == "warning" and "0.30.0 answers in Windows" in found.measured and "OLLAMA_HOST" in found.fix
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.9")
    named = services.find_ollama(ask, "172.20.0.1")
    assert named.state == "warning" and "OLLAMA_HOST" in named.measured and "10.0.0.9" not in named.measured


def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert services.find_ollama(only("nobody"), "").state == "not-applicable"
    (tmp_path / "ollama").write_text("#!/bin/sh\n")
    (tmp_path / "ollama").chmod(0o755)
    found = services.find_ollama(only("nobody"), "")
    assert found.state == "warning" and found.fix == "`ollama serve`"
