"""A chat template is a stranger's program: rendered within limits on time, memory and output, its failures in one kind.

transformers renders it in Jinja's sandbox, which keeps it from files and from Python's insides, but not from a loop
without end or from a text that fills the memory. A timer interrupts the first; the kernel refuses the memory for the
second (`RLIMIT_AS`, where the system says how much the process has).
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError

from fasttune.console import N_, FasttuneError, _, error

SECONDS = 5.0  # a template that ships with a model takes a thousandth of that
CPU_SECONDS = 2.0  # which it must have worked: a busy machine is no fault of the template
MEMORY_BYTES = 2**30  # beyond what the process has
CHARACTERS = 1_000_000  # beyond the messages' own
FIX = N_("give the base a plain ChatML template (chat_template.jinja in its folder)")


class Tokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerFast that is used here."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


class TimeIsUp(BaseException):
    """Raised within the template; no Exception, since Jinja handles those."""


def render(tokenizer: Tokenizer, conversation: Sequence[dict[str, str]], *, prompt: bool = False) -> str:
    """The conversation as the tokenizer's chat template writes it; with `prompt`, followed by the generation prompt.

    Raises TemplateError, with the reason, where the template fails; FasttuneError where it goes beyond a limit.
    """
    allowed = CHARACTERS + sum(len(message["content"]) for message in conversation)
    try:
        with limited():
            text = tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=prompt)
    except TimeIsUp:
        raise beyond(tokenizer, _("it did not end within {seconds:.0f} seconds", seconds=SECONDS)) from None
    except MemoryError:
        raise beyond(tokenizer, _("it asks for more than {size} GiB of memory", size=MEMORY_BYTES // 2**30)) from None
    except TemplateError:
        raise
    except Exception as failure:  # whatever a template can make Python raise: 1/0, endless recursion, a wrong type
        raise TemplateError(f"{type(failure).__name__}: {failure}") from None
    if len(str(text)) > allowed:
        raise beyond(tokenizer, _("it writes more than {count:,} characters around the messages", count=CHARACTERS))
    return str(text)


def render_checked(tokenizer: Tokenizer, conversation: Sequence[dict[str, str]], *, prompt: bool = False) -> str:
    """As `render`; raises FasttuneError for a template that fails, too."""
    try:
        return render(tokenizer, conversation, prompt=prompt)
    except TemplateError as failure:
        what = _("the chat template fails: {reason}", reason=failure)
        raise error("template-refuses", what, where=place(tokenizer), fix=_(FIX)) from None


def place(tokenizer: Tokenizer) -> str:
    """Where the chat template lies: the base's folder."""
    return str(getattr(tokenizer, "name_or_path", ""))


def beyond(tokenizer: Tokenizer, reason: str) -> FasttuneError:
    """The error for a template that goes beyond a limit."""
    why = _("a chat template of a model takes a thousandth of a second and a few hundred characters")
    what = _("the chat template was stopped: {reason}", reason=reason)
    return error("template-beyond-limits", what, where=place(tokenizer), why=why, fix=_(FIX))


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise TimeIsUp in the block after SECONDS of which it worked CPU_SECONDS, MemoryError beyond MEMORY_BYTES.

    The timer needs the main thread, where fasttune renders; elsewhere only the memory is limited.
    """
    began = time.thread_time()

    def stop(_signal: int, _frame: Any) -> None:
        if time.thread_time() - began >= CPU_SECONDS:
            raise TimeIsUp

    with memory_limit():
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handler = signal.signal(signal.SIGALRM, stop)
        try:
            signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.5)  # again and again, should an interruption be swallowed
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Let the process have MEMORY_BYTES more of address space than it has, where the system says how much that is."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceilings = [pages * resource.getpagesize() + MEMORY_BYTES, *(one for one in (soft, hard) if one >= 0)]
    resource.setrlimit(resource.RLIMIT_AS, (min(ceilings), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
