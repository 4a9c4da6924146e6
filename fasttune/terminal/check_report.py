"""What `fasttune check` prints: findings by code, histograms of blocks, what shared prefixes save."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.console import (
    COLON,
    COMMA,
    Finding,
    _,
    exit_code,
    ngettext,
    print_json,
    put,
    say,
    show_findings,
    stdout_console,
    worst_first,
)
from fasttune.data.messages import listed
from fasttune.terminal.verdicts import can_show

if TYPE_CHECKING:
    from fasttune.analysis.check import Figures, Report

SHOWN_OF_A_CODE = 3  # findings of one code that are shown in full; --json gives all
BINS, WIDTH = 8, 40


def show(report: Report, *, as_json: bool) -> int:
    """Print a report; the exit code, 1 where a finding is an error."""
    findings = worst_first(report.findings)
    if as_json:
        print_json({"findings": [asdict(one) for one in findings], "figures": report.figures.document()})
        return exit_code(findings)
    show_by_code(findings)
    for line in figure_lines(report.figures, stdout_console.encoding, stdout_console.width):
        put(line)
    counts = [sum(one.level == level for one in findings) for level in ("error", "warning", "info")]
    say(count_line(*counts))
    return exit_code(findings)


def count_line(errors: int, warnings: int, infos: int) -> str:
    """`0 errors, 1 warning, 3 notes`"""
    counts = [
        ngettext("{n} error", "{n} errors", errors),
        ngettext("{n} warning", "{n} warnings", warnings),
        ngettext("{n} note", "{n} notes", infos),
    ]
    return _(COMMA).join(counts)


def show_mended(out: Path, done: Sequence[Finding], *, as_json: bool) -> int:
    """Print what a mended copy differs in, line by line; the exit code 0."""
    if as_json:
        print_json({"written": str(out), "changes": [asdict(one) for one in done]})
        return 0
    for one in done:
        put(f"{one.where}{_(COLON)}{one.what}")
    say(ngettext("wrote {out}: {n} change", "wrote {out}: {n} changes", len(done), out=out))
    return 0


def show_by_code(findings: Sequence[Finding]) -> None:
    """Print the first findings of each code in full, and where the others are."""
    by_code: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_code[finding.code].append(finding)
    for code, same in by_code.items():
        show_findings(same[:SHOWN_OF_A_CODE])
        if more := same[SHOWN_OF_A_CODE:]:
            places = listed([one.where for one in more])
            say(ngettext("  and {n} more {code}: {places}", "  and {n} more {code}: {places}", len(more), code=code,
                         places=places))  # fmt: skip


def figure_lines(figures: Figures, encoding: str, columns: int) -> list[str]:
    """The figures in words, with a histogram of the samples' tokens and one of the answers' characters."""
    block = "█" if can_show("█", encoding) else "#"
    tokens = _("tokens a sample") if figures.exact else _("tokens a sample, estimated")
    lines = [_("{samples} samples to train on, {val} held out", samples=figures.samples, val=figures.held_out)]
    lines += [replay_line(figures.general)] if figures.general else []
    for title, values in ((tokens, figures.sample_tokens), (_("characters an answer"), figures.answer_characters)):
        lines += ["", title, *histogram(values, block, columns)] if values else []
    return [*lines, *prefix_lines(figures)]


def replay_line(count: int) -> str:
    """What data.replay adds to the samples, for `check` and `plan`."""
    return ngettext("and {n} general conversation of replay, from fasttune/general/, which is trained on too",
                    "and {n} general conversations of replay, from fasttune/general/, which are trained on too",
                    count)  # fmt: skip


def histogram(values: Sequence[int], block: str, columns: int) -> list[str]:
    """A line for each of at most BINS equal parts of the range: where it begins and ends, a bar, how many; the bar as
    long as the columns of the terminal let it be, at most WIDTH."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // BINS))
    counts = [0] * (-(-(high - low + 1) // width))
    for value in values:
        counts[(value - low) // width] += 1
    label = len(str(high))
    longest = max(1, min(WIDTH, columns - 2 * label - len(str(max(counts))) - len("– ") - len(" ")))
    return [
        f"{low + n * width:>{label}}–{low + (n + 1) * width - 1:<{label}} "
        f"{block * (-(-count * longest // max(counts)))} {count}"
        for n, count in enumerate(counts)
    ]


def prefix_lines(figures: Figures) -> list[str]:
    """What shared prefixes save, and that a repeated system prompt is right."""
    if not figures.prefix_tokens:
        return []
    saved = 1 - figures.prefix_computed / figures.prefix_tokens
    what = _(
        "shared prefixes: {tokens:,} tokens of {steps} steps, {computed:,} of them computed ({saved:.0%} saved)",
        tokens=figures.prefix_tokens,
        steps=figures.steps,
        computed=figures.prefix_computed,
        saved=saved,
    )
    if not figures.repeated_system_prompts:
        return ["", what]
    right = _(
        "the repeated system prompt is right and costs next to nothing: the loss is not taken on it, a row computes it "
        "once, and the model must see in training what it is served with"
    )
    return ["", what, right]
