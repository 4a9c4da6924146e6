"""The run folder: the only file that knows its names.

    runs/linzhi/current                 id of the run in use (a text file, no symlink: Windows drives)
    runs/linzhi/003-retune/
      recipe.toml  plan.json            as given; every resolved value with its source
      provenance.json                   versions, device, commit, data and base fingerprints, parent, start-up seconds
      history.jsonl  trainer_state.json one line a logged step; Hugging Face's own file
      checkpoints/checkpoint-120/       Hugging Face layout + manifest.json (sha256 of each file)
      adapter/                          PEFT layout: loads with plain peft; its presence says that the run is finished
      scores.json  tensorboard/
      exports/linzhi-Q4_K_M.gguf + .json, Modelfile

Every file and folder appears whole or not at all: it is written under a temporary name, flushed to disk and renamed
(E6). `delete` removes a run that was named to be removed and nothing else does; `rotate` removes old checkpoints of its
own run, `unless_begun` the folder of a run that never trained a step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from fasttune.console import _, error, usage_error

Status = Literal["running", "finished", "stopped"]
PARTIAL, DELETED = ".partial", ".deleted"
NUMBERED = re.compile(r"(\d{3,})-\w+")  # 003-retune
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATIENCE = 1.0  # seconds to wait for a lock: others hold the series' lock, or look at one, for a moment only


@dataclass(frozen=True)
class Run:
    """One training and its folder. `id` is `SERIES/NNN-strategy`."""

    root: Path
    id: str

    @property
    def folder(self) -> Path:
        return self.root / self.id

    @property
    def series(self) -> str:
        return self.id.split("/")[0]

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def history(self) -> Path:
        return self.folder / "history.jsonl"

    @property
    def trainer_state(self) -> Path:
        return self.folder / "trainer_state.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def status(self) -> Status:
        """finished: it has its adapter; running: a live process holds its lock; stopped: neither."""
        if self.adapter.is_dir():
            return "finished"
        return "running" if is_locked(self.lock) else "stopped"

    @property
    def answered(self) -> bool:
        """Whether its files were exported and asked the probe questions: the last thing a run does."""
        return self.scores.is_file() and "answered_by" in read_json(self.scores)


# Writing ------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """A file that appears whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """A JSON file that appears whole or not at all, Chinese readable."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The document in a JSON file of a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def note_continuation(run: Run, shown: dict[str, Any]) -> None:
    """Keep the proof of one more start of this run in its provenance.json, beside those of earlier starts."""
    note(run, {"continuations": [*read_json(run.provenance).get("continuations", []), shown]})


def note_start(run: Run, took: dict[str, Any]) -> None:
    """Keep what one more start of this run took in its provenance.json, beside those of earlier starts."""
    note(run, {"starts": [*read_json(run.provenance).get("starts", []), took]})


def note(run: Run, fields: Mapping[str, Any]) -> None:
    """Put fields into a run's provenance.json, in place of those of the same name."""
    write_json(run.provenance, {**read_json(run.provenance), **fields})


def append_line(path: Path, document: Any) -> None:
    """One more line of a JSONL file, handed to the system before this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(document, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def room_for(folder: Path, needed: int) -> Iterator[None]:
    """Where the block fails because the disk has no room, or a quota no more, the error says how many bytes a
    checkpoint needs."""
    try:
        yield
    except Exception as problem:  # torch and safetensors each have an error of their own for a full disk
        if not is_full(problem):
            raise
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        raise error(
            "disk-full",
            _("no space left: a checkpoint needs {needed:.1f} MB, {free:.1f} MB are free", needed=needed / 1e6,
              free=free / 1e6),
            where=str(folder),
            why=_("the last whole checkpoint is kept"),
            fix=_("free some space, or raise the quota, and run the same command again; it goes on from that "
                  "checkpoint"),
        ) from problem  # fmt: skip


def is_full(problem: Exception) -> bool:
    """Whether an error says that a file could not be written for want of room."""
    if isinstance(problem, OSError):
        return problem.errno in NO_ROOM
    # safetensors' SafetensorError, and the RuntimeErrors of torch.save, which name no reason
    signs = [*(f"os error {number}" for number in NO_ROOM), "PytorchStreamWriter", "unexpected pos"]
    return any(sign in str(problem) for sign in signs)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that appears under its name only when the block ends well, replacing none."""
    partial = path.with_name(path.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)  # left by a process that died while writing it: never complete, never used
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for file in sorted(partial.rglob("*")):
        if file.is_file():
            sync_file(file)
    sync_folder(partial)
    if path.exists():
        remove(path)  # only a damaged checkpoint is ever written again
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Makes what was written to this file survive a power cut."""
    with open(path, "rb") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Series and runs ----------------------------------------------------------------------------------------------------


def create(root: Path, series: str, strategy: str, fill: Callable[[Run], None] = lambda new: None) -> Run:
    """A new numbered run folder, holding what `fill` writes into it when it appears.

    Under the series' lock, so that two processes never get the same number.
    """
    folder = root / series
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", _("another process is starting a run of {series}", series=series)):
        remove_halves(folder, "[0-9]*")
        number = 1 + max((run_number(run) for run in list_runs(root, series)), default=0)
        name = f"{number:03d}-{strategy}"
        with whole_folder(folder / name) as partial:
            fill(Run(root, f"{series}/{partial.name}"))
    return Run(root, f"{series}/{name}")


def list_runs(root: Path, series: str) -> list[Run]:
    """The runs of a series, oldest first."""
    folder = root / series
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if NUMBERED.fullmatch(path.name) and path.is_dir()]
    return sorted((Run(root, f"{series}/{name}") for name in names), key=run_number)


def list_series(root: Path) -> list[str]:
    """Names of all series under a runs folder."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and list_runs(root, path.name))


def run_number(run: Run) -> int:
    """3 for linzhi/003-retune."""
    return int(run.id.split("/")[1].split("-")[0])


def set_current(run: Run) -> None:
    """Make this run the one its series' name stands for; of two that finish at once, the later one."""
    folder = run.root / run.series
    with locked(folder / ".current.lock", _("another process is starting a run of {series}", series=run.series)):
        write_text(folder / "current", run.id + "\n")


def current(root: Path, series: str) -> Run | None:
    """The run a series' name stands for: the one in `current`, else the newest finished one, else the newest."""
    pointer = root / series / "current"
    if pointer.is_file():
        run = Run(root, pointer.read_text(encoding="utf-8").strip())
        if run.folder.is_dir():
            return run
    found = list_runs(root, series)
    usable = [run for run in found if run.status == "finished"] or found
    return usable[-1] if usable else None


def find(root: Path, name: str) -> Run:
    """The run meant by an id (`linzhi/003-retune`, `linzhi/003`), a series name or the path of a run folder.

    Raises UsageError with the names there are where none fits.
    """
    path = Path(name)
    if (path / "plan.json").is_file():
        return Run(path.resolve().parent.parent, f"{path.resolve().parent.name}/{path.resolve().name}")
    series, _slash, number = name.strip("/").partition("/")
    if not number:
        run = current(root, series)
    else:
        matches = [run for run in list_runs(root, series) if run.id == name or run.id.startswith(f"{series}/{number}-")]
        run = matches[0] if len(matches) == 1 else None
    if run is None:
        known = ", ".join(list_series(root)) or _("none yet")
        raise usage_error(
            "unknown-run",
            _("no run called {name} in {root}", name=name, root=root),
            fix=_("series there: {known}; `fasttune runs` lists them, --runs DIR looks elsewhere", known=known),
        )
    return run


def delete(run: Run) -> None:
    """Remove a run that was named to be removed.

    Raises FasttuneError where a live process is training it.
    """
    with locked(run.lock, _("another process is training {run}", run=run.id)):
        remove(run.folder)
    pointer = run.root / run.series / "current"
    if pointer.is_file() and pointer.read_text(encoding="utf-8").strip() == run.id:
        pointer.unlink()


@contextlib.contextmanager
def unless_begun(run: Run) -> Iterator[None]:
    """Where the block fails before a step was trained, the run's folder goes: there is nothing in it to go on with."""
    try:
        yield
    except BaseException:
        if not run.history.is_file() and not list_checkpoints(run):
            remove(run.folder)
        raise


def remove(folder: Path) -> None:
    """A folder's end: at once gone by name, even where removing its files is cut short."""
    doomed = folder.with_name(f".{folder.name}{DELETED}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a removal that was cut short
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_halves(folder: Path, names: str = "*") -> None:
    """What a process that died while writing or removing left in a folder; the caller holds the lock of those who write
    there."""
    for path in (*folder.glob(names + PARTIAL), *folder.glob(f".{names}{DELETED}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def overrides(run: Run) -> list[str]:
    """What a run's recipe needs besides its own text to be read as it was: values that were overridden or inherited."""
    settings = read_json(run.plan)["settings"]
    given = [one for one in settings if one["source"] != "recipe" and not one["source"].startswith("default")]
    return [f"{one['key']}={json.dumps(one['value'], ensure_ascii=False)}" for one in given if one["value"] is not None]


# Locks --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds a lock file for this process; the system frees it when the process ends, however it ends.

    Raises FasttuneError with the message `otherwise` where a live process holds it.
    """
    deadline = time.monotonic() + PATIENCE
    with open(path, "w", encoding="utf-8") as file:
        while not taken(file):
            if time.monotonic() > deadline:
                raise error("run-is-locked", otherwise, where=str(path), fix=_("wait for it, or stop it first"))
            time.sleep(0.01)
        yield


def taken(file: IO[str]) -> bool:
    """Whether the lock of an open file could be taken."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a live process holds this lock file."""
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


# Checkpoints --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing_checkpoint(run: Run, step: int) -> Iterator[Path]:
    """A checkpoint folder to fill; it gets its manifest and its name only when the block ends well."""
    if run.history.is_file():
        sync_file(run.history)  # no checkpoint knows more steps than the history
    with whole_folder(run.checkpoints / f"checkpoint-{step}") as folder:
        yield folder
        files = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
        write_json(folder / "manifest.json", {"step": step, "sha256": files})


def list_checkpoints(run: Run) -> list[Path]:
    """Finished checkpoint folders of a run, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [path for path in run.checkpoints.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """120 for checkpoint-120."""
    return int(folder.name.split("-")[1])


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint against its manifest, in words; empty when it is whole."""
    try:
        manifest = read_json(checkpoint / "manifest.json")
        step, expected = int(manifest["step"]), dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return _("its manifest.json is missing or unreadable")
    if step != checkpoint_step(checkpoint):
        return _("it holds step {step}", step=step)
    for name, digest in expected.items():
        if not (checkpoint / name).is_file():
            return _("{file} is missing", file=name)
        if file_sha256(checkpoint / name) != digest:
            return _("{file} is not what was written", file=name)
    return ""


def newest_whole_checkpoint(run: Run) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is what was written, and the flaw of each newer one that is not."""
    flaws: list[str] = []
    for checkpoint in reversed(list_checkpoints(run)):
        flaw = damage(checkpoint)
        if not flaw:
            return checkpoint, flaws
        flaws.append(_("{checkpoint} is damaged and is not used: {flaw}", checkpoint=checkpoint, flaw=flaw))
    return None, flaws


def rotate(run: Run, keep: int, best_step: int | None, newest: int | None = None) -> None:
    """Remove the oldest checkpoints of this run beyond `keep`; the best one stays as well.

    Those beyond step `newest`, which a resumed run has just written, are damaged: they neither count nor go.
    """
    written = [path for path in list_checkpoints(run) if newest is None or checkpoint_step(path) <= newest]
    for path in written[:-keep]:
        if checkpoint_step(path) != best_step:
            remove(path)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_history(run: Run) -> list[dict[str, Any]]:
    """The lines of history.jsonl; a last line that a dying process left half-written is not one."""
    if not run.history.is_file():
        return []
    lines = run.history.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def last_epoch(history: Sequence[Mapping[str, Any]], per_epoch: int) -> list[Mapping[str, Any]]:
    """The lines of the last `per_epoch` trained steps, in which every sample had its say; none if none was trained."""
    trained = [line for line in history if "loss" in line]
    return [line for line in trained if line["step"] > trained[-1]["step"] - per_epoch]


def mean(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean of one field over some lines."""
    return float(sum(line[key] for line in lines) / len(lines))


def trim_history(run: Run, step: int) -> None:
    """Drop the lines after `step`, which a resumed run will write again."""
    lines = read_history(run)
    kept = [line for line in lines if line["step"] <= step]
    if run.history.is_file():
        write_text(run.history, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
