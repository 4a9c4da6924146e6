"""`fasttune chat`: talk to the GGUF of a run, with the template and the system prompt it was trained with."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from fasttune.command import command_line, runs_option
from fasttune.console import Finding, _, error, say, show_findings, stderr_console, usage_error, visible
from fasttune.data.dataset import Message
from fasttune.data.tokenize import chat_tokens
from fasttune.export.artifact import gguf_files, is_served, require_unchanged
from fasttune.export.llama import Sampling, open_gguf, stream
from fasttune.planning.parents import how_to_finish
from fasttune.recipe.schema import ModelRecipe
from fasttune.recipe.values import UNDECODED
from fasttune.runs import documents, epochs, store
from fasttune.runs.store import Run
from fasttune.training import model as models
from fasttune.training import provenance


def chat(
    name: str, root: Path, prompt: str | None, system: str | None, temperature: float, max_new_tokens: int
) -> None:
    """Answer one prompt, or each line from stdin until an empty one; answers are streamed to stdout.

    A conversation that would outgrow the context (export.num_ctx of the run) loses its oldest turns, never the system
    prompt.
    Raises FasttuneError where the run, its GGUF file or its tokenizer is missing.
    """
    for option, text in (("--prompt", prompt), ("--system", system)):
        if text and UNDECODED.search(text):
            what, fix = _("this holds bytes that are not UTF-8 text"), _("type it in UTF-8")
            raise usage_error("not-utf-8", what, where=option, fix=fix)
    run, gguf = find_gguf(name, root)
    require_unchanged(gguf)
    trained = documents.read_provenance(run)
    chosen = system if system is not None else trained.system
    base = ModelRecipe(base=trained.base.name, revision=trained.base.revision)
    tokenizer = models.load_tokenizer(provenance.locate_base(run, base))
    say(_("{file} of {run}; an empty line or Ctrl-D ends the chat", file=gguf.name, run=run.id))
    turns: list[Message] = []
    num_ctx = documents.read_setting(run, "export.num_ctx", int)  # as the Modelfile has it for Ollama
    sampling = Sampling(max_new_tokens, temperature, seed=random.randrange(2**31))
    with open_gguf(gguf, num_ctx) as loaded:
        while question := prompt if prompt is not None else ask():
            turns.append(Message("user", question))
            ids = truncate_history(turns, chosen, tokenizer, num_ctx - max_new_tokens)
            answer = ""
            for piece in stream(loaded, ids, sampling):
                sys.stdout.write(visible(piece))
                sys.stdout.flush()
                answer += piece
            sys.stdout.write("\n")
            turns.append(Message("assistant", answer))
            if prompt is not None:
                return


def find_gguf(name: str, root: Path) -> tuple[Run, Path]:
    """The run and its GGUF file by a series name, a run id or the path of a GGUF file in a run's exports."""
    path = Path(name)
    if path.suffix != ".gguf":
        run = store.find(root, name)
        return run, newest_gguf(run)
    if not path.is_file():
        raise usage_error("no-gguf", _("there is no file {file}", file=path))
    return store.find(root, str(path.resolve().parent.parent)), path


def newest_gguf(run: Run) -> Path:
    """The GGUF of a run that was written last of those made of the adapter that it serves; where there is none, a
    warning and the newest of another epoch."""
    files = gguf_files(run)
    if not files:
        raise error("no-gguf", _("this run has no GGUF file yet"), where=run.id, fix=how_to_get_one(run))
    served = [path for path in files if is_served(run, path)]
    if not served:
        show_findings([another_epoch(run, files[-1])])
    return (served or files)[-1]


def another_epoch(run: Run, path: Path) -> Finding:
    """The warning that a file of another epoch than the picked one answers, or of one although none is picked."""
    picked = epochs.picked_epoch(run)
    what = _("{file} answers, which is not of the run's own adapter", file=path.name)
    if picked:
        epoch = epochs.epoch_word(picked.epoch)
        what = _("{file} answers, which is not of the picked epoch {epoch}", file=path.name, epoch=epoch)
    return Finding("another-epoch-answers", "warning", run.id, what, fix=how_to_get_one(run))


def how_to_get_one(run: Run) -> str:
    """The command that makes a GGUF file of a run: an export, after training where that was stopped."""
    if run.status == "finished":
        export = command_line(["export", run.id, "--gguf", "q8_0", *runs_option(run.root)])
        return _("write a GGUF file: `{command}`", command=export)
    return how_to_finish(run)


def ask() -> str:
    """The user's next line; empty at the end of the chat."""
    if sys.stdin.isatty():
        stderr_console.print("> ", end="")
    return sys.stdin.readline().strip()


def truncate_history(
    turns: list[Message], system: str | None, tokenizer: Any, max_prompt_tokens: int
) -> tuple[int, ...]:
    """The prompt's token ids; the oldest question and answer are removed from `turns` while it is too long.

    The system prompt and the last question are always kept, also where they alone are longer.
    """
    first = [] if system is None else [Message("system", system)]
    while True:
        ids = chat_tokens([*first, *turns], tokenizer)
        if len(ids) <= max_prompt_tokens or len(turns) < 3:
            return ids
        del turns[:2]
