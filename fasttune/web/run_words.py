"""What the board says of a run: its verdict with a colour, what it was asked and answered, and what to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fasttune.analysis import advisor
from fasttune.analysis.advisor import next_lines
from fasttune.analysis.remedies import use_command
from fasttune.analysis.words import arm_heading
from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, _
from fasttune.runs import documents
from fasttune.runs.judgement import DIVERGED, NOTHING_LEARNED, OVER_FITTING
from fasttune.runs.outcomes import BlindComparisons, FactScores
from fasttune.runs.store import Run
from fasttune.web.figures import LARGE

Document = TypeVar("Document")
TONES = {"excellent": "good", "good": "good", OVER_FITTING: "bad", DIVERGED: "bad", NOTHING_LEARNED: "bad"}


@dataclass(frozen=True)
class Table:
    """A table of texts: headings, and a row of cells each."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tone(status: str, verdict: str | None) -> str:
    """The colour of a run's badge: live, good, fair, bad or quiet. The word in it says the same."""
    if status != "finished":
        return "live" if status == "running" else "quiet"
    return TONES.get(verdict or "", "fair" if verdict else "quiet")


def tables(run: Run) -> list[Table]:
    """What a run was asked: probe questions, facts, blind comparisons; of what there is."""
    scores = readable(lambda: documents.read_scores(run)) if run.scores.is_file() else None
    made = []
    if scores and scores.probes:
        rows = tuple((one.question, one.base, one.trained) for one in scores.probes)
        made.append(Table(_("Answers"), (_("question"), _("base"), _("trained")), rows))
    if scores and scores.facts:
        made.append(facts_table(scores.facts))
    kept = readable(lambda: documents.read(run.blind, BlindComparisons)) if run.blind.is_file() else None
    if kept and kept.comparisons:
        counts = tuple(
            (sitting.created, *picks_of(sitting.picks), str(sitting.no_difference)) for sitting in kept.comparisons
        )
        made.append(Table(_("Picked blind"), (_("when"), "1", "2", _("no difference")), counts))
    return made


def picks_of(picks: object) -> tuple[str, str]:
    """`linzhi/001-fresh: 4` of both models of a sitting."""
    found = [f"{name}: {count}" for name, count in dict(picks).items()]  # type: ignore[call-overload]
    return (*found, "–", "–")[0], (*found, "–", "–")[1]


def facts_table(facts: FactScores) -> Table:
    """How many facts each arm keeps."""
    headings = (facts.sheet, _("kept"), _("lost"), _("contradicted"))
    rows = tuple(
        (arm_heading(name), str(arm.kept), str(arm.lost), str(arm.contradicted)) for name, arm in facts.arms.items()
    )
    return Table(_("Facts"), headings, rows)


def readable(read: Callable[[], Document]) -> Document | None:
    """A document; None where it is damaged, which the run's findings say."""
    try:
        return read()
    except FasttuneError:
        return None


def next_commands(run: Run) -> list[tuple[str, str]]:
    """(what for, command): what the advisor says, then what else can be done with a finished run. A long history is
    judged by the command that says what is wrong alone: a page can't wait for it."""
    where = runs_option(run.root)
    if run.status == "running":
        return []
    is_long = run.history.is_file() and run.history.stat().st_size > LARGE
    advice = None if is_long else advisor.of_run(run)
    first = [(_("do this next: {why}", why=advice.because), advice.command)] if next_lines(advice) and advice else []
    if run.status != "finished":
        return first
    use = readable(lambda: use_command(run)) or ""
    return [
        *first,
        (_("what is wrong with it, and what to do next"), command_line(["diagnose", run.id, *where])),
        (_("what it knows and has lost"), command_line(["facts", run.id, *where])),
        *([(_("talk to it in the terminal"), use)] if "chat" in shlex.split(use) else []),
    ]
