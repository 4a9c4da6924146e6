"""What `fasttune diagnose` shows: the verdict in one sentence, the evidence with its steps, one command to type next,
and the users' checklist where it is asked for."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from fasttune.analysis.checklist import Item
from fasttune.analysis.diagnose import OURS, Diagnosis, diagnose
from fasttune.analysis.evidence import label
from fasttune.analysis.training_facts import history_of
from fasttune.console import COLON, STYLES, Finding, _, exit_code, print_json, put, stdout_console
from fasttune.terminal.verdicts import BLOCKS, can_show, curves


def show(root: Path, name: str, *, as_json: bool, with_checklist: bool) -> int:
    """Print the diagnosis of a run or a folder; the exit code, 1 where a finding is an error.

    Raises UsageError where there is no such run or folder, and FasttuneError where its documents are damaged.
    """
    found = diagnose(root, name)
    if as_json:
        print_json(document(found))
    else:
        for line, style in lines(found, stdout_console.width, stdout_console.encoding):
            put(line, style)
        if with_checklist:
            for line in checklist_lines(found.checklist):
                put(line)
    return exit_code(found.findings)


def document(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis for scripts; `findings` are worst first."""
    return {
        "findings": [asdict(finding) for finding in found.findings],
        "where": found.where,
        "trainer": found.trainer,
        "verdict": found.verdict,
        "evidence": [asdict(fact) for fact in found.evidence],
        "verdict_line": found.verdict_line,
        "because": found.because.code if found.because else "",
        "command": found.command,
        "checklist": [asdict(item) for item in found.checklist],
    }


def lines(found: Diagnosis, width: int, encoding: str) -> list[tuple[str, str]]:
    """(line, style) of all that is shown: verdict, curves, figures, the other findings, what to do next."""
    first, others = found.findings[:1], found.findings[1:]
    style = STYLES[first[0].level] if first else ""
    shown = [(f"{found.where}{_(COLON)}{found.verdict}", "green" if is_healthy(first) else style)]
    shown += [(f"  {first[0].why}", "")] if first and first[0].why else []
    shown += [(f"  {found.verdict_line}", "")] if found.verdict_line else []
    if can_show(BLOCKS, encoding):
        shown += [("", ""), *((f"  {line}", "") for line in curves(history_of(found.curve), width - 2))]
    names = [label(fact) for fact in found.evidence]
    column = max(map(cell_len, names), default=0)
    shown.append(("", ""))
    for name, fact in zip(names, found.evidence, strict=True):
        shown.append((f"  {name}{' ' * (column - cell_len(name))}  {fact.text}", ""))
    if others:
        shown += [("", ""), (_("besides:"), "bold")]
    for finding in others:
        shown += besides(finding, found)
    return shown + next_lines(found)


def is_healthy(findings: tuple[Finding, ...]) -> bool:
    """Whether the first finding is that all is well."""
    return bool(findings) and findings[0].code == "healthy"


def besides(finding: Finding, found: Diagnosis) -> list[tuple[str, str]]:
    """A finding after the first: level, what, why, and its remedy where it is another than what is to be done next."""
    place = f"{finding.where}{_(COLON)}" if finding.where != found.where else ""
    text = [(f"  {_(finding.level)}{_(COLON)}{place}{finding.what}", STYLES[finding.level])]
    text += [(f"    {finding.why}", "")] if finding.why else []
    return text + (
        [(f"    {_('hint')}{_(COLON)}{finding.fix}", "")] if finding.fix.strip("`") not in ("", found.command) else []
    )


def next_lines(found: Diagnosis) -> list[tuple[str, str]]:
    """What to type or to change next."""
    is_ours = found.trainer == OURS
    heading = _("type this next:") if is_ours else _("change this setting of {trainer} next:", trainer=found.trainer)
    if is_healthy(found.findings):
        heading = _("nothing to mend: talk to it, that is what counts")
        if not is_for_talk(found.command):
            heading = _("nothing to mend; what is served has no file yet, so make it, then talk to it")
    elif not found.command:
        return []
    command = [(f"  {found.command}", "green")] if found.command else []
    return [("", ""), (heading, "green" if is_healthy(found.findings) else "bold"), *command]


def is_for_talk(command: str) -> bool:
    """Whether the command that uses a run talks to it: else it makes the file first."""
    return "export" not in shlex.split(command)


def checklist_lines(items: tuple[Item, ...]) -> list[str]:
    """The users' checklist, answered."""
    headings = {"before": _("before training"), "during": _("during training"), "after": _("after training")}
    marks = {"yes": "[x]", "no": "[-]", "open": "[ ]"}
    shown: list[str] = ["", _("checklist ([x] yes, [-] no, [ ] open):")]
    for stage, heading in headings.items():
        shown.append(f"  {heading}")
        for item in items:
            if item.stage == stage:
                shown.append(
                    f"    {marks[item.answer]} {item.question}" + (f"{_(COLON)}{item.reason}" if item.reason else "")
                )
    return shown
