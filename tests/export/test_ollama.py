"""The import into Ollama, by its official client against a server on this machine that speaks Ollama's API."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from exports import silent
from ollama_server import Handler, Server, running_server

from fasttune.console import FasttuneError
from fasttune.export import Artifact, import_into_ollama, ollama, ollama_connection
from fasttune.export.modelfile import TEMPLATE, modelfile
from fasttune.export.ollama import look_before_training
from fasttune.training.progress import ByteLine

SYSTEM = '你是林栀。\n她说 """轻声细语"""\u3000👩‍👧'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy for the internet is not asked
    with running_server() as running:
        yield running


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tmp_path / "林栀-Q4_K_M.gguf"
    path.write_bytes(b"GGUF" + bytes(200_000))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Artifact(path, "q4_k_m", digest, path.stat().st_size, "linzhi/003-retune", SYSTEM, {})


def test_first_import(server: Server, artifact: Artifact) -> None:
    lines: list[str] = []
    assert import_into_ollama(artifact, "linzhi", num_ctx=2048, report=lines.append, host=server.host) is None
    assert server.calls == ["GET /api/tags", "HEAD blob", "POST blobs", "POST create"]
    assert server.blobs[artifact.sha256] == artifact.path.read_bytes()
    assert server.models == {
        "linzhi:latest": {
            "model": "linzhi",
            "stream": True,
            "files": {"model.gguf": f"sha256:{artifact.sha256}"},
            "template": TEMPLATE,
            "system": SYSTEM,
            "parameters": {
                "stop": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
                "temperature": 0.7,
                "num_ctx": 2048,
            },
        }
    }
    assert lines[0] == "uploading 林栀-Q4_K_M.gguf to Ollama (0 MB)"
    assert lines[-2:] == ["Ollama: success", "the model is in Ollama; run it with `ollama run linzhi`"]


def test_the_upload_shows_its_bytes(server: Server, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the official client: what has gone out by and by, and nothing of the other requests."""
    steps: list[tuple[str, int, int]] = []

    class Kept(ByteLine):
        def advance(self, count: int) -> None:
            super().advance(count)
            steps.append((self.text, self.done, self.total))

    monkeypatch.setattr(ollama, "ByteLine", Kept)
    import_into_ollama(artifact, "linzhi", num_ctx=64, report=silent, host=server.host)
    assert len(steps) > 1 and steps[-1] == (artifact.path.name, artifact.bytes, artifact.bytes)
    assert [done for _name, done, _total in steps] == sorted(done for _name, done, _total in steps)


def test_second_import_keeps_the_old_model_once_and_uploads_nothing(server: Server, artifact: Artifact) -> None:
    server.models["linzhi:latest"] = {"old": True}
    server.blobs[artifact.sha256] = b""
    lines: list[str] = []
    for _number in range(2):
        kept = import_into_ollama(artifact, "linzhi", num_ctx=2048, report=lines.append, host=server.host)
        assert kept == "linzhi:before-003-retune"
    assert server.models["linzhi:before-003-retune"] == {"old": True}
    assert server.models["linzhi:latest"]["system"] == SYSTEM
    assert server.calls.count("POST copy") == 1 and "POST blobs" not in server.calls
    assert lines[0] == "the existing model linzhi is kept as linzhi:before-003-retune"


def test_a_tag_is_respected(server: Server, artifact: Artifact) -> None:
    server.models |= {"linzhi:latest": {"other": True}, "linzhi:v2": {"old": True}}
    kept = import_into_ollama(artifact, "linzhi:v2", num_ctx=64, report=silent, host=server.host)
    assert kept == "linzhi:before-003-retune" and server.models[kept] == {"old": True}
    assert server.models["linzhi:latest"] == {"other": True}


def test_server_from_the_environment(server: Server, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.host)
    import_into_ollama(artifact, "linzhi", num_ctx=64, report=silent)
    assert "linzhi:latest" in server.models


def test_api_key_goes_with_every_request(server: Server, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "abc")
    import_into_ollama(artifact, "linzhi", num_ctx=64, report=silent, host=server.host)
    assert server.keys == ["Bearer abc"]


def refusal(server: Server, artifact: Artifact) -> FasttuneError:
    with pytest.raises(FasttuneError) as caught:
        import_into_ollama(artifact, "linzhi", num_ctx=64, report=silent, host=server.host)
    return caught.value


def test_error_in_the_stream(server: Server, artifact: Artifact) -> None:
    server.models["linzhi:latest"] = {"old": True}
    server.statuses, server.failure = ["parsing GGUF"], "invalid file magic"
    (finding,) = refusal(server, artifact).findings
    assert finding.code == "ollama-failed" and finding.what == "Ollama refused the model: invalid file magic"
    assert server.models["linzhi:latest"] == {"old": True}


def test_stream_that_ends_without_success(server: Server, artifact: Artifact) -> None:
    server.statuses = ["parsing GGUF", "writing manifest"]
    assert refusal(server, artifact).findings[0].what == "Ollama refused the model: writing manifest"


def test_server_that_refuses_to_look_for_the_file(server: Server, artifact: Artifact) -> None:
    server.head_status = 500
    (finding,) = refusal(server, artifact).findings
    assert finding.code == "ollama-failed" and "500" in finding.what and server.models == {}


def test_old_server(server: Server, artifact: Artifact) -> None:
    server.version_is_old = True
    (finding,) = refusal(server, artifact).findings
    assert "path or Modelfile are required" in finding.what and "0.5.5" in finding.fix


def test_file_that_changed_since_its_export(server: Server, artifact: Artifact) -> None:
    artifact.path.write_bytes(b"another file")
    (finding,) = refusal(server, artifact).findings
    assert finding.code == "export-changed" and server.models == {}
    assert finding.what == "林栀-Q4_K_M.gguf: checksum mismatch"


def test_something_else_at_that_address(server: Server, artifact: Artifact) -> None:
    server.models = 7  # type: ignore[assignment]  # an answer that is no list of models
    assert refusal(server, artifact).findings[0].what.startswith("the server at this address is not Ollama")


def test_no_server(server: Server, artifact: Artifact) -> None:
    server.shutdown()
    server.server_close()
    (finding,) = refusal(server, artifact).findings
    assert finding.code == "ollama-unreachable" and str(server.server_port) in finding.where
    assert "ollama serve" in finding.fix and "OLLAMA_HOST" in finding.fix


def test_before_training_it_is_said_that_no_server_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.host)
    assert look_before_training("linzhi") == [] and server.calls == ["GET /api/tags", "GET /api/version"]
    assert look_before_training("") == [] and len(server.calls) == 2  # nothing is to be imported
    server.shutdown()
    server.server_close()
    (finding,) = look_before_training("linzhi")
    assert (finding.code, finding.level) == ("ollama-unreachable", "warning")


@pytest.mark.parametrize("host", ["garbage:://", "http://127.0.0.1:port", "127.0.0.1:99999999"])
def test_an_address_that_is_none_is_one_message(host: str, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    for use in (
        lambda: look_before_training("linzhi"),
        lambda: import_into_ollama(artifact, "linzhi", num_ctx=2048, report=lambda line: None),
    ):
        with pytest.raises(FasttuneError) as caught:
            use()
        (finding,) = caught.value.findings
        assert finding.code == "ollama-failed" and finding.where == f"OLLAMA_HOST={host}"


# The Modelfile -----------------------------------------------------------------------------------------------------


def test_modelfile_keeps_the_newline_after_assistant() -> None:
    assert modelfile("linzhi-Q8_0.gguf", "你是\n林栀。", 2048) == (
        "FROM ./linzhi-Q8_0.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n'
        "{{ .Content }}<|im_end|>\n"
        "{{ end }}<|im_start|>assistant\n"
        '"""\n'
        'SYSTEM """你是\n林栀。"""\n'
        'PARAMETER stop "<|im_start|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|endoftext|>"\n'
        "PARAMETER temperature 0.7\n"
        "PARAMETER num_ctx 2048\n"
    )


@pytest.mark.parametrize("system", ['three """ quotes', "ideographic\u3000space", "family 👩‍👧", "no-break\u00a0space"])
def test_modelfile_that_would_lose_characters_is_not_made(system: str) -> None:
    assert modelfile("x.gguf", system, 64) is None


def test_an_empty_system_prompt_is_a_turn_of_the_template(server: Server, artifact: Artifact) -> None:
    """Ollama takes SYSTEM "" for none, and the model was trained with the empty turn."""
    turn = (
        '{{ if and (eq $i 0) (ne .Role "system") }}<|im_start|>system\n<|im_end|>\n{{ end }}<|im_start|>{{ .Role }}\n'
    )
    text = modelfile("x.gguf", "", 64)
    assert text is not None and turn in text and "SYSTEM" not in text
    import_into_ollama(replace(artifact, system=""), "linzhi", num_ctx=64, report=print, host=server.host)
    made = server.models["linzhi:latest"]
    assert turn in made["template"] and not made.get("system")


# Servers that are not Ollama ---------------------------------------------------------------------------------------


class Thief(BaseHTTPRequestHandler):
    """Counts what it gets."""

    got: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.got.append(self.command)
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *values: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    thief = ThreadingHTTPServer(("127.0.0.1", 0), Thief)
    thread = threading.Thread(target=thief.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Thief.got.clear()
    yield f"http://127.0.0.1:{thief.server_port}"
    thief.shutdown()
    thread.join()
    thief.server_close()


@pytest.mark.parametrize("call", ["do_GET", "do_HEAD", "store", "create"])
def test_redirects_are_not_followed(
    server: Server, artifact: Artifact, elsewhere: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def redirect(handler: Handler, *_given: Any) -> None:
        handler.send_response(307)
        handler.send_header("Location", elsewhere + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(Handler, call, redirect)
    (finding,) = refusal(server, artifact).findings
    assert (finding.code, finding.where) == ("ollama-failed", server.host) and "redirects" in finding.what
    assert not Thief.got


@pytest.mark.parametrize("slow", [False, True], ids=["nothing", "a byte now and then"])
@pytest.mark.parametrize("call", ["do_GET", "do_HEAD", "store", "create"])
def test_a_server_that_does_not_answer_is_left(
    server: Server, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, call: str, slow: bool
) -> None:
    done = threading.Event()

    def hang(handler: Handler, *_given: Any) -> None:
        if slow and call != "do_HEAD":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        while not done.wait(0.05):
            if slow and call != "do_HEAD":
                with contextlib.suppress(OSError):
                    handler.wfile.write(b'{"status": "same"}\n' if call == "create" else b" ")

    monkeypatch.setattr(Handler, call, hang)
    for name in ("QUICK_SECONDS", "SILENT_SECONDS", "CREATE_SECONDS"):
        monkeypatch.setattr(ollama_connection, name, 0.5)
    began = time.monotonic()
    (finding,) = refusal(server, artifact).findings
    done.set()
    assert finding.code == "ollama-failed" and "in time" in finding.what
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("body", [b"null", b"[1]", b"7", b'"x"', b'{"models": [[]]}', b"<html>", b"\xff"])
@pytest.mark.parametrize("call", ["do_GET", "create"])
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_of_another_form_is_one_message(
    server: Server, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, body: bytes, call: str, status: int
) -> None:
    def answer(handler: Handler, *_given: Any) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    monkeypatch.setattr(Handler, call, answer)
    (finding,) = refusal(server, artifact).findings
    assert finding.code == "ollama-failed"


def test_answers_are_of_a_bounded_size(server: Server, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(handler: Handler) -> None:
        body = gzip.compress(bytes(2**26))
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    monkeypatch.setattr(Handler, "do_GET", flood)
    assert "not Ollama" in refusal(server, artifact).findings[0].what
    monkeypatch.setattr(ollama_connection, "ANSWER_BYTES", 100)
    (finding,) = refusal(server, artifact).findings
    assert finding.code == "ollama-failed" and "more than 0 MiB" in finding.what


def test_a_flood_of_messages_is_cut(server: Server, artifact: Artifact) -> None:
    lines: list[str] = []
    server.statuses = [f"x{number}" for number in range(1000)] + ["success"]
    import_into_ollama(artifact, "linzhi", num_ctx=64, report=lines.append, host=server.host)
    assert len(lines) < 110 and "Ollama: success" in lines


def test_an_ollama_host_that_is_no_address_is_one_message() -> None:
    """The package reads the variable when it is imported, so that only a process of its own shows it."""
    code = "from fasttune.export import ollama\nollama.look_before_training('linzhi')"
    variables = {**os.environ, "OLLAMA_HOST": "garbage:://"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert "FasttuneError: OLLAMA_HOST=garbage:://: this is not the address of a server" in done.stderr
