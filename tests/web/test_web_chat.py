"""The board's chat: one model at a time in a child process, streamed, stopped, and freed when nobody asks any more."""

from __future__ import annotations

import html
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from board_server import Served, served
from run_folders import write_run

from fasttune.analysis import speakers
from fasttune.web import chat_child, conversation
from fasttune.web.conversation import chat_models

# Speaks as chat_child.py does: says the number of turns, then two pieces, or pieces until it is stopped.
STAND_IN = """
import json, signal, sys, time
from itertools import count
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
for line in sys.stdin:
    turns = json.loads(line)["turns"]
    del stopped[:]
    def say(document): print(json.dumps(document), flush=True)
    if turns[-1] == "die": sys.exit(3)
    if turns[-1] == "fail": say({"problem": "no <memory>"}); continue
    say({"piece": f"{len(turns)} turns, " })
    for _number in count() if turns[-1] == "long" else range(2):
        if stopped: break
        say({"piece": "<i>照</i>"})
        time.sleep(0.02 * (turns[-1] == "long"))
    say({"end": True})
"""
MODEL = "persona/001-fresh/persona-Q8_0.gguf"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    write_run(tmp_path)
    monkeypatch.setattr(conversation, "child_command", lambda model: [sys.executable, "-c", STAND_IN])
    with served(tmp_path) as one:
        yield one


def said(board: Served, question: str, model: str = MODEL) -> tuple[str, str]:
    """The whole answer to a question, and the problem at its end."""
    answer = board.post("/chat/say", model=model, question=question)
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["end"] is True
    return "".join(line.get("piece", "") for line in lines), lines[-1]["problem"]


def test_a_conversation_with_its_turns(board: Served) -> None:
    assert said(board, "hello") == ("1 turns, <i>照</i><i>照</i>", "")
    assert said(board, "again")[0].startswith("3 turns")
    page = board.get("/chat").text
    assert "<i>" not in page and "<i>照</i>" in html.unescape(page) and page.index("hello") < page.index("again")
    assert said(board, "other", "persona/001-fresh/adapter")[0].startswith("1 turns"), (
        "another model, another conversation"
    )
    assert "hello" not in board.get("/chat").text
    assert board.post("/chat/new").status_code == 303 and "other</p>" not in board.get("/chat").text


def test_one_at_a_time_and_stop(board: Served) -> None:
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(said(board, "long")))
    thread.start()
    until(lambda: bool(board.board.conversation.turns) and len(board.board.conversation.turns[-1].answer) > 20)
    refused = board.post("/chat/say", model=MODEL, question="me too")
    assert refused.status_code == 409 and "another answer is under way" in refused.text
    assert board.post("/chat/new").status_code == 409
    assert board.post("/chat/stop").status_code == 204
    thread.join(120)
    assert len(found[0][0]) > 20 and said(board, "next")[0].startswith("3 turns")


def test_an_answer_is_finished_where_the_page_is_closed(board: Served) -> None:
    query, headers = {"token": board.board.token}, {"Origin": board.origin}
    data = {"model": MODEL, "question": "long"}
    with board.bare as client, client.stream("POST", "/chat/say", params=query, data=data, headers=headers) as answer:
        next(answer.iter_lines())
    size = len(board.board.conversation.turns[-1].answer)
    until(lambda: len(board.board.conversation.turns[-1].answer) > size + 50)
    board.post("/chat/stop")
    until(lambda: not board.board.conversation.is_busy)


def test_what_goes_wrong_is_said_and_the_next_question_works(board: Served) -> None:
    assert said(board, "fail") == ("", "no <memory>")
    assert said(board, "die") == ("", "the model's process has ended")
    assert said(board, "hello")[0].startswith("5 turns")


def test_the_memory_is_free_when_nobody_asks(board: Served) -> None:
    said(board, "hello")
    process = board.board.conversation.process
    assert process is not None
    board.board.conversation.idle_seconds = 0.3
    assert said(board, "more")[0].startswith("3 turns")
    until(lambda: not Path(f"/proc/{process.pid}").exists())
    assert said(board, "again")[0].startswith("5 turns"), "the turns are kept, and the model is loaded again"


def test_the_model_ends_with_the_board(board: Served, tmp_path: Path) -> None:
    with served(tmp_path) as other:
        said(other, "hello")
        process = other.board.conversation.process
    assert process is not None
    until(lambda: not Path(f"/proc/{process.pid}/fd/0").exists())


@pytest.mark.parametrize(
    "model", ["", "persona/001-fresh", "persona/001-fresh/../../x.gguf", "/etc/passwd", "persona/009-fresh/adapter"]
)
def test_only_models_of_the_list(board: Served, model: str) -> None:
    assert board.post("/chat/say", model=model, question="hello").status_code == 400
    assert board.board.conversation.process is None


@pytest.mark.parametrize("question", ["", "  ", "x" * 8001])
def test_a_question_has_bounds(board: Served, question: str) -> None:
    assert board.post("/chat/say", model=MODEL, question=question).status_code == 400


def test_the_list_is_every_file_and_every_adapter(tmp_path: Path) -> None:
    run, stopped = write_run(tmp_path), write_run(tmp_path, finished=False)
    (run.exports / "persona-Q4_K_M.gguf").touch()
    (run.exports / "Modelfile").touch()
    assert list(chat_models([run, stopped])) == [
        "persona/001-fresh/persona-Q4_K_M.gguf", "persona/001-fresh/persona-Q8_0.gguf", "persona/001-fresh/adapter",
    ]  # fmt: skip


def until(reached: Any) -> None:
    for _try in range(6000):
        if reached():
            return
        time.sleep(0.02)
    raise AssertionError("it has not come about")


# The child itself ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", ["gguf", "adapter"])
def test_both_kinds_of_model_answer_as_they_were_trained(
    quickstart: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The streamed pieces are the greedy answer of the same weights."""
    (gguf,) = (path.name for path in (quickstart.folder / "exports").glob("*.gguf"))
    name, pieces, sampling = (gguf if file == "gguf" else ""), list[str](), speakers.served_sampling
    monkeypatch.setattr(speakers, "served_sampling", lambda named: replace(sampling(named), temperature=0.0))
    with chat_child.answering("quickstart/001-fresh", name, str(quickstart.folder.parent.parent)) as reply:
        reply(["你是谁？"], taking(pieces, stop=False))
        whole = "".join(pieces)
        pieces.clear()
        reply(["你是谁？"], taking(pieces, stop=True))
    assert len(whole) > 2 and "<|im_end|>" not in whole and "\ufffd" not in whole
    assert len(pieces) == 1 and whole.startswith(pieces[0]), "stopped after its first piece"


def taking(pieces: list[str], *, stop: bool) -> chat_child.Tell:
    """Takes pieces, and asks for the end after the first."""

    def tell(piece: str) -> bool:
        pieces.append(piece)
        return stop

    return tell
