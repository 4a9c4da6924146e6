"""Signals that end a training early, with a checkpoint: Ctrl-C, SIGTERM, and SIGHUP where its terminal is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fasttune.console import _
from fasttune.training import distributed

if TYPE_CHECKING:
    from fasttune.training.trainer import StepTrainer


@contextlib.contextmanager
def stop_on_signal(trainer: StepTrainer) -> Iterator[None]:
    """In the block, the first Ctrl-C, SIGTERM or SIGHUP (the terminal was closed) ends training after the current step,
    with a checkpoint; a second Ctrl-C or SIGTERM raises KeyboardInterrupt."""
    outputs, hung_up = [number for number in (0, 1, 2) if ends_with_the_terminal(number)], False

    def stop(number: int, _frame: Any) -> None:
        nonlocal hung_up
        if number == signal.SIGHUP:
            hung_up = True
            mute(outputs)  # else the next line that is printed would end the process before it has saved
        if trainer.interrupted and (hung_up or distributed.world_size() > 1):
            return  # torchrun and shells send more signals after the first, and kill a process that takes too long
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True
        # os.write, since the signal may come within a print: Python files refuse reentrant writes.
        with contextlib.suppress(OSError):
            os.write(2, (_("stopping after this step; press Ctrl-C again to stop at once") + "\n").encode())

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it, and training is to outlive the terminal
        numbers.append(signal.SIGHUP)
    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        trainer.progress.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ends_with_the_terminal(number: int) -> bool:
    """Whether an open file is a terminal, or a pipe to a program such as `tee` that ends with it."""
    with contextlib.suppress(OSError):
        mode = os.fstat(number).st_mode
        return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
    return False


def mute(numbers: Sequence[int]) -> None:
    """Let these open files read and write nothing from now on."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(nothing, number)
    os.close(nothing)
