"""What `fasttune doctor` prints: a line a check as soon as its result is known, or one document, or a bug report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from fasttune.console import (
    COLON,
    _,
    exit_code,
    ngettext,
    print_json,
    print_line,
    put,
    say,
    stdout_console,
    styled,
    worst_first,
)
from fasttune.doctor.bug_report import report
from fasttune.doctor.examine import examine, json_document
from fasttune.doctor.outcome import STATES, Check, State, findings

STYLES: dict[State, str] = {
    "ok": "green", "warning": "yellow", "error": "bold red", "not-applicable": "dim", "crashed": "bold magenta",
}  # fmt: skip


def show_doctor(runs: Path, *, trains: bool, as_json: bool, as_report: bool) -> int:
    """Examine the machine and show the results; the exit code, 1 where something is wrong that stops a training."""
    say(_("examining this machine; three training steps come last") if trains else _("examining this machine"))
    checks = []
    for check in examine(runs, trains=trains):
        checks.append(check)
        if not as_json and not as_report:
            show(check)
    found = worst_first(findings(checks))
    if as_json:
        print_json({"findings": [asdict(finding) for finding in found], "checks": json_document(checks)})
    elif as_report:
        stdout_console.print(report(checks), markup=False, soft_wrap=True)
    else:
        say(summary(checks))
    return exit_code(found)


def show(check: Check) -> None:
    """Print a check: its state, its title and what was measured; what mends it below."""
    state = f"[{STYLES[check.state]}]{escape(_(STATES[check.state]))}[/]"
    print_line(
        styled(f"{state}{_(COLON)}[bold]{escape(check.title)}[/]{_(COLON)}{escape(check.measured)}"), stdout_console
    )
    if check.why:
        put(f"  {check.why}")
    if check.fix:
        print_line(styled(f"  [green]{_('hint')}{_(COLON)}[/]{escape(check.fix)}"), stdout_console)


def summary(checks: list[Check]) -> str:
    """The last line: how many are wrong."""
    wrong = len(findings(checks))
    if not wrong:
        return _("nothing is wrong with this machine")
    return ngettext("{n} of {all} checks found something; `fasttune doctor --report` writes a bug report",
                    "{n} of {all} checks found something; `fasttune doctor --report` writes a bug report", wrong,
                    all=len(checks))  # fmt: skip
