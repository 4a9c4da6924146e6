"""The process in which the board's chat model lives: `python -m fasttune.web.chat_child RUN FILE RUNS`.

    stdin     {"turns": [question, answer, …, question]}     one line a question
    stdout    {"piece": "…"}, as often as there is more; then {"end": true} or {"problem": "…"}

FILE is a GGUF file among the exports of the run; "" stands for its adapter. SIGINT ends an answer after its next token;
the end of stdin, which also is the end of the board, ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.console import FasttuneError

if TYPE_CHECKING:
    from fasttune.data.dataset import Message
    from fasttune.export.llama import Sampling
    from fasttune.runs.store import Run

TEMPERATURE, MAX_NEW_TOKENS = 0.7, 512  # those of `fasttune chat`
Tell = Callable[[str], bool]  # takes a piece of the answer, returns whether the answer is to end
Answer = Callable[[Sequence[int], "Sampling", Tell], None]


class Stopped:
    """Whether the answer that is under way is to end."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self.stop)

    def stop(self, _number: int, _frame: Any) -> None:
        self.asked = True


def main() -> None:
    """Answer the questions on stdin until it ends."""
    stopped = Stopped()
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as output:
        os.dup2(2, 1)  # what libraries print is no message

        def say(document: dict[str, Any]) -> None:
            output.write(json.dumps(document, ensure_ascii=False) + "\n")
            output.flush()

        def tell(piece: str) -> bool:
            say({"piece": piece})
            return stopped.asked

        try:
            with conversation(*sys.argv[1:4]) as answer:
                for line in sys.stdin:
                    stopped.asked = False
                    answer(json.loads(line)["turns"], tell)
                    say({"end": True})
        except FasttuneError as problem:
            first = problem.findings[0]
            say({"problem": " ".join(part for part in (first.what, first.why, first.fix) if part)})


@contextlib.contextmanager
def conversation(id: str, file: str, root: str) -> Iterator[Callable[[Sequence[str], Tell], None]]:
    """A function that answers the last of a conversation's turns, with the model loaded. Raises FasttuneError where the
    run, its file, its adapter or its base is missing or damaged."""
    from fasttune.data.dataset import Message
    from fasttune.export.llama import Sampling
    from fasttune.runs import documents, store
    from fasttune.terminal.chat import truncate_history

    run = store.find(Path(root), id)
    system = documents.read_provenance(run).system
    num_ctx = documents.read_setting(run, "export.num_ctx", int)  # as the Modelfile has it for Ollama
    with by_gguf(run, file, num_ctx) if file else by_adapter(run) as (tokenizer, answer):

        def reply(turns: Sequence[str], tell: Tell) -> None:
            messages: list[Message] = [
                Message("assistant" if at % 2 else "user", text) for at, text in enumerate(turns)
            ]
            ids = truncate_history(messages, system, tokenizer, num_ctx - MAX_NEW_TOKENS)
            answer(ids, Sampling(MAX_NEW_TOKENS, TEMPERATURE, seed=random.randrange(2**31)), tell)

        yield reply


@contextlib.contextmanager
def by_gguf(run: Run, file: str, num_ctx: int) -> Iterator[tuple[Any, Answer]]:
    """The tokenizer of a run's base, and answers by one of its GGUF files."""
    from fasttune.analysis.sources import run_recipe
    from fasttune.export.artifact import require_unchanged
    from fasttune.export.llama import open_gguf, stream
    from fasttune.training import model as models
    from fasttune.training import provenance

    gguf = run.exports / Path(file).name
    require_unchanged(gguf)
    tokenizer = models.load_tokenizer(provenance.locate_base(run, run_recipe(run).model))
    with open_gguf(gguf, num_ctx) as loaded:

        def answer(ids: Sequence[int], sampling: Sampling, tell: Tell) -> None:
            for piece in stream(loaded, ids, sampling):
                if tell(piece):
                    return

        yield tokenizer, answer


@contextlib.contextmanager
def by_adapter(run: Run) -> Iterator[tuple[Any, Answer]]:
    """The tokenizer of a run's base, and answers by the base with the run's adapter."""
    from fasttune.analysis import sources
    from fasttune.analysis.answers import TorchSource
    from fasttune.export import llama
    from fasttune.training import generation

    source = sources.find(str(run.folder), run.root).source
    assert isinstance(source, TorchSource)
    model, tokenizer = source.loaded.model, source.loaded.tokenizer

    def answer(ids: Sequence[int], sampling: Sampling, tell: Tell) -> None:
        numbers, said, shown = llama.random_numbers(sampling), list[int](), ""

        def choose(_row: int, logits: Any) -> int:
            nonlocal shown
            said.append(llama.sample_token(logits.float().cpu().numpy(), sampling, numbers))
            text = tokenizer.decode(said, skip_special_tokens=True)
            if text.endswith("\ufffd"):  # a character whose bytes are split among tokens
                return said[-1]
            piece, shown = text[len(shown) :], text
            return int(tokenizer.eos_token_id) if piece and tell(piece) else said[-1]

        generation.generate_batch(model, tokenizer, [ids], sampling.max_new_tokens, choose)

    yield tokenizer, answer


if __name__ == "__main__":
    main()
