"""What is shown while fasttune works: start-up phases with their seconds, and the progress line of a training.

This file does not know models, trainers or files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from fasttune.console import _, say, stderr_console

WIDE = 110  # columns from which on the live line has room for all of it
RATE_WIDE = 72  # columns from which on the line of bytes shows their rate
PLAIN_LINE_EVERY = 10.0  # seconds between lines where stderr is no terminal
RATE_FROM = 600.0  # seconds back, for the time left: a step on a CPU may take minutes
SMOOTHING = 0.2  # weight of the newest step in the loss and the accuracy that are shown


class PhaseTimer:
    """Shows the name of each start-up phase while it runs and prints how long it took; `seconds` holds that by the
    phase's key."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, key: str, name: str) -> Iterator[Callable[[str], None]]:
        """Show a phase's name while the block runs; what the block gets puts another text in its place."""
        started = time.monotonic()
        with stderr_console.status(name) as status:
            yield lambda text: status.update(text)
        self.record(key, name, time.monotonic() - started)

    def record(self, key: str, name: str, seconds: float) -> None:
        """Keep and print the seconds of a phase that is over."""
        self.seconds[key] = round(seconds, 3)
        say(_("{phase}: {seconds:.1f} s", phase=name, seconds=seconds))


class CountLine:
    """`linzhi answers  120/480` and the time left, while the block lasts: a moving line in a terminal, elsewhere a
    plain line every PLAIN_LINE_EVERY seconds."""

    def __init__(self, text: str, total: int) -> None:
        self.text, self.total, self.done = text, total, 0
        self.last_line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=stderr_console, disable=not stderr_console.is_terminal)

    def __enter__(self) -> CountLine:
        self.progress.start()
        self.task = self.progress.add_task(escape(self.text), total=self.total)
        return self

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        self.progress.update(self.task, completed=self.done)
        now = time.monotonic()
        if not stderr_console.is_terminal and now - self.last_line >= PLAIN_LINE_EVERY:
            self.last_line = now
            say(f"{self.text} {self.done}/{self.total}")

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()
        if self.done == self.total:
            say(f"{self.text} {self.done}/{self.total}")


class ByteLine:
    """`linzhi-F16.gguf  120/988 MB` with the rate and the time left, while the block lasts: a moving line in a
    terminal, elsewhere a plain line every PLAIN_LINE_EVERY seconds."""

    def __init__(self, text: str, total: int) -> None:
        self.text, self.total, self.done = text, total, 0
        self.started = self.last_line = time.monotonic()
        # Where the terminal is narrow, the name is cut short and the rate left out; bytes and time stay whole.
        is_wide, whole = stderr_console.width >= RATE_WIDE, Column(no_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(20 if is_wide else 8),
            DownloadColumn(table_column=whole),
            *([TransferSpeedColumn(table_column=whole)] if is_wide else []),
            TimeRemainingColumn(table_column=whole),
            console=stderr_console,
            expand=stderr_console.width < WIDE,
            disable=not stderr_console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> ByteLine:
        self.progress.start()
        self.task = self.progress.add_task(escape(self.text), total=self.total)
        return self

    def advance(self, count: int) -> None:
        """So many bytes more are written."""
        self.done += count
        self.progress.update(self.task, completed=self.done)
        now = time.monotonic()
        if not stderr_console.is_terminal and now - self.last_line >= PLAIN_LINE_EVERY:
            self.last_line = now
            left = (now - self.started) * (self.total - self.done) / max(1, self.done)
            say(_("{name}: {done:.0f} of {total:.0f} MB, {seconds:.0f} s left", name=self.text, done=self.done / 1e6,
                  total=self.total / 1e6, seconds=left))  # fmt: skip

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()


class ProgressLine:
    """Step, smoothed loss and accuracy, tokens/s and time left: a moving line in a terminal, elsewhere a plain line
    every PLAIN_LINE_EVERY seconds.

    `tokens[n]` is the number of tokens of the first n steps: bar and time left go by tokens, as steps differ in length.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.total = tokens, len(tokens) - 1
        self.progress = Progress(
            # Where the terminal is narrow, the figures are cut short; bar, count and time stay whole.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=40 if stderr_console.width >= WIDE else 10),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            console=stderr_console,
            expand=stderr_console.width < WIDE,
            disable=not stderr_console.is_terminal,
            speed_estimate_period=RATE_FROM,
        )
        self.task: TaskID | None = None
        self.last_line = 0.0
        self.smoothed: dict[str, float] = {}

    def smooth(self, logs: Mapping[str, float], key: str) -> float:
        """A figure's exponential mean over the logged steps: a single step's jumps with its few samples."""
        before = self.smoothed.get(key, logs[key])
        self.smoothed[key] = before + SMOOTHING * (logs[key] - before)
        return self.smoothed[key]

    def start(self, step: int) -> None:
        """Show the line; `step` steps were trained before."""
        self.progress.start()
        self.task = self.progress.add_task(
            _("first step"), total=self.tokens[-1], completed=self.tokens[step], count=self.count(step)
        )

    def count(self, step: int) -> str:
        """`145/290`"""
        return f"{step:{len(str(self.total))}}/{self.total}"

    def show(self, step: int, logs: Mapping[str, float]) -> None:
        """Show the figures of a history line: of a step, or of an evaluation."""
        if "eval_loss" in logs:
            say(
                _(
                    "step {step}: held-out loss {loss:.4f}, accuracy {accuracy:.1%}",
                    step=step,
                    loss=logs["eval_loss"],
                    accuracy=logs["eval_mean_token_accuracy"],
                )
            )
        if "loss" not in logs or self.task is None:
            return
        text = _(
            "loss {loss:.4f}  accuracy {accuracy:.1%}  {rate:,.0f} tokens/s",
            loss=self.smooth(logs, "loss"),
            accuracy=self.smooth(logs, "mean_token_accuracy"),
            rate=logs["tokens_per_second"],
        )
        self.progress.update(self.task, completed=self.tokens[step], description=text, count=self.count(step))
        now = time.monotonic()
        last = step == self.total
        if not stderr_console.is_terminal and (last or now - self.last_line >= PLAIN_LINE_EVERY):
            self.last_line = now
            say(_("step {step}/{total}  {text}", step=step, total=self.total, text=text))

    def describe(self, text: str) -> None:
        """Show a text in place of the figures until the next step; only where the line moves."""
        if self.task is not None:
            self.progress.update(self.task, description=text)

    def stop(self) -> None:
        """Remove the line."""
        self.progress.stop()
