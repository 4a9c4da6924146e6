"""A person at a pseudo-terminal, for the tests of the menus: waits for words on the screen, then types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from conftest import REPOSITORY

UP, DOWN, ENTER, ESC, CTRL_C, CTRL_D = "\x1b[A", "\x1b[B", "\r", "\x1b", "\x03", "\x04"
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>78]|\r")
TERMINAL = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here answers where the cursor is
PATIENCE = 240.0  # seconds from one step to the next, and without a sign after the last; a training may lie between
T = TypeVar("T")
Steps = Sequence[tuple[str, str | int]]  # words to wait for, and the keys to type then, or the columns to resize it to


@dataclass(frozen=True)
class Seen:
    """How a command ended and all that the terminal showed, without colours and cursor movements."""

    returncode: int
    screen: str


class Person(threading.Thread):
    """Reads the screen until the terminal closes and types each step's keys once its words have appeared."""

    def __init__(self, screen: int, steps: Steps) -> None:
        super().__init__(daemon=True)
        self.screen, self.steps = screen, list(steps)
        self.text, self.done, self.gave_up = b"", threading.Event(), False

    def run(self) -> None:
        position, since, shown = 0, time.monotonic(), ""
        heard = since
        while not self.done.is_set() or self.readable(0):
            if self.readable(0.02):
                heard = time.monotonic()
                try:
                    self.text += os.read(self.screen, 65536)
                except OSError:  # the last one who could write has gone
                    return
                shown = self.shown()
            if self.steps and (found := shown.find(self.steps[0][0], position)) >= 0:
                words, keys = self.steps.pop(0)
                # Without keys it is only waited for: what the next step waits for may have come in the same piece.
                position, since = len(shown) if keys else found + len(words), time.monotonic()
                self.do(keys)
            elif time.monotonic() - (since if self.steps else heard) > PATIENCE:
                self.gave_up = True
                os.write(self.screen, (CTRL_C + CTRL_D).encode())  # ends a menu, or a chat, that waits for other keys
                return

    def do(self, keys: str | int) -> None:
        """Type keys, or make the terminal of this process so many columns wide."""
        if isinstance(keys, str):
            os.write(self.screen, keys.encode())
            return
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 30, keys, 0, 0))
        os.kill(os.getpid(), signal.SIGWINCH)

    def readable(self, seconds: float) -> bool:
        return bool(select.select([self.screen], [], [], seconds)[0])

    def shown(self) -> str:
        return CODES.sub("", self.text.decode(errors="ignore"))


def open_terminal(rows: int = 30, columns: int = 80) -> tuple[int, int]:
    """The screen's and the program's end of a new pseudo-terminal."""
    screen, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return screen, program


def ended(person: Person, returncode: int) -> Seen:
    person.done.set()
    person.join(timeout=60)
    assert not person.steps, f"never saw {person.steps[0][0]!r} in:\n{person.shown()}"
    assert not person.gave_up, f"still waited for keys after the last step:\n{person.shown()}"
    return Seen(returncode, person.shown())


def type_at(steps: Steps, *arguments: str | Path, runs: Path, cwd: Path = REPOSITORY, **variables: str) -> Seen:
    """`fasttune ARGS…` in a process of its own whose stdin, stdout and stderr are a terminal."""
    screen, program = open_terminal()
    process = subprocess.Popen(
        [sys.executable, "-m", "fasttune", *map(str, arguments)],
        cwd=cwd, stdin=program, stdout=program, stderr=program,
        env={**os.environ, **TERMINAL, "FASTTUNE_RUNS": str(runs), **variables},
    )  # fmt: skip
    os.close(program)
    person = Person(screen, steps)
    person.start()
    code = process.wait(timeout=600)
    seen = ended(person, code)
    os.close(screen)
    return seen


def type_here(steps: Steps, *arguments: str | Path, runs: Path, **variables: str) -> Seen:
    """The same in this process, which has Unsloth loaded already: for menus that end in a training."""
    from fasttune import cli

    def command() -> int:
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return int(exited.value.code or 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", ["fasttune", *map(str, arguments)])
        for name, value in {"FASTTUNE_RUNS": str(runs), **variables}.items():
            patch.setenv(name, value)
        code, screen = answer(steps, command)
    return Seen(code, screen)


def answer(steps: Steps, question: Callable[[], T]) -> tuple[T, str]:
    """What a function of this process returns while somebody types at its terminal, and what that showed."""
    screen, program = open_terminal()
    person = Person(screen, steps)
    result: T | None = None
    with (
        pytest.MonkeyPatch.context() as patch,
        open(program, encoding="utf-8") as keys,
        open(os.dup(program), "w", buffering=1, encoding="utf-8") as shown,
    ):
        for name in ("stdin", "stdout", "stderr"):
            patch.setattr(sys, name, keys if name == "stdin" else shown)
        for name, value in TERMINAL.items():
            patch.setenv(name, value)
        person.start()
        with contextlib.suppress(KeyboardInterrupt):
            result = question()
    seen = ended(person, 0)
    os.close(screen)
    assert result is not None, f"cancelled:\n{seen.screen}"
    return result, seen.screen
