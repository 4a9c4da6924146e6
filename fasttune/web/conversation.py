"""The conversation of the board with one model at a time, which lives in a child process (chat_child.py): the board
itself stays small, and the model's memory is free again once nobody has asked anything for a while.

An answer belongs to the board and not to a request: it is finished and kept also where the page that asked is closed.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from fasttune.console import _
from fasttune.runs.store import Run
from fasttune.web.children import environment

IDLE_SECONDS = 300.0


@dataclass(frozen=True)
class ChatModel:
    """A model that can be talked to: the GGUF `file` of a run, or with "" its adapter; `picked` tells the adapters
    apart that the run has served, so that another pick begins a new conversation."""

    key: str
    run: Run
    file: str
    picked: int = 0


@dataclass
class Turn:
    """A question and its answer so far; `problem` says why there is no more of it."""

    question: str
    answer: str = ""
    problem: str = ""
    is_over: bool = False


def chat_models(runs: list[Run]) -> dict[str, ChatModel]:
    """Every GGUF file and every adapter of runs, the newest runs first, by key."""
    found = []
    for run in reversed(runs):
        if run.adapter.is_dir():
            files = sorted(path.name for path in run.exports.glob("*.gguf")) if run.exports.is_dir() else []
            found += [ChatModel(f"{run.id}/{name}", run, name) for name in files]
            picked = run.picked.stat().st_mtime_ns if run.picked.is_file() else 0
            found.append(ChatModel(f"{run.id}/adapter", run, "", picked))
    return {one.key: one for one in found}


def child_command(model: ChatModel) -> list[str]:
    """The command of the process in which a model lives."""
    return [sys.executable, "-m", "fasttune.web.chat_child", model.run.id, model.file, str(model.run.root)]


class Conversation:
    """The turns with the model that is talked to now, and its process."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self.idle_seconds = idle_seconds
        self.model: ChatModel | None = None
        self.turns: list[Turn] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.work: asyncio.Task[None] | None = None
        self.news = asyncio.Condition()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self.turns) and not self.turns[-1].is_over

    def ask(self, model: ChatModel, question: str) -> Turn:
        """Begin the answer to a question; another model begins a new conversation. The caller has seen that none is
        under way."""
        if model != self.model:
            self.forget()
            self.model = model
        if self.timer:
            self.timer.cancel()
        turn = Turn(question)
        self.turns.append(turn)
        self.work = asyncio.create_task(self.answer(model, turn))
        return turn

    def forget(self) -> None:
        """End the conversation; a model that is not asked again is freed by the timer."""
        self.turns.clear()
        if self.process is not None and self.model is not None:
            self.free()

    async def answer(self, model: ChatModel, turn: Turn) -> None:
        """Let the child answer, piece by piece."""
        try:
            process = self.running(model)
            asked = [text for one in self.turns[:-1] for text in (one.question, one.answer)]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps({"turns": [*asked, turn.question]}).encode() + b"\n")
            process.stdin.flush()
            while line := await run_in_threadpool(process.stdout.readline):
                said = json.loads(line)
                turn.answer += said.get("piece", "")
                turn.problem = said.get("problem", "")
                if "piece" not in said:
                    break
                await self.tell()
            else:
                turn.problem = _("the model's process has ended")
                self.free()
        except (OSError, ValueError) as problem:
            turn.problem = str(problem)
            self.free()
        finally:
            turn.is_over = True
            self.timer = asyncio.get_running_loop().call_later(self.idle_seconds, self.free)
            await self.tell()

    def running(self, model: ChatModel) -> subprocess.Popen[bytes]:
        """The child with the model, started where there is none."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                child_command(model), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment(), start_new_session=True,
            )  # fmt: skip
        return self.process

    async def tell(self) -> None:
        """Wake those who wait for more of the answer."""
        async with self.news:
            self.news.notify_all()

    async def pieces(self, turn: Turn) -> AsyncIterator[str]:
        """An answer as it comes, from its beginning; then why it ended early, if it did."""
        sent = 0
        while True:
            async with self.news:
                while len(turn.answer) == sent and not turn.is_over:
                    await self.news.wait()
            if piece := turn.answer[sent:]:
                sent += len(piece)
                yield json.dumps({"piece": piece}, ensure_ascii=False) + "\n"
            if turn.is_over and sent == len(turn.answer):
                yield json.dumps({"end": True, "problem": turn.problem}, ensure_ascii=False) + "\n"
                return

    def stop(self) -> None:
        """End the answer that is under way after its next token."""
        if self.is_busy and self.process is not None:
            self.process.send_signal(signal.SIGINT)

    def free(self) -> None:
        """End the child, whose memory is free then. The turns stay: the next question starts it again."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
