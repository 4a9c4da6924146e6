"""A conversation: its turns, what the context leaves out, and why an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from fasttune.analysis.conversation import Conversation
from fasttune.data.dataset import Message
from fasttune.export.llama import Sampling

EIGHT = Sampling(8)


@dataclass
class Parrot:
    """Says the texts that it is given, one a token; a character is a token of a prompt. A text that is an exception is
    raised. Notes the prompts it is asked."""

    texts: Sequence[str | BaseException]
    num_ctx: int = 1000
    prompts: list[str] = field(default_factory=list)

    def encode(self, messages: Sequence[Message]) -> Sequence[int]:
        self.prompts.append("|".join(f"{one.role[0]}:{one.content}" for one in messages))
        return list(range(len(self.prompts[-1])))

    def token_texts(self, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
        for text in self.texts[: min(sampling.max_new_tokens, self.num_ctx - len(ids))]:
            if isinstance(text, BaseException):
                raise text
            yield text


def test_turns_follow_the_system_prompt() -> None:
    speaker = Parrot(["你", "", "好"])
    conversation = Conversation(speaker, "You are Lumen.")
    assert list(conversation.ask("hi", EIGHT)) == ["你", "好"]
    list(conversation.ask("again", EIGHT))
    assert speaker.prompts == ["s:You are Lumen.|u:hi", "s:You are Lumen.|u:hi|a:你好|u:again"]
    reply = conversation.reply
    assert reply is not None and (reply.text, reply.tokens, reply.ending) == ("你好", 3, "end")
    assert reply.tokens_per_second == reply.tokens / reply.seconds
    conversation.reset()
    assert conversation.messages == [Message("system", "You are Lumen.")] and conversation.question is None


def test_again_replaces_the_last_answer() -> None:
    speaker = Parrot(["one"])
    conversation = Conversation(speaker, None)
    list(conversation.ask("hi", EIGHT))
    speaker.texts = ["two"]
    list(conversation.ask_again(EIGHT))
    assert [turn.content for turn in conversation.turns] == ["hi", "two"]
    with pytest.raises(ValueError):
        Conversation(speaker, None).ask_again(EIGHT)


@pytest.mark.parametrize(
    ("tokens", "num_ctx", "ending"), [(3, 1000, "end"), (8, 1000, "length"), (99, 1000, "length"), (8, 9, "context")]
)
def test_why_an_answer_ended(tokens: int, num_ctx: int, ending: str) -> None:
    conversation = Conversation(Parrot(["x"] * tokens, num_ctx), None)
    list(conversation.ask("hi", EIGHT))
    assert conversation.reply is not None and conversation.reply.ending == ending


def test_a_loop_is_stopped_and_said_once() -> None:
    line = "我在海边看灯，"
    conversation = Conversation(Parrot(["好。", *[line] * 90]), None)
    pieces = list(conversation.ask("hi", Sampling(100)))
    reply = conversation.reply
    assert reply is not None and reply.ending == "repetition" and len(pieces) < 20
    assert reply.text == f"好。{line}" == conversation.turns[-1].content


@pytest.mark.parametrize("closed", [True, False])
def test_a_stopped_answer_keeps_what_was_said(closed: bool) -> None:
    """Ctrl-C comes while a piece is printed, or while the model computes the next."""
    conversation = Conversation(Parrot(["a", "b", KeyboardInterrupt(), "c"]), None)
    pieces = conversation.ask("hi", EIGHT)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    if closed:
        pieces.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    assert conversation.reply is not None and conversation.reply.ending == "stopped"
    assert [turn.content for turn in conversation.turns] == ["hi", "ab"]


def test_an_answer_that_never_came_leaves_no_trace() -> None:
    conversation = Conversation(Parrot(["a"]), None)
    list(conversation.ask("hi", EIGHT))
    conversation.speaker = Parrot([RuntimeError()])
    with pytest.raises(RuntimeError):
        list(conversation.ask("too long", EIGHT))
    assert [turn.content for turn in conversation.turns] == ["hi", "a"]


def test_a_long_conversation_leaves_out_its_oldest_turns() -> None:
    speaker = Parrot(["yes"], num_ctx=60)
    conversation = Conversation(speaker, "Lumen")
    for number in range(6):
        list(conversation.ask(f"question {number}", EIGHT))
    assert speaker.prompts[-1] == "s:Lumen|u:question 4|a:yes|u:question 5"
    assert conversation.reply is not None and conversation.reply.turns_left_out == 8
    assert len(conversation.turns) == 12  # for /save
    list(conversation.ask("x" * 80, EIGHT))
    assert speaker.prompts[-1] == "s:Lumen|u:" + "x" * 80  # the last question always stays
