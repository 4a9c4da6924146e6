"""What `fasttune runs` shows: the runs of a series as a tree from parent to child, and what each one came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from fasttune.console import _, print_json, say, stdout_console, usage_error
from fasttune.recipe.values import as_toml
from fasttune.runs import store
from fasttune.runs.summary import NOT_ENOUGH, OVER_FITTING, Change, Figures, read_figures, read_series

# Showing ------------------------------------------------------------------------------------------------------------


def runs_tree(root: Path, series: str | None, *, as_json: bool) -> None:
    """Print the runs of one or all series.

    Raises UsageError with the names there are where there is no such series.
    """
    if series and not store.list_runs(root, series):
        store.find(root, series)
    every = {name: read_series(root, name) for name in ([series] if series else store.list_series(root))}
    if as_json:
        print_json({"runs": [asdict(one) for figures in every.values() for one in figures]})
        return
    if not every:
        say(_("no runs in {root} yet", root=root))
    for name, figures in every.items():
        stdout_console.print(tree(name, figures))


def tree(name: str, figures: Sequence[Figures]) -> Tree:
    """A series with each run below its parent."""
    whole = Tree(Text(name, style="bold", overflow="fold"))
    branches: dict[str, Tree] = {}
    for one in figures:  # parents are older than their children
        branches[one.id] = branches.get(one.parent or "", whole).add(label(one))
    return whole


def label(one: Figures) -> Text:
    """The lines of one run: name and verdict; figures; what was changed; files."""
    head = Text(one.id, style="bold", overflow="fold")
    said = [status_word(one.status)] if one.status != "finished" else [verdict_word(one.verdict)] * bool(one.verdict)
    said += [_("in use")] * one.current
    head.append(f"  {', '.join(said)}" if said else "", style="green" if one.current else "")
    head.append(f"  {one.date}", style="dim")
    for line in (figures_line(one), changes_line(one), files_line(one)):
        head.append(f"\n{line}" if line else "", style="not bold")
    return head


def figures_line(one: Figures) -> str:
    """Epochs, losses and accuracy in words."""
    parts = [_("{epochs:.3g} epochs, {steps} steps", epochs=one.epochs, steps=one.steps)]
    if one.first_loss is not None and one.epoch_loss is not None:
        parts.append(_("loss {first:.3f} → {last:.3f}", first=one.first_loss, last=one.epoch_loss))
    if one.eval_loss is not None:
        parts.append(_("held-out {loss:.3f} (best {best:.3f})", loss=one.eval_loss, best=one.best_eval_loss))
    if one.mean_token_accuracy is not None:
        parts.append(_("accuracy {accuracy:.1%}", accuracy=one.mean_token_accuracy))
    return "; ".join(parts)


def changes_line(one: Figures) -> str:
    """What is otherwise than in the parent; empty for a run without one."""
    if one.parent is None:
        return ""
    return _("changed: {changes}", changes=in_words(one.changes)) if one.changes else _("changed: nothing")


def in_words(changed: Sequence[Change]) -> str:
    """`epochs 2 → 3.5, lora.r 8 → 16`"""
    return ", ".join(f"{one.key} {value_word(one.old)} → {value_word(one.new)}" for one in changed)


def files_line(one: Figures) -> str:
    """The GGUF files with their sizes."""
    return ", ".join(f"{file['file']} {size_word(file['bytes'])}" for file in one.exports)


def value_word(value: Any) -> str:
    """A setting's value as one would write it, numbers short; a dash for none."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else as_toml(value)


def size_word(size: int) -> str:
    """Bytes as people read them: 8.4 MB, 531 MB, 1.6 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def verdict_word(verdict: str | None) -> str:
    """A verdict in the user's language; a dash for none."""
    words = {
        "excellent": _("excellent"),
        "good": _("good"),
        "fair": _("fair"),
        NOT_ENOUGH: _("not enough"),
        OVER_FITTING: _("over-fitting"),
    }
    return words[verdict] if verdict else "–"


def status_word(status: str) -> str:
    """A run's state in the user's language."""
    return {"running": _("running"), "finished": _("finished"), "stopped": _("stopped")}[status]


def state_line(one: Figures) -> str:
    """A run in one short line: `003-retune finished, 3.5 epochs, loss 0.212, held-out 0.340: good`."""
    name = one.id.partition("/")[2]
    parts = [f"{name} {status_word(one.status)}", _("{epochs:.3g} epochs", epochs=one.epochs)]
    if one.epoch_loss is not None:
        parts.append(_("loss {loss:.3f}", loss=one.epoch_loss))
    if one.eval_loss is not None:
        parts.append(_("held-out {loss:.3f}", loss=one.eval_loss))
    return ", ".join(parts) + (f": {verdict_word(one.verdict)}" if one.verdict else "")


def what_is_there(root: Path, name: str, *, as_json: bool) -> None:
    """Print the run that a series' name stands for and how to use it, instead of training.

    Raises UsageError where no run of the series was finished.
    """
    run = store.current(root, name)
    if run is None or run.status != "finished":
        raise usage_error(
            "nothing-to-use",
            _("{name} has no finished run", name=name),
            where=str(root),
            fix=_("--on-existing resume goes on with a stopped one, new trains another"),
        )
    figures = read_figures(run, current=True)
    if as_json:
        print_json(asdict(figures) | {"run": run.id, "skipped": True})
        return
    say(_("nothing is trained; this is what is there"))
    stdout_console.print(label(figures))
    use = _("talk to it: fasttune chat {series}", series=name) if figures.exports else ""
    make = _("make a GGUF file: fasttune export {series} --gguf q8_0", series=name)
    stdout_console.print(use or make, markup=False, soft_wrap=True)
