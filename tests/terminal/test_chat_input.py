"""The questions of a chat: typed with history and editing keys, and read from a pipe."""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from terminal import CTRL_C, ENTER, UP

from fasttune import console
from fasttune.terminal import chat_input

END = "\x04"
PASTE = "\x1b[200~{}\x1b[201~"


def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str]:
    """The questions that come of keys, each line with Enter after the one before was answered; then Ctrl-D."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with create_pipe_input() as keyboard:
        monkeypatch.setattr(chat_input, "create_input", lambda stdin: keyboard)
        monkeypatch.setattr(chat_input, "create_output", lambda stdout: DummyOutput())
        keys, questions = [*(line + ENTER for line in lines), END], []
        keyboard.send_text(keys.pop(0))
        for question in chat_input.TypedLines(["/help", "/bye"]):
            questions.append(question)
            keyboard.send_text(keys.pop(0))
    return questions


def test_a_paste_of_several_lines_is_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = typed(tmp_path, monkeypatch, PASTE.format("一\n二\n"), "a\x1b\rb")
    assert lines == ["一\n二\n", "a\nb"]


def test_ctrl_c_empties_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = typed(tmp_path, monkeypatch, "你好\x7f们", f"wrong{CTRL_C}right")
    assert lines == ["你们", "right"] and "/bye ends the chat" in capsys.readouterr().err


def test_the_history_outlives_the_program_and_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(tmp_path, monkeypatch, "from yesterday")
    lines = typed(tmp_path, monkeypatch, UP)
    assert lines == ["from yesterday"]
    (file,) = (tmp_path / "fasttune").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_place_for_the_history_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fasttune").write_text("a file in its place")
    lines = typed(tmp_path, monkeypatch, "one", UP)
    assert lines == ["one", "one"]


def test_a_pipe_is_read_in_the_encoding_of_each_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = "你好\n".encode() + "今天的天气很好\n".encode("gb18030") + b"caf\xe9\n" + "最后".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
    console.prepare_streams()
    assert list(chat_input.piped_lines()) == ["你好\n", "今天的天气很好\n", "最后"]
    assert "line 3 is neither UTF-8 nor GB18030" in capsys.readouterr().err


def test_an_option_is_read_in_both_encodings() -> None:
    for encoding in ("utf-8", "gb18030"):
        escaped = "你是谁？".encode(encoding).decode("utf-8", "surrogateescape")
        assert chat_input.option_text("--prompt", escaped) == "你是谁？"
