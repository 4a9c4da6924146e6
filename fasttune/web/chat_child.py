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
from dataclasses import replace
from pathlib import Path
from typing import Any

from fasttune.console import FasttuneError

Tell = Callable[[str], bool]  # takes a piece of the answer, returns whether the answer is to end
Answer = Callable[[Sequence[str], Tell], None]


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
            with answering(*sys.argv[1:4]) as answer:
                for line in sys.stdin:
                    stopped.asked = False
                    answer(json.loads(line)["turns"], tell)
                    say({"end": True})
        except FasttuneError as problem:
            first = problem.findings[0]
            say({"problem": " ".join(part for part in (first.what, first.why, first.fix) if part)})


@contextlib.contextmanager
def answering(id: str, file: str, root: str) -> Iterator[Answer]:
    """A function that answers the last of a conversation's turns, with the model loaded.

    Raises FasttuneError where the run, its file, its adapter or its base is missing or damaged.
    """
    from fasttune.analysis import speakers
    from fasttune.analysis.conversation import Conversation
    from fasttune.data.dataset import Message
    from fasttune.runs import store

    run = store.find(Path(root), id)
    name = run.exports / Path(file).name if file else run.folder
    named = speakers.find_one(str(name), run.root, adapter=not file)
    sampled = speakers.served_sampling(named)
    with speakers.opened(named) as speaker:

        def answer(turns: Sequence[str], tell: Tell) -> None:
            before = [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(turns[:-1])]
            sampling = replace(sampled, seed=random.randrange(2**31))
            pieces = Conversation(speaker, named.system, before).ask(turns[-1], sampling)
            with contextlib.closing(pieces):
                for piece in pieces:
                    if tell(piece):
                        return

        yield answer


if __name__ == "__main__":
    main()
