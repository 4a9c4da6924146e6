"""A conversation with one model, token by token: what `fasttune chat` and the board talk through.

    conversation = Conversation(speaker, system)
    for piece in conversation.ask("你是谁？", Sampling(max_new_tokens=200, temperature=0.7)):
        print(piece, end="")
    conversation.reply.ending   # "end", "length", "context", "repetition" or "stopped"

A conversation that outgrows the context loses its oldest turns in the prompt, never its system prompt.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fasttune.analysis.answer_faults import find_loop
from fasttune.data.dataset import Message
from fasttune.export.llama import Sampling

Pieces = Generator[str, None, None]
Ending = Literal["end", "length", "context", "repetition", "stopped"]


class Speaker(Protocol):
    """A loaded model: tokenizes a conversation and continues token ids. `num_ctx` is its context in tokens."""

    @property
    def num_ctx(self) -> int: ...

    def encode(self, messages: Sequence[Message]) -> Sequence[int]:
        """The token ids of everything before the answer to the last message."""

    def token_texts(self, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
        """The text of each generated token, "" for one in the middle of a character."""


@dataclass(frozen=True)
class Reply:
    """An answer, how many tokens it took in how many seconds, the prompt's tokens, how many of the oldest turns the
    prompt had to leave out, and why it ended: at its end token, after `max_new_tokens`, at the end of the context, in a
    loop, or because the person stopped it."""

    text: str
    tokens: int
    seconds: float
    prompt_tokens: int
    turns_left_out: int
    ending: Ending

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Conversation:
    """Turns with one speaker; `reply` is the newest answer, None before the first."""

    def __init__(self, speaker: Speaker, system: str | None, turns: Sequence[Message] = ()) -> None:
        self.speaker, self.system = speaker, system
        self.turns: list[Message] = list(turns)
        self.reply: Reply | None = None

    @property
    def messages(self) -> list[Message]:
        """The whole conversation with its system prompt."""
        return self.with_system(self.turns)

    @property
    def question(self) -> str | None:
        """The last question; None before the first."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "user"), None)

    def ask(self, question: str, sampling: Sampling) -> Pieces:
        """Pieces of the answer as they come. An iterator that is closed, or interrupted, leaves what was said so far as
        the answer; one that says nothing leaves the conversation as it was.

        Raises FasttuneError for a question that is longer than the context.
        """
        before = len(self.turns)
        self.turns.append(Message("user", question))
        answered = False
        try:
            for piece in self.answer(sampling):
                answered = True
                yield piece
        finally:
            if not answered and self.turns[-1].role == "user":
                del self.turns[before:]

    def ask_again(self, sampling: Sampling) -> Pieces:
        """The last question once more, in place of its answer; the iterator is that of `ask`.

        Raises ValueError before the first question.
        """
        question = self.question
        if question is None:
            raise ValueError("nothing was asked yet")
        while self.turns.pop().role != "user":
            pass
        return self.ask(question, sampling)

    def reset(self) -> None:
        """Forget all turns."""
        self.turns, self.reply = [], None

    def answer(self, sampling: Sampling) -> Pieces:
        """The answer to the last turn, which is added to the turns."""
        ids, left_out = self.prompt(self.speaker.num_ctx - sampling.max_new_tokens)
        ending: Ending = "stopped"
        text, tokens, start = "", 0, time.monotonic()
        try:
            for piece in self.speaker.token_texts(ids, sampling):
                tokens += 1
                text += piece
                if piece:
                    yield piece
                if loop := find_loop(text):
                    ending = "repetition"
                    text = text[: len(text) - loop]
                    return
            ending = self.natural_ending(len(ids), tokens, sampling)
        finally:
            seconds = time.monotonic() - start
            self.reply = Reply(text, tokens, seconds, len(ids), left_out, ending)
            if text:
                self.turns.append(Message("assistant", text))

    def natural_ending(self, prompt_tokens: int, tokens: int, sampling: Sampling) -> Ending:
        """Why an answer ended that nobody stopped."""
        if tokens >= sampling.max_new_tokens:
            return "length"
        return "context" if prompt_tokens + tokens >= self.speaker.num_ctx else "end"

    def prompt(self, most_tokens: int) -> tuple[Sequence[int], int]:
        """The prompt's token ids and how many of the oldest turns are left out so that it has at most `most_tokens`.

        The system prompt and the last question always stay, also where they alone are longer.
        """
        for left_out in range(0, len(self.turns), 2):
            ids = self.speaker.encode(self.with_system(self.turns[left_out:]))
            if len(ids) <= most_tokens or len(self.turns) - left_out < 3:
                break
        return ids, left_out

    def with_system(self, turns: Sequence[Message]) -> list[Message]:
        """Turns after the system prompt, where there is one."""
        return [*([] if self.system is None else [Message("system", self.system)]), *turns]
