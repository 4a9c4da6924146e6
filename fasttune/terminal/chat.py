"""`fasttune chat`: talk to the GGUF of a run, with the template and the system prompt it was trained with."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from fasttune.console import _, error, say, stderr_console, usage_error
from fasttune.data.dataset import Message
from fasttune.data.tokenize import chat_tokens
from fasttune.export.llama import Sampling, open_gguf, stream
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import documents, store
from fasttune.runs.store import Run
from fasttune.training import hub
from fasttune.training import model as models

CONTEXT = 4096


def chat(
    name: str, root: Path, prompt: str | None, system: str | None, temperature: float, max_new_tokens: int
) -> None:
    """Answer one prompt, or lines from stdin until it ends; answers go to stdout as they are made.

    A conversation that would outgrow the context drops its oldest turns, never the system prompt.
    """
    run, gguf = meant(name, root)
    provenance = documents.read_provenance(run)
    chosen = system if system is not None else provenance.system
    base = ModelRecipe(base=provenance.base.name, revision=provenance.base.revision)
    tokenizer = models.load_tokenizer(hub.locate(base))
    say(_("{file} of {run}; an empty line or Ctrl-D ends the talk", file=gguf.name, run=run.id))
    turns: list[Message] = []
    sampling = Sampling(max_new_tokens, temperature, seed=random.randrange(2**31))
    with open_gguf(gguf, CONTEXT) as loaded:
        while question := prompt if prompt is not None else ask():
            turns.append(Message("user", question))
            ids = fitting(turns, chosen, tokenizer, CONTEXT - max_new_tokens)
            answer = ""
            for piece in stream(loaded, ids, sampling):
                sys.stdout.write(piece)
                sys.stdout.flush()
                answer += piece
            sys.stdout.write("\n")
            turns.append(Message("assistant", answer))
            if prompt is not None:
                return


def meant(name: str, root: Path) -> tuple[Run, Path]:
    """The run and the file of a series name, a run id or the path of a GGUF file in a run's exports."""
    path = Path(name)
    if path.suffix != ".gguf":
        run = store.find(root, name)
        return run, newest_gguf(run)
    if not path.is_file():
        raise usage_error("no-gguf", _("there is no file {file}", file=path))
    return store.find(root, str(path.resolve().parent.parent)), path


def newest_gguf(run: Run) -> Path:
    """The GGUF of a run that was written last."""
    files = sorted(run.exports.glob("*.gguf"), key=lambda path: path.stat().st_mtime) if run.exports.is_dir() else []
    if not files:
        raise error(
            "no-gguf", _("this run has no GGUF file yet"), where=run.id, fix=_("`fasttune run` its recipe to the end")
        )
    return files[-1]


def ask() -> str:
    """The next line of the user; empty when the talk is over."""
    if sys.stdin.isatty():
        stderr_console.print("> ", end="")
    return sys.stdin.readline().strip()


def fitting(turns: list[Message], system: str | None, tokenizer: Any, room: int) -> tuple[int, ...]:
    """The prompt of a conversation in at most `room` ids, the oldest question and answer dropped while it is longer."""
    first = [] if system is None else [Message("system", system)]
    while True:
        ids = chat_tokens([*first, *turns], tokenizer)
        if len(ids) <= room or len(turns) < 3:
            return ids
        del turns[:2]
