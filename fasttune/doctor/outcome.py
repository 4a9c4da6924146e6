"""One check of the machine and its result. A check that crashes is a result too, never a traceback."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from fasttune.console import N_, FasttuneError, Finding, Level, _

State = Literal["ok", "warning", "error", "not-applicable", "crashed"]
STATES: dict[State, str] = {
    "ok": N_("ok"),
    "warning": N_("warning"),
    "error": N_("error"),
    "not-applicable": N_("not applicable"),
    "crashed": N_("crashed"),
}
# The names are the findings' codes and never change.
TITLES = {
    "gpu-driver": N_("the NVIDIA driver"),
    "torch-build": N_("torch's build against driver and GPU"),
    "gpu-memory": N_("free GPU memory, and who holds the rest"),
    "package-set": N_("installed packages against the tested set"),
    "linux-memory": N_("memory that Windows lends to Linux"),
    "project-drive": N_("the drive that the project lies on"),
    "disk": N_("free disk and write speed"),
    "hub": N_("model hub"),
    "ollama": N_("Ollama"),
    "llama-cpp": N_("llama.cpp"),
    "matrix-product": N_("a matrix product"),
    "triton-kernel": N_("a Triton kernel"),
    "nf4-round-trip": N_("4-bit weights (NF4), there and back"),
    "pinned-memory": N_("pinned memory"),
    "memory-spill": N_("GPU memory that spills into RAM"),
    "training-steps": N_("three training steps"),
}
LEVELS: dict[State, Level] = {"warning": "warning", "error": "error", "crashed": "error"}


@dataclass(frozen=True)
class Check:
    """The result of a check: its state, what was measured, why that matters, and the one command that mends it.

    The three texts are in the user's language; `seconds` is what the check took.
    """

    name: str
    state: State
    measured: str
    why: str = ""
    fix: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """What was checked, in the user's language."""
        return _(TITLES[self.name])


def ok(name: str, measured: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, "ok", measured)


def not_applicable(name: str, reason: str) -> Check:
    """A check that means nothing on this machine, and why."""
    return Check(name, "not-applicable", reason)


def crashed(name: str, problem: BaseException) -> Check:
    """The result of a check that raised an error of its own."""
    what = _("the check itself failed: {problem}", problem=f"{type(problem).__name__}: {problem}".splitlines()[0])
    fix = _("this is a fault in fasttune: report it with `fasttune doctor --report`")
    return Check(name, "crashed", what, fix=fix)


def from_error(name: str, problem: FasttuneError) -> Check:
    """The result of a check whose work ended with a message for the user."""
    first = problem.findings[0]
    return Check(name, "error", first.what, first.why, first.fix)


def carried_out(name: str, work: Callable[[], Check], seconds: float) -> Check:
    """The result of a check, or that it gave none within its time limit; its thread is left behind then."""
    results: queue.Queue[Check] = queue.Queue()
    began = time.monotonic()

    def work_or_crash() -> None:
        try:
            results.put(work())
        except FasttuneError as problem:
            results.put(from_error(name, problem))
        except Exception as problem:
            results.put(crashed(name, problem))

    threading.Thread(target=work_or_crash, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        result = replace(no_answer(name, seconds), state="warning", why="")
    return replace(result, seconds=time.monotonic() - began)


def no_answer(name: str, seconds: float) -> Check:
    """The result of a check that did not end within its time limit."""
    what = _("no answer within {seconds:.0f} s", seconds=seconds)
    return Check(name, "error", what, _("what hangs here hangs in a training too"))


def findings(checks: list[Check]) -> list[Finding]:
    """What is wrong, as findings: a warning, an error, or a check that crashed."""
    return [
        Finding(check.name, LEVELS[check.state], check.title, check.measured, check.why, check.fix)
        for check in checks
        if check.state in LEVELS
    ]
