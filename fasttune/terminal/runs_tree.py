"""What `fasttune runs` shows: the runs of a series as a tree from parent to child, with figures and verdicts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from fasttune.analysis import advisor
from fasttune.analysis.remedies import use_command
from fasttune.analysis.words import (
    changed_line,
    epochs_word,
    has_held_out_loss,
    size_word,
    status_word,
    verdict_line,
    verdict_word,
)
from fasttune.console import (
    COLON,
    COMMA,
    SEMICOLON,
    Finding,
    _,
    exit_code,
    ngettext,
    print_json,
    put,
    say,
    show_findings,
    stdout_console,
    usage_error,
)
from fasttune.planning.parents import how_to_finish
from fasttune.runs import epochs, store
from fasttune.runs.store import Run
from fasttune.runs.summary import Figures, read_figures, read_series


def show_runs(root: Path, name: str | None, *, as_json: bool) -> int:
    """Print the runs of one series, of all, or the one run that is named; the exit code, 1 where a run is damaged.

    Damaged runs, and series whose folder can't be listed, are findings beside those that can be shown. Raises
    UsageError with the names of the series there are where there is none of this name, and FasttuneError where the run
    that is named is damaged.
    """
    findings: list[Finding] = []
    every: dict[str, list[Figures]] = {}
    if name and not store.list_runs(root, name):
        run = store.find(root, name)
        every[run.series] = [read_figures(run, run == store.current(run.root, run.series))]
    else:
        names = [name] if name else store.list_series(root, findings)
        every = {one: read_series(root, one, findings) for one in names}
    if as_json:
        listed = [asdict(one) for figures in every.values() for one in figures]
        print_json({"runs": listed, "findings": [asdict(finding) for finding in findings]})
        return exit_code(findings)
    if not every and not findings:
        say(_("no runs in {root} yet", root=root))
    for series, figures in every.items():
        stdout_console.print(tree(series, figures))
    show_findings(findings)
    return exit_code(findings)


def tree(name: str, figures: Sequence[Figures]) -> Tree:
    """A series with each run below its parent."""
    root = Tree(Text(name, style="bold", overflow="fold"))
    branches: dict[str, Tree] = {}
    for one in figures:  # parents are older than their children
        branches[one.id] = branches.get(one.parent or "", root).add(label(one))
    return root


def label(one: Figures) -> Text:
    """The lines of one run: id, verdict and date; figures; changes; files."""
    text = Text(one.id, style="bold", overflow="fold")
    notes = [status_word(one.status)] if one.status != "finished" else [verdict_word(one.verdict)] * bool(one.verdict)
    notes += [_("in use")] * one.current
    if one.picked_epoch is not None:
        notes.append(_("epoch {epoch} picked", epoch=epochs.epoch_word(one.picked_epoch)))
    text.append(f"  {_(COMMA).join(notes)}" if notes else "", style="green" if one.current else "")
    text.append(f"  {one.date}", style="dim")
    for line in (figures_line(one), picked_line(one), changed_line(one.changes) if one.parent else "", files_line(one)):
        text.append(f"\n{line}" if line else "", style="not bold")
    return text


def figures_line(one: Figures) -> str:
    """Epochs, losses and accuracy in words: those of the run to its end. The held-out loss of an epoch that is picked
    in its place stands in `picked_line`."""
    steps = ngettext("{n} step", "{n} steps", one.steps)
    parts = [f"{epochs_word(one.epochs)}{_(COMMA)}{steps}"]
    if one.first_loss is not None and one.epoch_loss is not None:
        parts.append(_("loss {first:.3f} → {last:.3f}", first=one.first_loss, last=one.epoch_loss))
    if has_held_out_loss(one):
        own = one.eval_loss if one.picked_epoch is None else one.own_eval_loss
        parts.append(_("held-out {loss:.3f} (best {best:.3f})", loss=own, best=one.best_eval_loss))
    if one.mean_token_accuracy is not None:
        parts.append(_("accuracy {accuracy:.1%}", accuracy=one.mean_token_accuracy))
    figures = _(SEMICOLON).join(parts)
    return figures if one.picked_epoch is None else _("its own adapter: {figures}", figures=figures)


def picked_line(one: Figures) -> str:
    """What is known of the epoch that is picked, and judged; "" where none is."""
    if one.picked_epoch is None:
        return ""
    epoch = epochs.epoch_word(one.picked_epoch)
    if not has_held_out_loss(one):
        return _("epoch {epoch}, which is picked: no held-out loss", epoch=epoch)
    return _("epoch {epoch}, which is picked: held-out {loss:.3f}", epoch=epoch, loss=one.eval_loss)


def files_line(one: Figures) -> str:
    """The GGUF files with their sizes, and those that are missing."""
    files = ", ".join(file_word(file) for file in one.exports)
    if not one.missing_exports:
        return files
    missing = _("not exported: {types}", types=", ".join(one.missing_exports))
    return f"{files}; {missing}" if files else missing


def file_word(file: Mapping[str, Any]) -> str:
    """A GGUF file with its size, and whether it is of another adapter than the one that is picked."""
    if file.get("of_picked", True):
        return f"{file['file']} {size_word(file['bytes'])}"
    return _("{file} {size} (not of the picked epoch)", file=file["file"], size=size_word(file["bytes"]))


def state_line(one: Figures) -> str:
    """A run in one line: `003-retune finished, 3.5 epochs, loss 0.212, held-out 0.340: good`; where an epoch is picked,
    the last two are of that one: `…, loss 0.212; epoch 2 picked, held-out 0.330: good`."""
    name = one.id.partition("/")[2]
    parts = [f"{name} {status_word(one.status)}", epochs_word(one.epochs)]
    if one.epoch_loss is not None:
        parts.append(_("loss {loss:.3f}", loss=one.epoch_loss))
    served = [_("held-out {loss:.3f}", loss=one.eval_loss)] if has_held_out_loss(one) else []
    if one.picked_epoch is None:
        line = _(COMMA).join([*parts, *served])
    else:
        picked = _("epoch {epoch} picked", epoch=epochs.epoch_word(one.picked_epoch))
        line = _(SEMICOLON).join([_(COMMA).join(parts), _(COMMA).join([picked, *served])])
    return line + (f"{_(COLON)}{verdict_word(one.verdict)}" if one.verdict else "")


def show_current(root: Path, name: str, *, as_json: bool) -> None:
    """Print the run that a series' name stands for and the command that uses it.

    Raises UsageError where it is not finished.
    """
    run = store.current(root, name)
    if run is None or run.status != "finished":
        raise usage_error(
            "nothing-to-use",
            _("{name} has no finished run", name=name),
            where=str(root),
            fix=how_to_finish(run or store.list_runs(root, name)[-1]),
        )
    figures = read_figures(run, current=True)
    if as_json:
        print_json(asdict(figures) | {"run": run.id, "skipped": True})
        return
    say(_("nothing was trained; this is the run in use"))
    stdout_console.print(label(figures))
    put(verdict_line(figures))
    for text in closing_lines(run):
        put(text)


def closing_lines(run: Run) -> list[str]:
    """What to do with the run in use of a series: the command that uses it, and where something is to be mended, what
    and by which command."""
    return [use_line(run), *advisor.next_lines(advisor.of_run(run))]


def use_line(run: Run) -> str:
    """The command that uses the run in use of a series: chat, or export where it has no GGUF file of what it serves."""
    command = use_command(run, run.series)
    if "chat" in shlex.split(command):
        return _("talk to it: `{command}`", command=command)
    return _("write a GGUF file: `{command}`", command=command)
