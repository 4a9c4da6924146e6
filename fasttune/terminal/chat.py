"""`fasttune chat`: talk to one model or to several side by side, with the template and the system prompt of training.

At a terminal the chat has commands (`/help`); from a pipe every line is a question. Answers are streamed to stdout, all
else goes to stderr.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from fasttune.analysis import sources, speakers
from fasttune.analysis.conversation import Conversation, Pieces, Reply
from fasttune.analysis.sources import Named
from fasttune.command import command_line
from fasttune.console import (
    COLON,
    N_,
    FasttuneError,
    _,
    can_ask,
    ngettext,
    say,
    show_findings,
    stderr_console,
    stdout_console,
    usage_error,
    visible,
)  # fmt: skip
from fasttune.export.llama import Sampling
from fasttune.files import append_line
from fasttune.terminal import chat_input

# What stands behind a command, and what it does.
COMMANDS = {
    "/help": ("", N_("this list")),
    "/system": (N_("[TEXT]"), N_("show the system prompt, or set it and begin anew")),
    "/reset": ("", N_("forget the conversation")),
    "/retry": ("", N_("answer the last question again")),
    "/compare": ("", N_("let the base answer the last question too")),
    "/save": (N_("FILE"), N_("add the conversation to a data file (.jsonl)")),
    "/bye": ("", N_("end the chat, as Ctrl-D does")),
}
BYE = ("/bye", "/exit", "/quit")  # the first is Ollama's
# Why an answer ended otherwise than by its end token; Ctrl-C needs no word.
ENDINGS = {
    "context": N_("cut: the context is full; /reset begins anew"),
    "repetition": N_("stopped: the answer repeated itself"),
}


@dataclass(frozen=True)
class ChatRequest:
    """What `fasttune chat` was asked for: names of models, one question or None for a conversation, a system prompt in
    place of each model's own, and whether a run's adapter answers in place of its GGUF file. `temperature` and
    `max_new_tokens` take the place of those that the first model's run is served with."""

    names: tuple[str, ...]
    root: Path
    prompt: str | None
    system: str | None
    adapter: bool
    temperature: float | None = None
    max_new_tokens: int | None = None


class Chat:
    """The conversations of one chat, a model each, which are asked the same questions and sampled alike: as the first
    model's run is served.

    `base` is the conversation with the base, loaded when /compare first asks for it.
    """

    def __init__(self, request: ChatRequest, models: Sequence[Named], loading: contextlib.ExitStack) -> None:
        self.request, self.models, self.loading = request, models, loading
        self.sampled = speakers.served_sampling(models[0], request.temperature, request.max_new_tokens)
        self.typed = request.prompt is None and can_ask()
        self.conversations = {self.title(model): self.begin(model) for model in models}
        self.base: Conversation | None = None

    def title(self, model: Named) -> str:
        """How a model is called on the screen: a file with its run."""
        if model.run is not None and model.source.name.endswith(".gguf"):
            return f"{model.source.name} ({model.run.id})"
        return model.source.name

    def begin(self, model: Named) -> Conversation:
        """A conversation with a model, which is loaded now."""
        system = model.system if self.request.system is None else self.request.system
        with waiting(_("loading {name}", name=model.source.name)):
            return Conversation(self.loading.enter_context(speakers.opened(model)), system)

    # Questions and answers --------------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """Let every model answer a question."""
        for title, conversation in self.conversations.items():
            self.show(title, conversation, conversation.ask(question, self.sampling()))

    def sampling(self) -> Sampling:
        """How this answer is sampled: by a seed of its own."""
        return replace(self.sampled, seed=random.randrange(2**31))

    def show(self, title: str, conversation: Conversation, pieces: Pieces) -> None:
        """Print an answer as it comes. Ctrl-C ends it, and the chat only where nobody is at the terminal."""
        if len(self.conversations) > 1 or conversation is self.base:
            stdout_console.print(f"[bold]{escape(title)}{_(COLON).rstrip()}[/]", soft_wrap=True)
        try:
            with contextlib.closing(pieces):
                write(self.until_first(pieces))
        except KeyboardInterrupt:
            if not self.typed:
                raise
        sys.stdout.write("\n")
        sys.stdout.flush()
        if conversation.reply is not None:
            self.remark(conversation.reply)

    def until_first(self, pieces: Pieces) -> Iterator[str]:
        """The pieces, with a spinner while the first is computed."""
        with waiting(_("thinking")) if self.typed else contextlib.nullcontext():
            first = next(pieces, "")
        yield first
        yield from pieces

    def remark(self, reply: Reply) -> None:
        """What has to be said about an answer, and at a terminal its speed."""
        if reply.turns_left_out:
            say(
                ngettext(
                    "the oldest turn no longer fits into the context and was left out",
                    "the {n} oldest turns no longer fit into the context and were left out",
                    reply.turns_left_out,
                )
            )
        if reply.ending == "length":
            say(_("cut at {n} tokens; `--max-new-tokens` allows more", n=reply.tokens))
        elif why := ENDINGS.get(reply.ending):
            say(_(why))
        if self.typed:
            figures = _("{tokens} tokens, {rate} tokens/s", tokens=reply.tokens, rate=f"{reply.tokens_per_second:.1f}")
            stderr_console.print(f"[dim]{escape(figures)}[/]", soft_wrap=True)

    # Commands ---------------------------------------------------------------------------------------------------

    def obey(self, line: str) -> None:
        """Do what a command says. Raises FasttuneError where it can't be done."""
        word, _space, rest = line.partition(" ")
        if word == "/help":
            show_help()
        elif word == "/system":
            self.set_system(rest.strip())
        elif word == "/reset":
            self.forget()
            say(_("the conversation begins anew"))
        elif word == "/retry":
            self.retry()
        elif word == "/compare":
            self.compare()
        elif word == "/save":
            self.save(rest)
        else:
            say(_("there is no command {word}; /help lists those there are", word=word))

    def set_system(self, text: str) -> None:
        """Show the system prompt of each model, or set it for all."""
        if not text:
            for title, conversation in self.conversations.items():
                system = conversation.system or _("no system prompt")
                say(f"{title}{_(COLON)}{system}")
            return
        for conversation in self.conversations.values():
            conversation.system = text
        self.forget()
        say(_("the system prompt is set; the conversation begins anew"))

    def forget(self) -> None:
        """Forget the turns of all conversations."""
        for conversation in self.conversations.values():
            conversation.reset()

    def retry(self) -> None:
        """The last question again, for every model that has one."""
        asked = any(conversation.question is not None for conversation in self.conversations.values())
        if asked and self.sampled.temperature <= 0:
            say(_("at temperature 0 every answer is the likeliest one: the same again"))
        for title, conversation in self.conversations.items():
            if conversation.question is None:
                say(_("nothing was asked yet"))
            else:
                self.show(title, conversation, conversation.ask_again(self.sampling()))

    def compare(self) -> None:
        """The last question to the base, after the same turns."""
        spoken = next(iter(self.conversations.values()))
        if spoken.question is None:
            say(_("nothing was asked yet"))
            return
        if self.base is None:
            self.base = self.begin(sources.base_of(self.models[0]))
        self.base.system, self.base.turns = spoken.system, list(spoken.turns)
        self.show(speakers.BASE, self.base, self.base.ask_again(self.sampling()))

    def save(self, name: str) -> None:
        """Add every conversation to a data file, a line each. Raises FasttuneError where that can't be written."""
        if not name.strip():
            say(_("name the file: `/save FILE.jsonl`"))
            return
        spoken = [conversation for conversation in self.conversations.values() if conversation.turns]
        if not spoken:
            say(_("nothing was asked yet"))
            return
        file = chat_input.file_named(name)
        save_as_samples(file, spoken)
        check = command_line(["check", str(file)])
        say(
            ngettext(
                "1 conversation added to {file}; `{check}` reads it as training data",
                "{n} conversations added to {file}; `{check}` reads them as training data",
                len(spoken),
                file=file,
                check=check,
            )
        )


def chat(request: ChatRequest) -> None:
    """Answer one question, or all that a person types or a pipe holds, until Ctrl-D, /bye or the end of the pipe.

    Raises FasttuneError where a model is missing, damaged or can't be loaded.
    """
    prompt = chat_input.option_text("--prompt", request.prompt)
    request = replace(request, prompt=prompt, system=chat_input.option_text("--system", request.system))
    models = speakers.find(request.names, request.root, adapter=request.adapter)
    with contextlib.ExitStack() as loading:
        running = Chat(request, models, loading)
        if request.prompt is not None:
            running.ask(request.prompt)
        elif running.typed:
            say(ngettext("{names} answers", "{names} answer", len(models), names=", ".join(running.conversations)))
            say(_("/help lists the commands, Ctrl-D ends the chat"))
            talk(running, chat_input.TypedLines(list(COMMANDS)))
        else:
            for question in filter(None, map(str.strip, chat_input.piped_lines())):
                running.ask(question)


def talk(running: Chat, lines: Iterable[str]) -> None:
    """The conversation with a person; an error is shown and the chat goes on."""
    for line in map(str.strip, lines):
        if line.split(" ")[0] in BYE:
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                running.obey(line)
            else:
                running.ask(line)
        except FasttuneError as problem:
            show_findings(problem.findings)


def write(pieces: Iterable[str]) -> None:
    """Print pieces as they come, with the control characters in them shown."""
    for piece in pieces:
        sys.stdout.write(visible(piece))
        sys.stdout.flush()


def show_help() -> None:
    """The commands and the keys."""
    stderr_console.print(command_list())
    say(_("  Enter sends, Alt+Enter begins a new line, Ctrl-C stops an answer, Up shows earlier questions"))


def command_list() -> Padding:
    """A row for each command; what is too long for the screen goes on below its own column."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for word, (argument, meaning) in COMMANDS.items():
        table.add_row(escape(f"{word} {_(argument)}" if argument else word), escape(_(meaning)))
    return Padding(table, (0, 0, 0, 2))


def waiting(text: str) -> contextlib.AbstractContextManager[object]:
    """A spinner with a text, on a terminal; nothing elsewhere."""
    return stderr_console.status(escape(text)) if stderr_console.is_terminal else contextlib.nullcontext()


def save_as_samples(file: Path, conversations: Sequence[Conversation]) -> None:
    """Add conversations to a JSON Lines file in the format that `data.train` reads. Raises FasttuneError where the file
    has another name or can't be written."""
    if file.suffix != ".jsonl":
        fix = _("name it {name}", name=f"{file.name}.jsonl")
        raise usage_error("not-jsonl", _("a conversation is kept as a line of a .jsonl file"), where=str(file), fix=fix)
    try:
        for spoken in conversations:
            messages = [{"role": one.role, "content": one.content} for one in spoken.messages]
            append_line(file, {"messages": messages})
    except OSError as problem:
        what = _("the file can't be written: {reason}", reason=problem.strerror or problem)
        raise usage_error("not-writable", what, where=str(file)) from None
