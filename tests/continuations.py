"""The continuation table: what each strategy does with each state of a series under each flag.

planning/test_continuation_table.py asks what is decided in every cell; training/test_continue.py trains the cells that
are not refused."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from series import RECIPE

from fasttune.pipeline import RunRequest

# One step an epoch. What each strategy says besides, and the steps it then trains after a parent of 3.
EPOCHS = RECIPE.replace("batch_size = 4", "batch_size = 16\nsave_steps = 9")
SETTINGS = {
    "fresh": ("train.epochs=3",),
    "incremental": ("continue.add_epochs=2.5",),
    "retune": ("train.learning_rate=1e-3",),
    "augment": (),
    "custom": ("continue.add_epochs=2", "train.learning_rate=1e-3"),
}
TRAINS = {
    "fresh": [1, 2, 3], "incremental": [4, 5, 6], "retune": [1, 2, 3], "augment": [4, 5, 6, 7], "custom": [4, 5],
}  # fmt: skip
TABLE = """
    the series has   strategy     no flag     resume      new         stop        overwrite 001
    nothing          fresh        new         new         new         new         unknown
    nothing          incremental  no-runs     no-runs     no-runs     no-runs     no-runs
    nothing          retune       new         new         new         new         unknown
    nothing          augment      no-runs     no-runs     no-runs     no-runs     no-runs
    nothing          custom       no-runs     no-runs     no-runs     no-runs     no-runs
    finished         fresh        exists      exists      new         exists      instead
    finished         incremental  new         exists      new         exists      its-parent
    finished         retune       new         exists      new         exists      its-parent
    finished         augment      new         exists      new         exists      its-parent
    finished         custom       new         exists      new         exists      its-parent
    stopped          fresh        resume      resume      new         exists      instead
    stopped          incremental  unfinished  unfinished  unfinished  unfinished  unfinished
    stopped          retune       unfinished  unfinished  unfinished  unfinished  unfinished
    stopped          augment      unfinished  unfinished  unfinished  unfinished  unfinished
    stopped          custom       unfinished  unfinished  unfinished  unfinished  unfinished
    trained          fresh        files       files       new         exists      instead
    trained          incremental  new         exists      new         exists      its-parent
    trained          retune       new         exists      new         exists      its-parent
    second-stopped   fresh        differs     differs     new         exists      instead
    second-stopped   incremental  resume      resume      new         exists      its-parent
    second-stopped   retune       differs     differs     new         exists      its-parent
    second-trained   fresh        exists      exists      new         exists      instead
    second-trained   incremental  files       files       new         exists      instead
    second-trained   retune       new         exists      new         exists      instead
"""
FLAGS = ("", "--on-existing resume", "--on-existing new", "--on-existing stop", "--overwrite persona/001")
REFUSED = ("unknown", "no-runs", "exists", "unfinished", "differs", "its-parent")


class Cell(NamedTuple):
    """One cell: the state of the series, the strategy and the flags of the command, and what comes of it."""

    state: str
    strategy: str
    flags: str
    outcome: str

    @property
    def command(self) -> str:
        """The flags with the strategy among them."""
        return f"{'' if self.strategy == 'fresh' else f'--continue {self.strategy} '}{self.flags}".strip()

    @property
    def request(self) -> RunRequest:
        """The command as pipeline.run takes it, for the folder of a series."""
        words = self.command.split()
        named = dict(zip(words[::2], words[1::2], strict=True))
        return RunRequest(
            Path("persona.toml"),
            SETTINGS[self.strategy],
            strategy=named.get("--continue"),
            on_existing=named.get("--on-existing"),  # type: ignore[arg-type]
            overwrite=named.get("--overwrite"),
        )

    @property
    def name(self) -> str:
        """The cell in a test's name."""
        return "-".join((self.state, *self.command.replace("--", "").split(), self.outcome))

    @property
    def parent(self) -> str | None:
        """The run that a new run of this cell continues from."""
        if self.strategy == "fresh" or self.state == "nothing":
            return None
        return "persona/002-incremental" if self.state == "second-trained" else "persona/001-fresh"

    @property
    def start_step(self) -> int:
        """The step of the checkpoint that a new run of this cell starts from; 0 for the base."""
        if self.strategy in ("fresh", "retune"):
            return 0
        return 6 if self.state == "second-trained" else 3

    @property
    def steps(self) -> list[int]:
        """The steps that a new run of this cell trains."""
        if (self.state, self.strategy) == ("nothing", "retune"):  # the series' first run: 6.5 epochs suit its samples
            return [1, 2, 3, 4, 5, 6, 7]
        if self.state == "second-trained":  # a retuned run trains as long as its parent
            return {"fresh": [1, 2, 3], "incremental": [7, 8, 9], "retune": [1, 2, 3, 4, 5, 6]}[self.strategy]
        return TRAINS[self.strategy]


CELLS = [
    Cell(state, strategy, flags, outcome)
    for state, strategy, *outcomes in (line.split() for line in TABLE.strip().splitlines()[1:])
    for flags, outcome in zip(FLAGS, outcomes, strict=True)
]
REFUSALS = [cell for cell in CELLS if cell.outcome in REFUSED]
TRAININGS = [cell for cell in CELLS if cell.outcome not in REFUSED]
