"""How `fasttune run` finds a running board, and who can't."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fasttune.console import FasttuneError
from fasttune.web import address, server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fasttune" / "boards"


def test_a_running_board_is_found_and_its_file_is_its_users_alone(tmp_path: Path, cache: Path) -> None:
    runs = tmp_path / "runs"
    assert address.running(runs) is None
    with address.announced(runs, 8321, "secret"):
        assert address.running(runs) == "http://localhost:8321/?token=secret"
        assert address.running(runs, with_token=False) == "http://localhost:8321/"
        assert address.running(tmp_path / "others") is None
        (file,) = cache.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert address.running(runs) is None and not list(cache.iterdir())


def test_the_file_of_a_killed_board_is_stale_and_is_removed_by_the_next(tmp_path: Path, cache: Path) -> None:
    runs = tmp_path / "runs"
    code = (
        "import os, signal, sys; from pathlib import Path; from fasttune.web import address\n"
        "with address.announced(Path(sys.argv[1]), 1, 'old'):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(runs)], check=False).returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1 and address.running(runs) is None
    with address.announced(runs, 2, "new"):
        assert [json.loads(file.read_text())["token"] for file in cache.iterdir()] == ["new"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"port": "x", "token": 1}', "{}"])
def test_a_damaged_file_is_no_board(tmp_path: Path, cache: Path, text: str) -> None:
    runs = tmp_path / "runs"
    with address.announced(runs, 8321, "secret"):
        (file,) = cache.iterdir()
        file.write_text(text, encoding="utf-8")
        assert address.running(runs) is None


def test_a_board_without_a_cache_works_and_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with address.announced(tmp_path, 1, "secret"):
        assert address.running(tmp_path) is None


def test_a_user_without_a_home_folder_has_a_board_that_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise FileNotFoundError("no home")

    monkeypatch.setattr(address, "cache_folder", nowhere)
    with address.announced(tmp_path, 1, "secret"):
        assert address.running(tmp_path) is None


def test_a_port_in_use_is_one_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(FasttuneError) as refused:
            server.serve(tmp_path, port)
    (finding,) = refused.value.findings
    assert finding.code == "port-in-use" and str(port) in finding.what and "board --port 0" in finding.fix


# Ctrl-C between the making of uvicorn's coroutine and the event loop that would await it.
INTERRUPTED_BEFORE_THE_LOOP = """
import signal, uvicorn
from fasttune.cli import main
loop_factory = uvicorn.Config.get_loop_factory
def interrupted(config):
    signal.raise_signal(signal.SIGINT)
    return loop_factory(config)
uvicorn.Config.get_loop_factory = interrupted
main()
"""


def test_ctrl_c_before_the_server_runs_ends_it_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED_BEFORE_THE_LOOP, "board", "--port", "0", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (0, ["the board has ended"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait_for", ["its address", "an answer"])
def test_a_signal_ends_it_with_one_line(tmp_path: Path, wait_for: str, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "fasttune", "board", "--port", "0", "--runs", str(tmp_path)]
    child: Any = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    printed = child.stdout.readline().strip()
    assert printed.startswith("http://localhost:") and "/?token=" in printed
    if wait_for == "an answer":  # else the signal comes before uvicorn listens to it
        with urllib.request.urlopen(printed, timeout=120) as page:
            assert page.status == 200
    child.send_signal(number)
    opened, ended = child.communicate(timeout=120)[1].splitlines()
    assert opened.startswith("open this address in a browser")
    assert (child.returncode, ended) == (0, "the board has ended")


def test_run_names_the_board_that_shows_its_runs(fasttune: Any, tmp_path: Path) -> None:
    wrong = ("run", "recipes/quickstart.toml", "--set", 'data.train=["missing.jsonl"]')
    with address.announced(tmp_path / "runs", 8321, "secret"):
        done = fasttune(*wrong)
    assert "watch it on the board: http://localhost:8321/\n" in done.stderr, "a log file gets no token"
    assert "board" not in fasttune(*wrong).stderr
