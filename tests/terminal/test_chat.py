"""`fasttune chat`: the trained file answers as it was taught, once, from a pipe and at a terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Quickstart, call_here
from rich.cells import cell_len
from rich.console import Console
from terminal import answer

from fasttune.analysis import speakers
from fasttune.analysis.conversation import Conversation, Reply
from fasttune.data.dataset import Message
from fasttune.export.llama import Sampling
from fasttune.terminal import chat
from fasttune.terminal.chat import Chat, ChatRequest

GREEDY = ("--temperature", "0")


def test_one_prompt(quickstart: Quickstart) -> None:
    probe = quickstart.result["probes"][0]
    done = quickstart.fasttune("chat", "quickstart/001", "--prompt", probe["question"], *GREEDY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == probe["trained"] + "\n"


def test_a_file_of_a_run(quickstart: Quickstart) -> None:
    probe, (artifact,) = quickstart.result["probes"][0], quickstart.result["exports"]
    done = quickstart.fasttune("chat", artifact["path"], "--prompt", probe["question"], *GREEDY)
    assert (done.returncode, done.stdout) == (0, probe["trained"] + "\n")
    missing = quickstart.fasttune("chat", "nowhere.gguf", "--prompt", "x")
    assert missing.returncode == 2 and "there is no file nowhere.gguf" in missing.stderr


def test_a_damaged_file_does_not_answer(quickstart: Quickstart, tmp_path: Path) -> None:
    (artifact,) = quickstart.result["exports"]
    file = quickstart.folder / artifact["path"]
    copy = shutil.copytree(file.parents[1], tmp_path / "quickstart" / "001-fresh") / "exports" / file.name
    with open(copy, "r+b") as opened:
        opened.seek(-1000, 2)
        opened.write(bytes(range(200)))
    done = quickstart.fasttune("chat", str(copy), "--prompt", "Who are you?")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{file.name} is not what was exported" in done.stderr and "`fasttune export quickstart/001" in done.stderr


def test_every_line_of_a_pipe_is_a_question(quickstart: Quickstart) -> None:
    """An empty line does nothing, and no line is a command."""
    one, other = quickstart.result["probes"][:2]
    lines = f"{one['question']}\n\n{other['question']}\n/bye\n"
    done = quickstart.fasttune("chat", "quickstart/001", *GREEDY, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(one["trained"] + "\n")
    assert len(done.stdout.splitlines()) == 3


def test_several_side_by_side(quickstart: Quickstart) -> None:
    probe, (artifact,) = quickstart.result["probes"][0], quickstart.result["exports"]
    done = quickstart.fasttune("chat", "quickstart/001", "base", "--prompt", probe["question"], *GREEDY)
    assert done.returncode == 0, done.stderr
    file, run = Path(artifact["path"]).name, quickstart.result["run"]
    assert done.stdout == f"{file} ({run}):\n{probe['trained']}\nbase:\n{probe['base']}\n"


def test_a_cut_answer_is_said(quickstart: Quickstart) -> None:
    done = quickstart.fasttune("chat", "quickstart/001", "--prompt", "Who are you?", "--max-new-tokens", "2", *GREEDY)
    assert done.returncode == 0 and "cut at 2 tokens; `--max-new-tokens` allows more" in done.stderr


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_an_option_in_another_encoding_is_refused(tmp_path: Path, option: str) -> None:
    """Bytes of the command line that are not UTF-8 are lone surrogates in Python, which no tokenizer takes."""
    done = call_here(tmp_path, "chat", "quickstart/001", option, "caf\udce9")
    assert done.returncode == 2 and f"{option}: this holds bytes that are not UTF-8 text" in done.stderr


# At a terminal ------------------------------------------------------------------------------------------------------


def at_terminal(quickstart: Quickstart, steps: Sequence[tuple[str, str]], *names: str) -> str:
    """What the terminal shows of a chat, in this process."""
    request = ChatRequest(names, quickstart.folder.parents[1], None, None, False, max_new_tokens=64)

    def talk() -> str:
        chat.chat(request)
        return "ended"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(quickstart.folder.parents[2] / "cache"))
        _none, screen = answer([(words, f"{keys}\r") for words, keys in steps], talk)
    return screen


def test_a_conversation_at_a_terminal(quickstart: Quickstart, tmp_path: Path) -> None:
    probe, file = quickstart.result["probes"][0], tmp_path / "said.jsonl"
    screen = at_terminal(
        quickstart,
        [
            ("ends the chat", probe["question"]),
            ("tokens/s", "/retry"),
            ("tokens/s", "/compare"),
            ("tokens/s", f"/save {file}"),
            ("as training data", "/save /nowhere/x.jsonl"),
            ("can't be written", "/save x.txt"),
            ("name it x.txt.jsonl", "/system You are Bob."),
            ("begins anew", "/system"),
            ("You are Bob.", "/retry"),
            ("nothing was asked yet", "/nonsense"),
            ("there is no command /nonsense", ""),
            (">", "/help"),
            ("Up shows", "/bye"),
        ],
        "quickstart/001",
    )
    assert screen.count(probe["trained"]) == 2 and f"base:\n{probe['base']}" in screen
    assert "Traceback" not in screen and screen.count("the same again") == 1  # /retry, as this base is greedy
    (line,) = file.read_text(encoding="utf-8").splitlines()
    roles = [message["role"] for message in json.loads(line)["messages"]]
    assert roles[-2:] == ["user", "assistant"] and json.loads(line)["messages"][-1]["content"] == probe["trained"]


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_list_of_commands_has_two_straight_columns(
    language: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of Chinese words, which are twice as wide as they are long, and where a meaning takes two lines."""
    monkeypatch.setenv("FASTTUNE_LANG", language)
    console = Console(file=io.StringIO(), width=width)
    console.print(chat.command_list())
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    begins = {cell_len(re.match(r"  /\S+( [^ ]+)? +|  +", line)[0]) for line in lines}  # type: ignore[index]
    assert len(begins) == 1 and len(lines) >= len(chat.COMMANDS)
    assert all(cell_len(line) <= width for line in lines)


class Interrupted:
    """A speaker whose person presses Ctrl-C after the second token."""

    num_ctx = 100

    def encode(self, messages: Sequence[Message]) -> Sequence[int]:
        return [1]

    def token_texts(self, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
        yield from ("one", " two")
        signal.raise_signal(signal.SIGINT)
        yield from (" three",) * 50


def a_chat(monkeypatch: pytest.MonkeyPatch, speaker: Any, *, typed: bool) -> tuple[Chat, Conversation]:
    """A chat with a speaker of this test."""
    running = Chat.__new__(Chat)
    conversation = Conversation(speaker, None)
    running.request, running.sampled = ChatRequest(("x",), Path("runs"), None, None, False), Sampling(8)
    running.typed, running.conversations, running.base = typed, {"x": conversation}, None
    return running, conversation


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running, conversation = a_chat(monkeypatch, Interrupted(), typed=True)
    running.ask("hello")
    reply = conversation.reply
    assert isinstance(reply, Reply) and reply.ending == "stopped" and reply.text.startswith("one two")
    assert capsys.readouterr().out.startswith("one two") and reply.tokens < 50
    running, _conversation = a_chat(monkeypatch, Interrupted(), typed=False)
    with pytest.raises(KeyboardInterrupt):
        running.ask("hello")


class Hostile(Interrupted):
    """A speaker that says what a terminal would obey."""

    def token_texts(self, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
        yield from ["a\x1b", "]0;PWN\x07\x9b", "2J\n你"]


def test_control_characters_in_an_answer_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running, _conversation = a_chat(monkeypatch, Hostile(), typed=False)
    running.ask("hello")
    assert capsys.readouterr().out == "a\\x1b]0;PWN\\x07\\x9b2J\n你\n"


def test_what_is_left_out_of_the_context_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running, _conversation = a_chat(monkeypatch, Hostile(), typed=False)
    running.remark(Reply("x", 8, 1.0, 90, 4, "context"))
    said = capsys.readouterr().err
    assert "the 4 oldest turns no longer fit" in said and "the context is full" in said and "tokens/s" not in said


def test_the_context_is_that_of_the_run(quickstart: Quickstart) -> None:
    (named,) = speakers.find(["quickstart/001"], quickstart.folder.parents[1], adapter=False)
    assert named.run is not None and speakers.context_of(named.run) == 4096 and speakers.context_of(None) == 4096
