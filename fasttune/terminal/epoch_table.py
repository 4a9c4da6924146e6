"""`fasttune pick`: the epochs that a run has kept, with held-out loss and first answer, and which one it serves."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from fasttune.analysis.remedies import use_command
from fasttune.console import COLON, COMMA, _, error, ngettext, print_json, say, stdout_console, visible
from fasttune.planning.parents import how_to_finish
from fasttune.runs import epochs, judgement, summary
from fasttune.runs.epochs import KeptEpoch, epoch_word
from fasttune.runs.store import Run

ANSWER_WIDTH = 40  # characters of an answer in a menu


def pick(run: Run, epoch: str | None) -> None:
    """Make the epoch of a number, or `best`, the one that the run serves, or with None the run's own adapter; say what
    that changes. Raises FasttuneError where the run is not finished, and as `epochs.find_epoch` and `epochs.pick`."""
    if not run.adapter.is_dir():
        raise error("not-finished", _("this run has no adapter yet"), where=run.id, fix=how_to_finish(run))
    made = epochs.pick(run, epochs.find_epoch(run, epoch) if epoch is not None else None)
    if made is None:
        say(_("{run} serves it already; nothing was changed", run=run.id))
        return
    if made.to is None:
        say(_("{run} serves its own adapter again, of step {step}", run=run.id, step=made.step))
    else:
        say(_("{run} serves the adapter of epoch {epoch} now, of step {step}; undo it with: `{command}`", run=run.id,
              epoch=epoch_word(made.to), step=made.step, command=back(run, made.from_)))  # fmt: skip
    say(next_line(run))


def back(run: Run, epoch: float | None) -> str:
    """The command that undoes a pick."""
    return epochs.pick_command(run, *(["--own"] if epoch is None else ["--epoch", epoch_word(epoch)]))


def next_line(run: Run) -> str:
    """The command that uses what is served now: chat where a file of it is there, else export."""
    command = use_command(run)
    if "chat" in shlex.split(command):
        return _("talk to it: `{command}`", command=command)
    return _("write its GGUF file: `{command}`", command=command)


def show(run: Run, *, as_json: bool) -> None:
    """Print the kept epochs of a run. Raises FasttuneError where a document of it is damaged."""
    kept, picked = epochs.kept_epochs(run), epochs.picked_epoch(run)
    if as_json:
        print_json(document(run, kept, picked))
    elif not kept:
        say(_("{run} has kept the adapter of no epoch; train.keep_epochs = true keeps them", run=run.id))
    else:
        stdout_console.print(table(run, kept, picked))


def table(run: Run, kept: tuple[KeptEpoch, ...], picked: KeptEpoch | None) -> Table:
    """A row for each kept epoch, and one for the run's own adapter where none of them has its weights."""
    shown = Table(box=None, pad_edge=False, title=escape(run.id), title_justify="left")
    for heading in (_("epoch"), _("step"), _("held-out loss")):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column(_("its first answer"), overflow="fold")
    best, own = epochs.best_epoch(kept), epochs.own_epoch(run, kept)
    for one in kept:
        is_served = one == (picked or own)
        words = [_("in use")] * is_served + [_("best")] * (one == best)
        loss = "–" if one.eval_loss is None else f"{one.eval_loss:.3f}"
        answer = escape(one.answers[0] if one.answers else "")
        shown.add_row(epoch_word(one.epoch), str(one.step), loss, _(COMMA).join(words), answer,
                      style="green" if is_served else "")  # fmt: skip
    if own is None and run.adapter.is_dir():
        shown.add_row(_("own"), str(epochs.own_step(run)), "", "" if picked else _("in use"), "",
                      style="" if picked else "green")  # fmt: skip
    return shown


def document(run: Run, kept: tuple[KeptEpoch, ...], picked: KeptEpoch | None) -> dict[str, Any]:
    """What `fasttune pick --json` prints. `picked` and `best` are epochs, null for the run's own adapter and where no
    epoch was evaluated; `own` the epoch whose weights the run's own adapter has."""
    best, own = epochs.best_epoch(kept), epochs.own_epoch(run, kept)
    return {
        "run": run.id,
        "picked": picked.epoch if picked else None,
        "best": best.epoch if best else None,
        "own": own.epoch if own else None,
        "adapter": str(epochs.served_adapter(run)),
        "epochs": [asdict(one) | {"folder": str(one.folder)} for one in kept],
        "picks": [{"created": one.created, "from": one.from_, "to": one.to, "step": one.step}
                  for one in epochs.read_picks(run)],
    }  # fmt: skip


def kept_line(run: Run) -> str:
    """What the end of a training says of the epochs that were kept: the command that lists them, or the one that goes
    back to the best where that is earlier; "" where none was kept."""
    kept, earlier = epochs.kept_epochs(run), better_epoch(run)
    if not kept:
        return ""
    text = ngettext("{n} epoch kept", "{n} epochs kept", len(kept))
    if earlier is None:
        return _("epochs   {kept}: `{command}`", kept=text, command=epochs.pick_command(run))
    epoch = epoch_word(earlier.epoch)
    return _("epochs   {kept}; the held-out loss was lowest after epoch {epoch}, to go back: `{command}`", kept=text,
             epoch=epoch, command=epochs.pick_command(run, "--epoch", epoch))  # fmt: skip


def better_epoch(run: Run) -> KeptEpoch | None:
    """The kept epoch of the lowest held-out loss where it is earlier than the run's own adapter and none is picked;
    else None. By the verdict: where the held-out loss has not risen by more than chance, none is better."""
    best, judged = epochs.best_epoch(epochs.kept_epochs(run)), summary.judge(run)
    if best is None or judged is None or judged.verdict != judgement.OVER_FITTING:
        return None
    if epochs.picked_epoch(run) or best.step >= epochs.own_step(run):
        return None
    return best


def epoch_title(one: KeptEpoch) -> str:
    """An epoch in one line of a menu: `epoch 2: held-out 1.234: its first answer`."""
    loss = "" if one.eval_loss is None else _(COLON) + _("held-out {loss:.3f}", loss=one.eval_loss)
    answer = f"{_(COLON)}{visible(one.answers[0])[:ANSWER_WIDTH]}" if one.answers else ""
    return _("epoch {epoch}", epoch=epoch_word(one.epoch)) + loss + answer
