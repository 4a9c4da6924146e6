"""Two pieces of work at once, one of them in a process of its own that has all the objects of this one (fork).

Python computes on one core a process, and handing hundreds of thousands of samples to another process takes longer than
what is computed of them; a forked one has them already. Only its result is handed back.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Beside = TypeVar("Beside")
Here = TypeVar("Here")


def can_fork() -> bool:
    """Whether there is a second core, and a system that forks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return cores > 1 and "fork" in multiprocessing.get_all_start_methods()


def side_by_side(beside: Callable[[], Beside], here: Callable[[], Here]) -> tuple[Beside, Here]:
    """What both return; `beside` is called in a forked process while `here` is called in this one.

    What `beside` returns has to be picklable, and what it changes stays in its process. Where that process ends without
    a result (an error, too little memory), `beside` is called here, and raises what it raises.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sending, beside), daemon=True)
    process.start()
    sending.close()
    try:
        mine = here()
        try:
            return receiving.recv(), mine
        except EOFError:
            return beside(), mine
    finally:
        process.terminate()
        process.join()
        receiving.close()


def send_result(sending: Connection, work: Callable[[], object]) -> None:
    """In the forked process: send what the work returns; nothing where it fails, which who waits for it then sees."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the other one ends this one
    with contextlib.suppress(Exception):
        sending.send(work())
