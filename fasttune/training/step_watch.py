"""Steps that suddenly take several times as long: noticed while training, said once. Arithmetic on seconds, no torch.

On Windows, and so under WSL2, the driver moves memory of the GPU into the computer's own where the GPU has no more,
instead of refusing it: no out of memory, but every step takes ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from fasttune.console import Finding, _
from fasttune.machine import is_wsl

TIMES = 3.0  # as long as the median
IN_A_ROW = 2  # one slow step may be a moment in which the computer did something else
FIRST_STEPS = 5  # that have to be known before: the first one compiles


@dataclass
class StepWatch:
    """The seconds a computed token of the steps so far; `has_spoken` once a slow step was named."""

    seconds: list[float] = field(default_factory=list)
    slow: int = 0
    has_spoken: bool = False

    def add(self, step: int, tokens: int, seconds: float) -> list[Finding]:
        """Count a step of `tokens` computed tokens; a warning where it is the second in a row that took TIMES as long a
        token as the median of all before, once a run."""
        rate = seconds / max(1, tokens)
        usual = median(self.seconds) if len(self.seconds) >= FIRST_STEPS else None
        if usual is None or rate < TIMES * usual:
            self.slow = 0
            self.seconds.append(rate)
            return []
        self.slow += 1
        if self.has_spoken or self.slow < IN_A_ROW:
            return []
        self.has_spoken = True
        return [slow_step(step, seconds, rate / usual)]


def slow_step(step: int, seconds: float, times: float) -> Finding:
    """The warning that a step took so many times as long as usual."""
    where = _("step {step}", step=step)
    what = _(
        "it took {seconds:.1f} s, {times:.0f} times as long a token as the steps before", seconds=seconds, times=times
    )
    why = _("another program uses the GPU, or it was slowed down because it is hot or on battery")
    if is_wsl():
        why = _("when the GPU's memory is full, the Windows driver moves some of it into the computer's memory, which "
                "is many times slower; another program may have taken the memory")  # fmt: skip
    fix = _("close what else uses the GPU (`nvidia-smi` shows its memory); Ctrl-C stops the training with a checkpoint "
            "that the same command resumes")  # fmt: skip
    return Finding("step-slowed-down", "warning", where, what, why, fix)
