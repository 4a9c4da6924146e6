"""history.jsonl: one line a logged step or evaluation."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.console import FasttuneError, _, error
from fasttune.files import write_text
from fasttune.runs import documents
from fasttune.runs.documents import TrainerStateFigures
from fasttune.runs.store import Run
from fasttune.runs.typed_json import fits_plain

BLOCK = 1 << 20  # bytes of a history that are parsed at once
LOGGED, TRAINED, EVALUATED = ("step",), ("step", "loss", "epoch", "mean_token_accuracy"), ("step", "eval_loss")


def read_history(run: Run) -> list[dict[str, Any]]:
    """The lines of history.jsonl; a last line that a killed process left incomplete is not one.

    Raises FasttuneError with the code document-damaged that names the first line that is damaged.
    """
    try:
        found = run.history.stat()
        return list(read_lines(run, (found.st_mtime_ns, found.st_size))) if run.history.is_file() else []
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise documents.damaged(run.history, str(problem)) from None


@functools.lru_cache(maxsize=2)
def read_lines(run: Run, _changed: tuple[int, int]) -> tuple[dict[str, Any], ...]:
    """As `read_history`, kept until the file is changed: a diagnosis or a page asks for it a dozen times, and a history
    may have 100,000 lines. Raises OSError too."""
    found: list[dict[str, Any]] = []
    with open(run.history, "rb") as file:
        while block := file.read(BLOCK):
            block += b"" if block.endswith(b"\n") else file.readline()
            whole = block[: block.rfind(b"\n") + 1]
            found += parsed_at_once(whole) or parsed_by_line(run, whole, len(found) + 1)
    return tuple(found)


def parsed_at_once(block: bytes) -> list[dict[str, Any]] | None:
    """The lines of a block that ends with a line end, read as one array of JSON, which takes a third of the time and of
    the memory, for their keys are the same texts; None where one of them is damaged, or no object of plain figures.

    As many braces as lines, each line between two of them, and no line end in a text, which JSON forbids: so each
    element is a line.
    """
    count = block.count(b"\n")
    is_flat = block.count(b"{") == block.count(b"}") == count == block.count(b"}\n{") + 1 and b"[" not in block
    if not is_flat or not (block.startswith(b"{") and block.endswith(b"}\n")):
        return None
    try:
        lines: list[dict[str, Any]] = json.loads(b"[" + block[:-1].replace(b"\n", b",\n") + b"]")
    except (ValueError, RecursionError):
        return None
    return None if any(map(missing_field, lines)) else lines


def parsed_by_line(run: Run, block: bytes, first: int) -> list[dict[str, Any]]:
    """The lines of a block one by one, the first one's number being `first`. Raises FasttuneError where one is
    damaged."""
    return [parsed(run, number, line) for number, line in enumerate(block.split(b"\n")[:-1], first)]


def parsed(run: Run, number: int, line: bytes) -> dict[str, Any]:
    """A line of history.jsonl. Raises FasttuneError where it is damaged."""
    try:
        document = json.loads(line)  # bytes that are not UTF-8 are a ValueError too
    except (ValueError, RecursionError):
        raise damaged_line(run, number, _("this is not a line of JSON")) from None
    flaw = missing_field(document)
    if flaw:
        raise damaged_line(run, number, _("its field {field} is missing or damaged", field=flaw))
    return document


def damaged_line(run: Run, number: int, what: str) -> FasttuneError:
    """The error for a line of history.jsonl that can't be read."""
    fix = _("remove this line: figures of a step are lost, nothing else")
    return error("document-damaged", what, where=f"{run.history}:{number}", fix=fix)


def missing_field(line: Any) -> str:
    """The first field of a logged line that is missing or no number; empty for a line that has all of them."""
    if not isinstance(line, dict):
        return "step"
    needed = TRAINED if "loss" in line else EVALUATED if "eval_loss" in line else LOGGED
    for key in needed:
        value = line.get(key)
        if type(value) is not float and not fits_plain(int, value):
            return key
    step = line["step"]
    return "" if type(step) is int or step.is_integer() else "step"


def read_log_history(run: Run) -> TrainerStateFigures:
    """The figures of a finished run's trainer_state.json, its lines checked as those of history.jsonl are.

    Raises FasttuneError with the code document-damaged where a line is damaged or no step was logged.
    """
    state = documents.read_trainer_state(run)
    flaws = [index for index, line in enumerate(state.log_history) if missing_field(line)]
    if flaws or not any("loss" in line for line in state.log_history):
        name = f"log_history[{flaws[0]}]" if flaws else "log_history"
        raise documents.damaged(run.trainer_state, _("its field {field} is missing or damaged", field=name))
    return state


@dataclass(frozen=True)
class EpochMeans:
    """Means over the logged lines of one epoch's steps, so that every sample counts once; the accuracy is NaN where
    another trainer logged none."""

    loss: float
    accuracy: float


def last_epoch(history: Sequence[Mapping[str, Any]], steps_per_epoch: int) -> EpochMeans | None:
    """Mean loss and token accuracy over the last `steps_per_epoch` trained steps; None where no step was logged.

    `history` are lines of history.jsonl or of the Trainer's log history.
    """
    trained = [line for line in history if "loss" in line]
    lines = [line for line in trained if line["step"] > trained[-1]["step"] - steps_per_epoch]
    if not lines:
        return None
    loss = sum(line["loss"] for line in lines) / len(lines)
    return EpochMeans(loss, sum(line.get("mean_token_accuracy", math.nan) for line in lines) / len(lines))


def trim_history(run: Run, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again."""
    lines = read_history(run)
    kept = [line for line in lines if line["step"] <= step]
    if run.history.is_file():
        write_text(run.history, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
