"""What `fasttune report` prints: where the page lies, how it is opened, and what could not be read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune import machine
from fasttune.analysis import report
from fasttune.console import FasttuneError, _, exit_code, print_json, say, show_findings, stdout_console
from fasttune.runs.store import Run


def show(root: Path, names: Sequence[str], out: Path | None, *, as_json: bool) -> int:
    """Write the page of runs and say where it lies; the exit code, 1 where something of a run can't be read.

    Raises FasttuneError for a name that no run has, and where the page can't be written.
    """
    written = report.report(root, names, out)
    if as_json:
        print_json({"page": str(written.path), **written.figures})
        return exit_code(written.problems)
    show_findings(written.problems)
    stdout_console.print(str(written.path), markup=False, soft_wrap=True)
    say(_("open it in a browser: {how}", how=how_to_open(written.path)))
    return exit_code(written.problems)


def how_to_open(path: Path) -> str:
    """What to type, or the address to open: under WSL2 a command that shows the page in Windows' browser."""
    in_windows = machine.windows_path(path.resolve())
    return f"`explorer.exe {shlex.quote(in_windows)}`" if in_windows else path.resolve().as_uri()


def written_after(run: Run) -> Path | None:
    """The page of a run that was just trained; where it can't be written that is said, and nothing else fails."""
    try:
        return report.write([run], run.report, counts_tokens=False).path
    except FasttuneError as problem:
        show_findings([replace(finding, level="warning") for finding in problem.findings])
        return None
