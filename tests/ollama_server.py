"""Ollama's HTTP API on this machine, for the tests of the import and of the questions to a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fasttune.export import llama

# (what was sent to create the model, the request for an answer) -> (the answer, the tokens of the prompt)
Engine = Callable[[dict[str, Any], dict[str, Any]], tuple[str, int | None]]


class Server(ThreadingHTTPServer):
    """Ollama's endpoints for the import (its docs/api.md); what was stored, copied and created can be looked at.

    `keys` are the Authorization headers of the requests for a blob, `head_status` the answer where there is none;
    `asked` the bodies of the requests for an answer, which is the last message in capitals, unless an `engine` gives it
    (`llama_engine` does it as Ollama does, by llama.cpp with the file that was uploaded).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.statuses = ["parsing GGUF", "using existing layer sha256:1", "writing manifest", "success"]
        self.failure = ""
        self.version_is_old = False
        self.head_status = 404
        self.keys: list[str | None] = []
        self.asked: list[dict[str, Any]] = []
        self.version: Any = "0.34.4"
        self.engine: Engine | None = None

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *values: Any) -> None:
        pass

    def reply(self, status: int, document: Any = None) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_GET(self) -> None:
        self.server.calls.append(f"GET {self.path}")
        if self.path == "/api/version":
            self.reply(200, {"version": self.server.version})
            return
        models = self.server.models
        listed: Any = models
        if isinstance(models, dict):
            listed = [{"name": name, "model": name, "digest": f"digest of {name}"} for name in models]
        self.reply(200, {"models": listed})

    def do_HEAD(self) -> None:
        self.server.calls.append("HEAD blob")
        self.server.keys.append(self.headers.get("Authorization"))
        self.reply(200 if self.path.split(":")[-1] in self.server.blobs else self.server.head_status)

    def do_POST(self) -> None:
        content = self.body()
        name = self.path.removeprefix("/api/").split("/")[0]
        self.server.calls.append(f"POST {name}")
        if name == "blobs":
            self.store(content)
        elif name == "copy":
            body = json.loads(content)
            self.server.models[full_name(body["destination"])] = self.server.models[full_name(body["source"])]
            self.reply(200)
        elif name == "chat":
            self.chat(json.loads(content))
        elif name == "show":
            self.show(json.loads(content))
        else:
            self.create(json.loads(content))

    def store(self, content: bytes) -> None:
        digest = self.path.split(":")[-1]
        if hashlib.sha256(content).hexdigest() != digest:
            self.reply(400, {"error": "digest mismatch"})
            return
        self.server.blobs[digest] = content
        self.reply(201)

    def chat(self, body: dict[str, Any]) -> None:
        self.server.asked.append(body)
        if self.server.failure:
            self.reply(500, {"error": self.server.failure})
            return
        text, count = body["messages"][-1]["content"].upper(), None
        if self.server.engine is not None:
            text, count = self.server.engine(self.server.models[full_name(body["model"])], body)
        reply = {"model": body["model"], "message": {"role": "assistant", "content": text}, "done": True}
        self.reply(200, reply | ({} if count is None else {"prompt_eval_count": count}))

    def show(self, body: dict[str, Any]) -> None:
        found = self.server.models.get(full_name(body["model"]))
        if found is None:
            self.reply(404, {"error": f"model '{body['model']}' not found"})
            return
        self.reply(200, {"template": found.get("template", ""), "system": found.get("system", "")})

    def do_DELETE(self) -> None:
        self.server.calls.append("DELETE model")
        gone = self.server.models.pop(full_name(json.loads(self.body())["model"]), None)
        self.reply(404 if gone is None else 200)

    def create(self, body: dict[str, Any]) -> None:
        if self.server.version_is_old:
            self.reply(400, {"error": "path or Modelfile are required"})
            return
        missing = [file for file in body["files"].values() if file.split(":")[-1] not in self.server.blobs]
        if missing:
            self.reply(400, {"error": f"blob {missing[0]} not found"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        for status in self.server.statuses:
            self.wfile.write(json.dumps({"status": status}).encode() + b"\n")
        if self.server.failure:
            self.wfile.write(json.dumps({"error": self.server.failure}).encode() + b"\n")
        elif "success" in self.server.statuses:
            self.server.models[full_name(body["model"])] = body


def full_name(model: str) -> str:
    return model if ":" in model else model + ":latest"


def llama_engine(server: Server, folder: Path) -> Engine:
    """Answers by llama.cpp with the uploaded file, as Ollama does it: the model's SYSTEM before a conversation without
    one, its TEMPLATE, the likeliest token at temperature 0."""

    def answer(created: dict[str, Any], body: dict[str, Any]) -> tuple[str, int | None]:
        assert body["options"]["temperature"] == 0
        (digest,) = created["files"].values()
        path = folder / "blob.gguf"
        path.write_bytes(server.blobs[digest.split(":")[-1]])
        messages = body["messages"]
        if created.get("system") and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": created["system"]}, *messages]
        with llama.open_gguf(path, 2048) as model:
            ids = model.tokenize(rendered(created["template"], messages))
            return llama.answer(model, ids, llama.Sampling(body["options"]["num_predict"])), len(ids)

    return answer


def rendered(template: str, messages: list[dict[str, str]]) -> str:
    """A conversation by TEMPLATE (export/modelfile.py), whose Go tags are few enough to be put in by hand; that Go does
    the same, test_go_template.py shows."""
    start, turn, end = re.fullmatch(r"(.*?\{\{- range [^}]*\}\})(.*)\{\{ end \}\}(.*)", template, re.DOTALL).groups()  # type: ignore[union-attr]
    assert start == "{{- range .Messages }}"
    turns = [turn.replace("{{ .Role }}", one["role"]).replace("{{ .Content }}", one["content"]) for one in messages]
    return "".join(turns) + end


@contextmanager
def running_server() -> Iterator[Server]:
    """A server in a thread of its own, until the block ends."""
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()
