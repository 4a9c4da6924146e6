"""A training whose recipe names a model in Ollama, through the command line, while no server runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ollama_server import llama_engine, running_server
from series import Series

NOWHERE = "http://127.0.0.1:9"  # the port "discard", where nothing listens
SETTINGS = ("train.max_steps=2", "export.gguf=f16", "export.ollama=linzhi")


def test_a_missing_server_costs_nothing_and_the_last_line_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warned of before the training; after it all results are shown, and the printed command imports the file."""
    monkeypatch.setenv("OLLAMA_HOST", NOWHERE)
    series = Series.new(tmp_path)
    done = series.train(*SETTINGS)
    before, _started, after = done.stderr.partition("persona/001-fresh")
    assert before.count(f"warning: {NOWHERE}: no Ollama server answers") == 1
    for path in ("adapter", "exports/persona-F16.gguf", "report.html"):
        assert f"persona/001-fresh/{path}" in done.stdout, path
    last = after.splitlines()[-1]
    assert after.count("linzhi is not in Ollama yet: no Ollama server answers") == 1 and "`ollama serve`" in last
    (command,) = re.findall(r"`(fasttune export [^`]*)`", last)
    with running_server() as server:
        server.engine = llama_engine(server, tmp_path)
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        again = series(*shlex.split(command)[1:])
    assert "linzhi:latest" in server.models and "Ollama 0.34.4 answers as the file does" in again.stderr
