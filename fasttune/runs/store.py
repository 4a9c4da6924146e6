"""The runs folder: series, numbered runs, the current run, and the names of the files in a run folder.

    runs/linzhi/current                 id of the run in use (a text file, no symlink: Windows drives)
    runs/linzhi/003-retune/
      recipe.toml  plan.json            as given; every resolved value with its source
      provenance.json                   versions, device, commit, data and base fingerprints, parent, start-up seconds
      history.jsonl  trainer_state.json one line a logged step; Hugging Face's own file
      checkpoints/checkpoint-120/       Hugging Face layout + manifest.json (sha256 of each file)
      adapter/                          PEFT layout: loads with plain peft; its presence says that the run is finished
      epochs/epoch-2/                   the adapter as it was after an epoch, in the layout of adapter/
      picked.json                       which of them export, chat and the like use in place of adapter/
      scores.json  blind.json  tensorboard/
      replaces                          id of the run that --overwrite named, which this run is trained in place of
      exports/linzhi-Q4_K_M.gguf + .json, Modelfile

`remove_replaced` removes the run that the user named under --overwrite, once the run trained in its place is complete;
nothing else removes one, except that a run that never trained a step leaves no folder (checkpoints.unless_begun).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, Finding, UsageError, _, error, show_findings, usage_error
from fasttune.files import (
    RUN_LOCK_SECONDS,
    SERIES_LOCK_SECONDS,
    condition_as_error,
    file_sha256,
    is_locked,
    locked,
    remove_folder,
    remove_partial,
    whole_folder,
    write_text,
)

Status = Literal["running", "finished", "stopped"]
LONGEST_ID = 200  # characters; a file system would refuse a longer name, and a message is no place for it
NUMBERED = re.compile(r"(\d{3,})-\w+")  # 003-retune


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
    def epochs(self) -> Path:
        return self.folder / "epochs"

    @property
    def picked(self) -> Path:
        return self.folder / "picked.json"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def blind(self) -> Path:
        return self.folder / "blind.json"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def replaces(self) -> Path:
        return self.folder / "replaces"

    @property
    def status(self) -> Status:
        """finished: it has its adapter; running: a live process holds its lock; stopped: neither."""
        if self.adapter.is_dir():
            return "finished"
        return "running" if is_locked(self.lock) else "stopped"


# Series and runs ----------------------------------------------------------------------------------------------------


def create(root: Path, series: str, strategy: str, fill: Callable[[Run], None] = lambda new: None) -> Run:
    """A new numbered run folder, holding what `fill` writes into it when it appears.

    Under the series' lock, so that two processes never get the same number.
    """
    folder = root / series
    folder.mkdir(parents=True, exist_ok=True)
    message = _("another process is starting a run of {series}", series=series)
    with locked(folder / ".lock", message, seconds=SERIES_LOCK_SECONDS):
        remove_partial(folder, "[0-9]*")
        number = 1 + max((run_number(run) for run in list_runs(root, series)), default=0)
        name = f"{number:03d}-{strategy}"
        with whole_folder(folder / name) as partial:
            fill(Run(root, f"{series}/{partial.name}"))
    return Run(root, f"{series}/{name}")


def list_runs(root: Path, series: str) -> list[Run]:
    """The runs of a series, oldest first; none for a name that is no folder's, such as `a/../a`."""
    folder = root / series
    if "/" in series or series in ("", ".", "..") or not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if NUMBERED.fullmatch(path.name) and path.is_dir()]
    return sorted((Run(root, f"{series}/{name}") for name in names), key=run_number)


def list_series(root: Path, findings: list[Finding] | None = None) -> list[str]:
    """Names of all series under a runs folder; of one whose folder can't be listed a finding is added instead.

    Raises OSError where the runs folder itself can't be listed, or is a file.
    """
    names = []
    for folder in sorted(root.iterdir()) if root.exists() else ():
        try:
            with condition_as_error():
                is_series = folder.is_dir() and bool(list_runs(root, folder.name))
            names += [folder.name] if is_series else []
        except FasttuneError as problem:
            if findings is not None:
                why = _("{series} is not shown", series=folder.name)
                findings += [replace(finding, why=f"{why}: {finding.why}") for finding in problem.findings]
    return names


def run_number(run: Run) -> int:
    """3 for linzhi/003-retune."""
    return int(run.id.split("/")[1].split("-")[0])


def set_current(run: Run) -> None:
    """Make this run the one that its series' name stands for; of two that finish at once, the later one."""
    folder = run.root / run.series
    message = _("another process is starting a run of {series}", series=run.series)
    with locked(folder / ".current.lock", message, seconds=SERIES_LOCK_SECONDS):
        write_text(folder / "current", run.id + "\n")


def by_id(root: Path, id: str) -> Run | None:
    """The run of an id that stands in a file; None where there is no such run, or the id is anything else, such as a
    path that leaves the runs folder."""
    series, _slash, name = id.partition("/")
    if len(id) > LONGEST_ID:
        return None
    run = Run(root, id)
    inside = series not in ("", ".", "..") and "\\" not in series and NUMBERED.fullmatch(name)
    return run if inside and run.folder.is_dir() else None


def pointed_at(root: Path, series: str) -> Run | None:
    """The run of the series that its file `current` names; None where it names none."""
    pointer = root / series / "current"
    if not pointer.is_file():
        return None
    run = by_id(root, pointer.read_text(encoding="utf-8", errors="replace").strip())
    return run if run and run.series == series else None


def current(root: Path, series: str) -> Run | None:
    """The run a series' name stands for: the one in `current`, else the newest finished one, else the newest."""
    if run := pointed_at(root, series):
        return run
    found = list_runs(root, series)
    usable = [run for run in found if run.status == "finished"] or found
    return usable[-1] if usable else None


def find(root: Path, name: str) -> Run:
    """The run of an id (`linzhi/003-retune`, `linzhi/003`), a series name or the path of a run folder.

    Raises UsageError with the names there are where none fits.
    """
    path, run = Path(name), find_below(root, name)
    if run is None and (path / "plan.json").is_file():
        return Run(path.resolve().parent.parent, f"{path.resolve().parent.name}/{path.resolve().name}")
    if run is None:
        raise unknown_run(root, name)
    return run


def unknown_run(root: Path, name: str) -> UsageError:
    """The error for a name that no run has."""
    known = ", ".join(list_series(root)) or _("none yet")
    return usage_error(
        "unknown-run",
        _("no run called {name} in {root}", name=name, root=root),
        fix=_(
            "series there: {known}; `{command}` lists them, `--runs DIR` looks elsewhere",
            known=known,
            command=command_line(["runs", *runs_option(root)]),
        ),
    )


def find_below(root: Path, name: str) -> Run | None:
    """The run of an id or a series name in this runs folder and no other."""
    series, _slash, number = name.strip("/").partition("/")
    if not number:
        return current(root, series)
    matches = [run for run in list_runs(root, series) if run.id == name or run.id.startswith(f"{series}/{number}-")]
    return matches[0] if len(matches) == 1 else None


# One run in place of another ----------------------------------------------------------------------------------------


def replace_by(old: Run, new: Run) -> None:
    """Note in the folder of a new run that it is trained in place of another, with the checksum of that one's plan."""
    write_text(new.replaces, f"{old.id} {plan_digest(old)}\n")


def replaced(run: Run) -> Run | None:
    """The run of the same series that this one is trained in place of, while it is there."""
    if not run.replaces.is_file():
        return None
    noted = run.replaces.read_text(encoding="utf-8", errors="replace")
    name, _space, digest = noted.strip().partition(" ")
    others = [one for one in list_runs(run.root, run.series) if one.id == name and one.id != run.id]
    return others[0] if others and plan_digest(others[0]) == digest else None


def plan_digest(run: Run) -> str:
    """The sha256 of a run's plan.json, which nothing changes; empty where it is lost."""
    return file_sha256(run.plan) if run.plan.is_file() else ""


def remove_replaced(run: Run) -> Run | None:
    """Remove the run that a complete one was trained in place of, and return it; None where there is none.

    Raises FasttuneError where a live process uses it.
    """
    old = replaced(run)
    if old is not None:
        delete(old, seconds=SERIES_LOCK_SECONDS)
    run.replaces.unlink(missing_ok=True)
    return old


def delete(run: Run, *, seconds: float = RUN_LOCK_SECONDS) -> None:
    """Remove a run, and `current` where it names this run. Raises FasttuneError as `exclusive` does."""
    with exclusive(run, seconds=seconds):
        remove_folder(run.folder)
    pointer = run.root / run.series / "current"
    if pointer.is_file() and pointer.read_text(encoding="utf-8", errors="replace").strip() == run.id:
        pointer.unlink()


@contextlib.contextmanager
def exclusive(run: Run, *, seconds: float = RUN_LOCK_SECONDS) -> Iterator[None]:
    """Hold a run's lock.

    Raises FasttuneError where another process trains or exports the run for longer than `seconds`.
    """
    with locked(run.lock, in_use(run), seconds=seconds):
        yield


def keep(run: Run, write: Callable[[], None]) -> bool:
    """Write what was computed of a run into its folder, under its lock. Returns whether it was written: where another
    process uses the run, or the disk does not take it, that is a warning, since the result itself is shown."""
    try:
        with condition_as_error(), exclusive(run):
            write()
    except FasttuneError as problem:
        what = _("the result is shown, and not kept")
        show_findings([replace(one, level="warning", what=f"{what}: {one.what}") for one in problem.findings])
        return False
    return True


def require_unused(run: Run) -> None:
    """Raises FasttuneError where another process trains or exports the run; writes nothing."""
    if is_locked(run.lock):
        raise error("run-is-locked", in_use(run), where=run.id, fix=_("wait for it, or stop it first"))


def in_use(run: Run) -> str:
    """What is said of a run whose lock another process holds."""
    if run.adapter.is_dir():
        return _("another process is exporting {run}", run=run.id)
    return _("another process is training {run}", run=run.id)
