"""Checkpoints of a run: written whole with a manifest of checksums, verified before use, rotated."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fasttune.console import FasttuneError, Finding, _, error, usage_error
from fasttune.files import file_sha256, remove_folder, sync_file, whole_folder
from fasttune.runs import documents
from fasttune.runs.store import Run

# What is read of a finished adapter; PEFT's README.md beside them is the user's to edit.
WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = ("adapter_config.json", WEIGHTS, documents.CHECK_BATCH)
STATE_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
STATE_NAMES = {"trainer_state.json", "adapter_config.json", documents.CHECK_BATCH, documents.UNLOGGED_METRICS}


@contextlib.contextmanager
def writing_checkpoint(run: Run, step: int) -> Iterator[Path]:
    """A checkpoint folder to fill; it gets its manifest and its name only when the block ends without an exception."""
    if run.history.is_file():
        sync_file(run.history)  # no checkpoint knows more steps than the history
    with whole_folder(run.checkpoints / f"checkpoint-{step}") as folder:
        yield folder
        write_manifest(folder, step, [path.name for path in sorted(folder.iterdir()) if path.is_file()])


def write_manifest(folder: Path, step: int, names: Sequence[str]) -> None:
    """Write a folder's manifest with the checksums of these files in it."""
    digests = {name: file_sha256(folder / name) for name in names}
    documents.write(folder / documents.MANIFEST, documents.Manifest(step, digests))


@contextlib.contextmanager
def unless_begun(run: Run) -> Iterator[None]:
    """Remove the run's folder where the block fails before a step was trained: there is nothing in it to resume."""
    try:
        yield
    except BaseException:
        if not run.history.is_file() and not list_checkpoints(run):
            remove_folder(run.folder)
        raise


def list_checkpoints(run: Run) -> list[Path]:
    """Finished checkpoint folders of a run, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [path for path in run.checkpoints.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """120 for checkpoint-120."""
    return int(folder.name.split("-")[1])


def checkpoint_at(run: Run, step: int) -> Path:
    """The checkpoint of a run at a step. Raises FasttuneError where there is none, or it is damaged."""
    folder = run.checkpoints / f"checkpoint-{step}"
    if not folder.is_dir():
        known = ", ".join(str(checkpoint_step(one)) for one in list_checkpoints(run))
        what = _("{run} has no checkpoint at step {step}", run=run.id, step=step)
        fix = _("its checkpoints are at the steps {steps}", steps=known or _("none yet"))
        raise usage_error("no-checkpoint", what, where=run.id, fix=fix)
    if flaw := find_damage(folder):
        raise error("checkpoint-damaged", flaw, where=str(folder))
    return folder


def read_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that training reads again, by their names: weights, states, the check batch."""
    found = (path for path in checkpoint.iterdir() if path.suffix in STATE_SUFFIXES or path.name in STATE_NAMES)
    return sorted(found)


def find_damage(checkpoint: Path) -> str:
    """Compare a checkpoint with its manifest: a sentence about the first difference, empty where there is none."""
    try:
        manifest = documents.read(checkpoint / documents.MANIFEST, documents.Manifest)
    except FasttuneError:
        return _("its manifest.json is missing or unreadable")
    if manifest.step != checkpoint_step(checkpoint):
        return _("it holds step {step}", step=manifest.step)
    if not manifest.sha256:
        return _("its manifest.json lists no files")
    if unlisted := [path.name for path in read_files(checkpoint) if path.name not in manifest.sha256]:
        return _("its manifest.json does not list {files}", files=", ".join(unlisted))
    return first_difference(checkpoint, manifest.sha256)


def require_whole_adapter(folder: Path) -> None:
    """Raises FasttuneError where a finished adapter is not what its manifest says. Adapters that were written before
    0.1.0, and those of other tools, have none."""
    if not (folder / documents.MANIFEST).exists():
        return
    listed = documents.read(folder / documents.MANIFEST, documents.Manifest).sha256
    unlisted = [name for name in ADAPTER_FILES[:2] if name not in listed]  # without these two it is no adapter
    flaw = _("its manifest.json does not list {files}", files=", ".join(unlisted)) if unlisted else ""
    if flaw := flaw or first_difference(folder, listed):
        why = _("these are not the weights that were trained; nothing is made of them")
        fix = _("restore the folder from a copy, or train the run again; its recipe lies beside it")
        raise error("adapter-damaged", flaw, where=str(folder), why=why, fix=fix)


def first_difference(folder: Path, digests: Mapping[str, str]) -> str:
    """A sentence about the first file of a folder that is missing or has another sha256; empty where there is none."""
    for name, digest in digests.items():
        if not (folder / name).is_file():
            return _("{file} is missing", file=name)
        if file_sha256(folder / name) != digest:
            return _("{file}: checksum mismatch", file=name)
    return ""


def newest_whole_checkpoint(run: Run) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that agrees with its manifest, None without one, and a sentence about each newer one."""
    flaws: list[str] = []
    for checkpoint in reversed(list_checkpoints(run)):
        flaw = find_damage(checkpoint)
        if not flaw:
            return checkpoint, flaws
        flaws.append(_("{checkpoint} is damaged and is not used: {flaw}", checkpoint=checkpoint, flaw=flaw))
    return None, flaws


def rotate(run: Run, keep: int, best_step: int | None, newest: int | None = None) -> None:
    """Remove the oldest checkpoints of this run beyond `keep`; the best one stays as well.

    Those beyond step `newest`, which a resumed run has just written, are damaged: they are neither counted nor removed.
    """
    written = [path for path in list_checkpoints(run) if newest is None or checkpoint_step(path) <= newest]
    for path in written[:-keep]:
        if checkpoint_step(path) != best_step:
            remove_folder(path)


def damage_findings(run: Run, used: Path | None, flaws: Sequence[str]) -> list[Finding]:
    """A warning for each damaged checkpoint of a run that is newer than the one used in its place."""
    then = _("{checkpoint} is used instead", checkpoint=used.name) if used else _("no complete checkpoint is left")
    return [Finding("checkpoint-damaged", "warning", run.id, flaw, then) for flaw in flaws]


def best_left_behind(run: Run, used: Path | None, command: str) -> list[Finding]:
    """The warning where a continuation goes on from a later step than that of the run's adapter.

    Early stopping made the best checkpoint the adapter, and that is the model which the user has talked to. `command`
    begins with it.
    """
    if used is None or not run.trainer_state.is_file():
        return []
    best = documents.read_trainer_state(run).best_global_step
    if not documents.read_plan(run).values.get("train.early_stopping_patience") or not best:
        return []
    if best >= checkpoint_step(used):
        return []
    what = _("continues from step {last}, which early stopping rejected; the adapter of {run} is that of step {best}",
             last=checkpoint_step(used), run=run.id, best=best)  # fmt: skip
    why = _("it begins with another model than the one that answered in chat")
    fix = _("to begin with that one: `{command}`", command=command)
    return [Finding("best-left-behind", "warning", run.id, what, why, fix)]
