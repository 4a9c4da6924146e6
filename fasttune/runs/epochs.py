"""The adapters that a run has kept, one an epoch, and which of them it serves.

    runs/linzhi/003-retune/
      adapter/                  the run's own: what the training ended with
      epochs/epoch-2/           the adapter after 2 epochs in all, in the same layout, with its manifest
      picked.json               what `fasttune pick` made the run's adapter, and when
      scores.json               the held-out loss and the answers of each epoch

What export, chat, facts and comparisons use is `served_adapter`: the run's own adapter until another one is picked. An
epoch is numbered by all epochs that its weights have seen on these samples; the parent's count where the run continues
from a checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from fasttune.command import command_line, runs_option
from fasttune.console import _, error, ngettext, usage_error
from fasttune.files import file_sha256
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.checkpoints import WEIGHTS
from fasttune.runs.documents import Probe, Scores
from fasttune.runs.outcomes import EpochScores, Pick, Picks
from fasttune.runs.store import Run

EPOCH = re.compile(r"epoch-\d+(\.\d+)?")
SAME = 0.006  # epochs: a number that is typed with two decimals means the nearest one


@dataclass(frozen=True)
class KeptEpoch:
    """The adapter after so many epochs in all, at `step`.

    `folder` is a PEFT adapter with its manifest.json; `eval_loss` the held-out loss in nats a supervised token, None
    where there was none at this step; `answers` those to the run's probe questions, empty where they were not asked.
    """

    epoch: float
    step: int
    folder: Path
    eval_loss: float | None
    answers: tuple[str, ...]


# Reading ------------------------------------------------------------------------------------------------------------


def kept_epochs(run: Run) -> tuple[KeptEpoch, ...]:
    """The epochs whose adapters a run has kept, oldest first; none where it kept none.

    Raises FasttuneError where a manifest, or scores.json, is damaged.
    """
    folders = [path for path in run.epochs.iterdir() if EPOCH.fullmatch(path.name)] if run.epochs.is_dir() else []
    known = {one.sha256: one for one in epoch_scores(run)} if folders else {}
    return tuple(sorted((read_epoch(folder, known) for folder in folders), key=lambda one: one.step))


def read_epoch(folder: Path, known: Mapping[str, EpochScores]) -> KeptEpoch:
    """A kept epoch with what is known of these very weights. Raises FasttuneError where its manifest is damaged."""
    manifest = documents.read(folder / documents.MANIFEST, documents.Manifest)
    scores = known.get(manifest.sha256.get(WEIGHTS, ""))
    epoch = float(folder.name.removeprefix("epoch-"))
    if scores is None:
        return KeptEpoch(epoch, manifest.step, folder, None, ())
    return KeptEpoch(epoch, manifest.step, folder, scores.eval_loss, scores.answers)


def epoch_scores(run: Run) -> tuple[EpochScores, ...]:
    """What each epoch of a run came to, oldest first. Raises FasttuneError where scores.json is damaged."""
    return documents.read_scores(run).epochs if run.scores.is_file() else ()


def keep_scores(run: Run, scores: EpochScores) -> None:
    """Write what an epoch came to into scores.json, in place of what an earlier attempt at this step did."""
    before = documents.read_scores(run) if run.scores.is_file() else Scores(())
    others = [one for one in before.epochs if one.step != scores.step]
    every = tuple(sorted((*others, scores), key=lambda one: one.step))
    documents.write(run.scores, replace(before, epochs=every))


def epoch_of(step: int, steps_per_epoch: int) -> float:
    """The epochs that were trained at a step, to three decimals."""
    return round(step / steps_per_epoch, 3)


def epoch_word(epoch: float) -> str:
    """2 or 2.5, as in the name of the folder."""
    return f"{epoch:.10g}"


def folder_of(run: Run, epoch: float) -> Path:
    """Where the adapter after so many epochs is kept: epochs/epoch-2.5."""
    return run.epochs / f"epoch-{epoch_word(epoch)}"


def best_epoch(kept: Sequence[KeptEpoch]) -> KeptEpoch | None:
    """The kept epoch with the lowest held-out loss, of equal ones the first; None where none was evaluated."""
    judged = [one for one in kept if one.eval_loss is not None and math.isfinite(one.eval_loss)]
    return min(judged, key=lambda one: one.eval_loss or 0.0, default=None)


def weights_digest(adapter: Path | None) -> str:
    """The sha256 of an adapter folder's weights: its manifest's, or where it has none, as before 0.1.0, the file's; ""
    without an adapter."""
    if adapter is None:
        return ""
    if (adapter / documents.MANIFEST).is_file():
        return documents.read(adapter / documents.MANIFEST, documents.Manifest).sha256.get(WEIGHTS, "")
    return file_sha256(adapter / WEIGHTS) if (adapter / WEIGHTS).is_file() else ""


def own_epoch(run: Run, kept: Sequence[KeptEpoch]) -> KeptEpoch | None:
    """The kept epoch that has the weights of the run's own adapter; None where none has, or the run has no adapter."""
    own = weights_digest(run.adapter)
    return next((one for one in kept if own and weights_digest(one.folder) == own), None)


def served_epoch(run: Run, kept: Sequence[KeptEpoch]) -> KeptEpoch | None:
    """The kept epoch that the run serves: the picked one, else the one with the weights of its own adapter; None where
    none has them. Raises FasttuneError as `picked_epoch` does."""
    return picked_epoch(run) or own_epoch(run, kept)


# What is served -----------------------------------------------------------------------------------------------------


def read_picks(run: Run) -> tuple[Pick, ...]:
    """Every pick of a run, oldest first. Raises FasttuneError where picked.json is damaged."""
    return documents.read(run.picked, Picks).picks if run.picked.is_file() else ()


def picked_epoch(run: Run) -> KeptEpoch | None:
    """The epoch whose adapter the run serves; None for its own, which the training ended with.

    Raises FasttuneError where the picked epoch is no longer there, or a document is damaged.
    """
    picks = read_picks(run)
    if not picks or picks[-1].to is None:
        return None
    return existing_epoch(run, picks[-1].to)


def existing_epoch(run: Run, epoch: float) -> KeptEpoch:
    """The kept epoch of a number that was picked. Raises FasttuneError where it is no longer there, or damaged."""
    folder = folder_of(run, epoch)
    if not folder.is_dir():
        what = _("epoch {epoch} was picked, and its adapter is no longer there", epoch=epoch_word(epoch))
        fix = _("serve the run's own adapter again: `{command}`", command=pick_command(run, "--own"))
        raise error("picked-epoch-missing", what, where=str(folder), fix=fix)
    return read_epoch(folder, {one.sha256: one for one in epoch_scores(run)})


def served_probes(run: Run) -> tuple[Probe, ...]:
    """The probe questions of a run with the base's answers and those of the adapter that it serves; none where they
    were not asked. Raises FasttuneError as `picked_epoch` does."""
    probes = documents.read_scores(run).probes if run.scores.is_file() else ()
    picked = picked_epoch(run)
    if picked is None:
        return probes
    asked = next((one.questions for one in epoch_scores(run) if one.step == picked.step), ())
    said = dict(zip(asked, picked.answers, strict=False))
    return tuple(replace(probe, trained=said.get(probe.question, ""), trained_cut=False) for probe in probes)


def served_adapter(run: Run) -> Path:
    """The adapter folder that export, chat, facts and comparisons use: the picked epoch's, else the run's own.

    Whether it is whole, checkpoints.require_whole_adapter says. Raises FasttuneError as `picked_epoch` does.
    """
    picked = picked_epoch(run)
    return picked.folder if picked else run.adapter


# Picking ------------------------------------------------------------------------------------------------------------


def find_epoch(run: Run, name: str, typed: str = "") -> KeptEpoch:
    """The kept epoch of a number as it is typed, or of `best`. Raises UsageError with the epochs there are; where it
    was not named by --epoch, it says how it was `typed`."""
    kept = kept_epochs(run)
    if not kept:
        what = _("{run} has kept the adapter of no epoch", run=run.id)
        fix = _("set train.keep_epochs = true in the recipe of the next training")
        raise usage_error("no-such-epoch", what, where=run.id, fix=fix)
    if name == "best":
        best = best_epoch(kept)
        if best is None:
            what, fix = _("no epoch of {run} has a held-out loss", run=run.id), _("pick one by its number")
            raise usage_error("no-such-epoch", what, where=typed or "--epoch best", fix=fix)
        return best
    found = [one for one in kept if is_number(name) and abs(one.epoch - float(name)) < SAME]
    if not found:
        what = _("{run} has kept no epoch {name}", run=run.id, name=name)
        known = ", ".join(epoch_word(one.epoch) for one in kept)
        fix = ngettext("the kept epoch is {known}", "the kept epochs are {known}", len(kept), known=known)
        raise usage_error("no-such-epoch", what, where=typed or f"--epoch {name}", fix=fix)
    return min(found, key=lambda one: abs(one.epoch - float(name)))


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def pick(run: Run, chosen: KeptEpoch | None) -> Pick | None:
    """Make an epoch's adapter the one that the run serves, or with None its own; record it, and return the record; None
    where it was served before.

    An epoch whose weights are those of the run's own adapter, as the last one's mostly are, is the run's own: the files
    that were exported from it stay its files. Raises FasttuneError where the adapter is damaged, and where another
    process uses the run.
    """
    if chosen is not None:
        checkpoints.require_whole_adapter(chosen.folder)
        if weights_digest(chosen.folder) == weights_digest(run.adapter):
            chosen = None
    with store.exclusive(run):
        picks = read_picks(run)
        before, after = (picks[-1].to if picks else None), (chosen.epoch if chosen else None)
        if before == after:
            return None
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        made = Pick(created, before, after, chosen.step if chosen else own_step(run))
        documents.write(run.picked, Picks((*picks, made)))
    return made


def own_step(run: Run) -> int:
    """The step of the run's own adapter; 0 where it has no manifest, as before 0.1.0."""
    manifest = run.adapter / documents.MANIFEST
    return documents.read(manifest, documents.Manifest).step if manifest.is_file() else 0


def pick_command(run: Run, *options: str) -> str:
    """`fasttune pick RUN …` as it is typed."""
    return command_line(["pick", run.id, *options, *runs_option(run.root)])
