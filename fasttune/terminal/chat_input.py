"""The questions of a chat: typed at a terminal, with history and editing keys, or read from a pipe, one a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from fasttune.console import _, say, usage_error
from fasttune.decoding import UndecodableText, decode_text
from fasttune.machine import cache_folder
from fasttune.recipe.values import UNDECODED

PROMPT, NEXT_LINE = "> ", "  "


class TypedLines:
    """Questions that a person types: Up and Down walk the history, which outlives the program; Enter sends, Alt+Enter
    begins a new line, and a paste of several lines stays one question. Ctrl-C empties the line, Ctrl-D ends."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.session: PromptSession[str] = PromptSession(
            history=history(),
            completer=WordCompleter([*commands], sentence=True),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=NEXT_LINE,
            key_bindings=keys(),
            input=create_input(sys.stdin),
            output=create_output(stdout=sys.stderr),
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self.session.prompt(PROMPT)
            except KeyboardInterrupt:
                say(_("Ctrl-D or /bye ends the chat"))
                continue
            except EOFError:
                return
            try:
                yield decoded(line, "utf-8")
            except UndecodableText:
                say(_("this line is no text in UTF-8 or GBK, so it was not asked; set the terminal to UTF-8"))


def keys() -> KeyBindings:
    """Enter sends the question, Alt+Enter makes a new line in it."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def history() -> History:
    """The history file, which only its owner may read; in memory where there is no place for one."""
    try:
        file = cache_folder() / "chat_history"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.open("a").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def piped_lines() -> Iterator[str]:
    """The lines of stdin, in UTF-8 or GB18030 each; one in another encoding is named and left out."""
    for number, line in enumerate(sys.stdin, 1):
        try:
            yield decoded(line, sys.stdin.encoding or "utf-8")
        except UndecodableText:
            say(_("line {number} is neither UTF-8 nor GB18030 text and is left out", number=number))


def decoded(text: str, encoding: str) -> str:
    """Text that Python read in an encoding, with lone surrogates for the bytes that are not in it: where there are any,
    its bytes read as UTF-8 or GB18030. Raises UndecodableText where they are neither."""
    return decode_text(text.encode(encoding, "surrogateescape"))[0] if UNDECODED.search(text) else text


def option_text(option: str, text: str | None) -> str | None:
    """The text of an option. Raises UsageError where it is no text in UTF-8 or GB18030."""
    try:
        return decoded(text, sys.getfilesystemencoding()) if text else text
    except UndecodableText:
        what, fix = _("this holds bytes that are not UTF-8 text"), _("type it in UTF-8")
        raise usage_error("not-utf-8", what, where=option, fix=fix) from None


def file_named(text: str) -> Path:
    """The path that a person typed, `~` and quotes around it understood."""
    return Path(text.strip().strip("'\"")).expanduser()
