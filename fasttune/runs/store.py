"""The runs folder: series, numbered runs, the current run, and the names of the files in a run folder.

    runs/linzhi/current                 id of the run in use (a text file, no symlink: Windows drives)
    runs/linzhi/003-retune/
      recipe.toml  plan.json            as given; every resolved value with its source
      provenance.json                   versions, device, commit, data and base fingerprints, parent, start-up seconds
      history.jsonl  trainer_state.json one line a logged step; Hugging Face's own file
      checkpoints/checkpoint-120/       Hugging Face layout + manifest.json (sha256 of each file)
      adapter/                          PEFT layout: loads with plain peft; its presence says that the run is finished
      scores.json  tensorboard/
      exports/linzhi-Q4_K_M.gguf + .json, Modelfile

`delete` removes a run that the user named; nothing else removes one, except that a run that never trained a step leaves
no folder (checkpoints.unless_begun).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fasttune.console import _, usage_error
from fasttune.files import (
    SERIES_LOCK_SECONDS,
    is_locked,
    locked,
    remove_folder,
    remove_partial,
    whole_folder,
    write_text,
)

Status = Literal["running", "finished", "stopped"]
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


def list_series(root: Path) -> list[str]:
    """Names of all series under a runs folder."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and list_runs(root, path.name))


def run_number(run: Run) -> int:
    """3 for linzhi/003-retune."""
    return int(run.id.split("/")[1].split("-")[0])


def set_current(run: Run) -> None:
    """Make this run the one that its series' name stands for; of two that finish at once, the later one."""
    folder = run.root / run.series
    message = _("another process is starting a run of {series}", series=run.series)
    with locked(folder / ".current.lock", message, seconds=SERIES_LOCK_SECONDS):
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
    """The run of an id (`linzhi/003-retune`, `linzhi/003`), a series name or the path of a run folder.

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
            fix=_("series there: {known}; `fasttune runs` lists them, `--runs DIR` looks elsewhere", known=known),
        )
    return run


def delete(run: Run) -> None:
    """Remove the run that --overwrite names, and `current` where it names this run.

    Raises FasttuneError where a live process is training it.
    """
    with locked(run.lock, _("another process is training {run}", run=run.id)):
        remove_folder(run.folder)
    pointer = run.root / run.series / "current"
    if pointer.is_file() and pointer.read_text(encoding="utf-8").strip() == run.id:
        pointer.unlink()
