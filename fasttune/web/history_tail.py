"""history.jsonl as the board follows it: only what is new, never half a line, and long histories thinned.

A place in the file is its inode and an offset. A resumed run writes the file anew (history.trim_history), which gives
it another inode: then its lines are read from the beginning.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

FIELDS = ("step", "epoch", "loss", "eval_loss", "mean_token_accuracy", "learning_rate", "grad_norm",
          "tokens_per_second", "step_seconds")  # fmt: skip
Point = tuple[float | None, ...]  # one value for each of FIELDS
MOST_BYTES = 128 << 10  # that are read at once: a slow browser gets the rest when it has taken these
MOST_POINTS = 1200  # of a history that is shown at once: more than a screen has columns
BLOCK = 1 << 20


@dataclass(frozen=True)
class Place:
    """Up to where a file was read."""

    inode: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.inode}-{self.offset}"

    @classmethod
    def read(cls, text: str) -> Place:
        """The place that a browser names; the beginning for any other text."""
        inode, _dash, offset = text.partition("-")
        fits = inode.isascii() and inode.isdigit() and offset.isascii() and offset.isdigit() and len(text) < 42
        return cls(int(inode), int(offset)) if fits else cls()


@dataclass(frozen=True)
class News:
    """The points behind a place, the new place, and whether the file is another one than before. `more`: there are
    more whole lines already."""

    points: tuple[Point, ...]
    place: Place
    is_new_file: bool = False
    more: bool = False


def news(path: Path, place: Place, most_bytes: int = MOST_BYTES) -> News:
    """What was added to a history since a place. A last line that is not finished yet is left for the next time."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            is_new = bool(place.inode) and (status.st_ino != place.inode or status.st_size < place.offset)
            start = place.offset if place.inode and not is_new else 0
            file.seek(start)
            read = file.read(most_bytes)
            while read and b"\n" not in read and (longer := file.read(most_bytes)):
                read += longer
    except OSError:
        return News((), place)
    whole = read[: read.rfind(b"\n") + 1]
    end = start + len(whole)
    more = bool(whole) and start + len(read) < status.st_size
    return News(points_of(whole), Place(status.st_ino, end), is_new, more)


def points_of(lines: bytes) -> tuple[Point, ...]:
    """The points of whole lines; a damaged line is none."""
    found = (point_of(line) for line in lines.split(b"\n") if line)
    return tuple(point for point in found if point is not None)


def point_of(line: bytes) -> Point | None:
    """The figures of a line; None where it is no logged step or evaluation. A figure that is not finite is None."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or number(document.get("step")) is None:
        return None
    return tuple(number(document.get(name)) for name in FIELDS)


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def thinned(path: Path, most: int = MOST_POINTS) -> News:
    """About `most` points of a whole history, evenly spaced, with every evaluation and the last line; and its end.

    Only the lines that are shown are parsed: 100,000 of them take a tenth of a second.
    """
    kept: list[bytes] = []
    end = count = 0
    last = b""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            every = stride(file.read(64 << 10), status.st_size, most)
            file.seek(0)
            while whole := whole_lines(file):
                for line in whole.split(b"\n")[:-1]:
                    if count % every == 0 or b'"eval_loss"' in line:
                        kept.append(line)
                    count, last = count + 1, line
                end += len(whole)
    except OSError:
        return News((), Place())
    if last and (not kept or kept[-1] is not last):
        kept.append(last)
    return News(points_of(b"\n".join(kept)), Place(status.st_ino, end))


def whole_lines(file: IO[bytes]) -> bytes:
    """The next BLOCK bytes up to the end of a line; empty at the end, also before a last line that is not finished."""
    block = file.read(BLOCK)
    if block and not block.endswith(b"\n"):
        block += file.readline()
    return block[: block.rfind(b"\n") + 1]


def stride(beginning: bytes, size: int, most: int) -> int:
    """Each how many lines one is shown, by the mean length of the first ones."""
    lines = max(1, beginning.count(b"\n"))
    return max(1, round(size / (len(beginning) / lines) / most)) if beginning else 1


def latest(path: Path, most_bytes: int = 16 << 10) -> tuple[Point, ...]:
    """The last points of a history, as many as stand in its last bytes."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - most_bytes))
            read = file.read(most_bytes)
    except OSError:
        return ()
    beginning = 0 if size <= most_bytes else read.find(b"\n") + 1
    return points_of(read[beginning : read.rfind(b"\n") + 1])
