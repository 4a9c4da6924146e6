"""The one advisor: what a run came to, and what to type next.

    the files of a run ──► diagnose.of_run ──► Advice: the verdict of runs/judgement.py, the finding that decides,
                                               and its command, which `fasttune run` would take

The end of a training, the menu of a series, a plan beside an earlier run and the board's page of a run all ask here;
`fasttune diagnose` and the report show the whole diagnosis. So no two of them differ.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from fasttune.analysis import diagnose
from fasttune.console import FasttuneError, _
from fasttune.runs.store import Run


@dataclass(frozen=True)
class Advice:
    """`verdict` is the verdict with its reason, "" where there is none; `because` what decides what is to be done, in a
    sentence; `command` what to type, "" where nothing that can be typed helps. `is_well`: nothing is to be mended, and
    the command is the one that uses the run."""

    run: Run
    verdict: str
    because: str
    command: str
    is_well: bool

    @property
    def strategy(self) -> str:
        """The strategy that the command continues the run with; "" where it does something else."""
        words = shlex.split(self.command)
        return words[words.index("--continue") + 1] if "--continue" in words else ""


def of_run(run: Run) -> Advice | None:
    """The advice on a run; None where it has no logged step yet, or its documents are damaged."""
    try:
        found = diagnose.of_run(run)
    except FasttuneError:
        return None
    decides = found.because or next(iter(found.findings), None)
    return Advice(run, found.verdict_line, decides.what if decides else "", found.command, found.is_well)


def next_lines(advice: Advice | None) -> list[str]:
    """What is to be mended and the command to type for it; nothing where all is well."""
    if advice is None or advice.is_well or not advice.command:
        return []
    return [advice.because, _("type this next: `{command}`", command=advice.command)]
