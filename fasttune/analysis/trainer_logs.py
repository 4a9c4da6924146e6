"""The logs of other trainers, read into one typed history: Hugging Face's trainer_state.json (of a folder, or of the
newest checkpoint in it), LLaMA-Factory's trainer_log.jsonl and ms-swift's logging.jsonl.

Rows are what people's folders hold: nulls, NaN and Infinity as Python writes them, closing rows that count evaluation
batches, every row twice and out of their sequence where two processes write one file, steps that are trained again
after a resume, and several trainings one after another in one file. A row that can't be read is counted and named.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from fasttune.console import UsageError, _, usage_error
from fasttune.runs.curves import Curve, Evaluation, Point

Trainer = Literal["Hugging Face", "LLaMA-Factory", "ms-swift"]
LOGS: dict[str, Trainer] = {
    "trainer_state.json": "Hugging Face",
    "trainer_log.jsonl": "LLaMA-Factory",
    "logging.jsonl": "ms-swift",
}
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
NEARBY = 10  # rows of a file within which a step that stands twice was written by two processes
SHARED_FILE = 0.1  # from this share of such steps on a file has several writers
OUT_OF_SEQUENCE = 5  # logging intervals by which their rows may be out of sequence


@dataclass(frozen=True)
class Row:
    """A row of a log: a logged step, an evaluation, or both; `total` is the number of steps that it counts towards."""

    step: int
    total: int | None
    epoch: float | None
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    accuracy: float | None
    held_out: int | None


@dataclass(frozen=True)
class TrainerLog:
    """A training by another trainer.

    `attempts` are the trainings that one file or folder holds, oldest first: one where the step counter never falls.
    `total_steps` and `epochs` are what was planned, `held_out` counts samples, `rank` is the LoRA rank, `base` the name
    in adapter_config.json. None is unknown.
    """

    path: Path
    trainer: Trainer
    attempts: tuple[Curve, ...]
    total_steps: int | None = None
    epochs: float | None = None
    held_out: int | None = None
    writers: int = 1
    unreadable: tuple[int, ...] = ()
    rank: int | None = None
    base: str | None = None
    checkpoints: tuple[int, ...] = ()

    @property
    def folder(self) -> Path:
        """The trainer's output folder, of a checkpoint's log the one above."""
        parent = self.path.parent
        return parent.parent if CHECKPOINT.fullmatch(parent.name) else parent


# Finding the file ---------------------------------------------------------------------------------------------------


def find_log(path: Path) -> Path | None:
    """The log in a folder: its own, else that of its newest checkpoint; a log that is named is itself. None for none.

    A LLaMA-Factory or ms-swift log goes before trainer_state.json where it holds more than one training.
    """
    if path.name in LOGS and path.is_file():
        return path
    if not path.is_dir():
        return None
    found = [path / name for name in LOGS if (path / name).is_file()]
    appended = [one for one in found if one.suffix == ".jsonl" and len(read_log(one).attempts) > 1]
    if appended or found:
        return (appended or found)[0]
    return next((one / "trainer_state.json" for one in reversed(checkpoint_folders(path))
                 if (one / "trainer_state.json").is_file()), None)  # fmt: skip


def checkpoint_folders(path: Path) -> list[Path]:
    """The folders checkpoint-N in a folder, by their number."""
    found = [
        (int(match[1]), one) for one in path.iterdir() if (match := CHECKPOINT.fullmatch(one.name)) and one.is_dir()
    ]
    return [one for _number, one in sorted(found)]


# Reading ------------------------------------------------------------------------------------------------------------


def read_log(path: Path) -> TrainerLog:
    """The training that a log tells of. Raises UsageError where the file is no such log, or holds no logged step."""
    trainer = LOGS[path.name]
    document, lines, unreadable = read_lines(path)
    rows = [row for line in lines if (row := row_of(line, trainer))]
    if not any(row.loss is not None for row in rows):
        raise not_a_log(path)
    totals = Counter(row.total for row in rows if row.total and row.loss is not None)
    total = whole(document.get("max_steps")) or (totals.most_common(1)[0][0] if totals else None)
    rows = [replace(row, step=last_step(rows)) if is_closing(row, total) else row for row in rows]
    several = is_shared(rows)
    log = TrainerLog(
        path, trainer, tuple(attempts(rows, several)), total,
        number(document.get("num_train_epochs")), next((row.held_out for row in rows if row.held_out), None),
        2 if several else 1, unreadable,
    )  # fmt: skip
    return with_folder(log)


def read_lines(path: Path) -> tuple[Mapping[str, Any], list[Mapping[str, Any]], tuple[int, ...]]:
    """The document around the rows (empty for JSONL), its rows, and the lines that can't be read; a last line that a
    killed process left incomplete is not one of them."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        if path.suffix == ".json":
            document = json.loads(text)
            rows = document["log_history"]
            return document, [row for row in rows if isinstance(row, Mapping)], ()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise not_a_log(path) from None
    lines, unreadable = [], []
    every = text.split("\n")
    for number_, line in enumerate(every, 1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            value = () if number_ < len(every) else None
        if isinstance(value, Mapping):
            lines.append(value)
        elif value is not None:
            unreadable.append(number_)
    return {}, lines, tuple(unreadable)


def row_of(line: Mapping[str, Any], trainer: Trainer) -> Row | None:
    """A line of a log as a row; None for one without a step, a loss or a held-out loss, as closing rows are.

    LLaMA-Factory's `accuracy` is that of preferences, and no token accuracy.
    """
    step, total = step_of(line)
    loss = number(line.get("loss"))
    eval_loss = number(next((line[key] for key in line if re.fullmatch(r"eval_(\w+_)?loss", key)), None))
    if step is None or (loss is None and eval_loss is None):
        return None
    names = () if trainer == "LLaMA-Factory" else ("mean_token_accuracy", "token_acc", "acc")
    seconds, speed = number(line.get("eval_runtime")), number(line.get("eval_samples_per_second"))
    return Row(
        step, total, number(line.get("epoch")), loss, eval_loss, first(line, "learning_rate", "lr"),
        first(line, "grad_norm"), first(line, *names), round(seconds * speed) if seconds and speed else None,
    )  # fmt: skip


def step_of(line: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The step of a line and the number of steps it counts towards."""
    counted = line.get("global_step/max_steps")
    if isinstance(counted, str) and (match := re.fullmatch(r"(\d+)/(\d+)", counted)):
        return int(match[1]), int(match[2])
    step = next((line[key] for key in ("step", "current_steps", "global_step") if line.get(key) is not None), None)
    return whole(step), whole(line.get("total_steps"))


def first(line: Mapping[str, Any], *names: str) -> float | None:
    """The first of these fields that is a number."""
    return next((value for name in names if (value := number(line.get(name))) is not None), None)


def number(value: Any) -> float | None:
    """A JSON number as a float, NaN and the infinities included; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def whole(value: Any) -> int | None:
    """A JSON number that is whole; None for anything else."""
    return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 1e15 else None


def last_step(rows: Sequence[Row]) -> int:
    """The last step that was logged."""
    return next(row.step for row in reversed(rows) if row.loss is not None)


def is_closing(row: Row, total: int | None) -> bool:
    """Whether a row is the evaluation after the end, which LLaMA-Factory counts in batches."""
    return row.loss is None and row.total is not None and row.total != total and row.step == row.total


# Several processes, several trainings -------------------------------------------------------------------------------


def is_shared(rows: Sequence[Row]) -> bool:
    """Whether two or more processes write the file: many steps stand twice within a few rows."""
    steps = [row.step for row in rows if row.loss is not None]
    twice = {step for index, step in enumerate(steps) if step in steps[max(0, index - NEARBY) : index]}
    return len(twice) > SHARED_FILE * len(set(steps))


def attempts(rows: Sequence[Row], is_shared_file: bool) -> Iterator[Curve]:
    """The trainings that the rows of a file make, without rows that stand twice.

    A new one begins where the step counter falls, in a file of several processes by more than they are out of sequence.
    """
    intervals = [abs(b.step - a.step) for a, b in pairwise(rows) if b.step != a.step]
    slack = OUT_OF_SEQUENCE * median(intervals) if is_shared_file and intervals else 0.0
    parts: list[dict[tuple[int, bool], Row]] = [{}]
    for row in rows:
        part, key = parts[-1], (row.step, row.loss is None)
        newest = max((step for step, _is_evaluation in part), default=0)
        again = key in part and not is_shared_file and not is_same(part[key], row)
        if row.step < newest - slack or again:
            parts.append({key: row})
        else:
            part.setdefault(key, row)
    for part in parts:
        curve = as_curve(sorted(part.values(), key=lambda row: (row.step, row.loss is None)))
        if curve.points:
            yield curve


def is_same(one: Row, other: Row) -> bool:
    """Whether two rows of a step say the same."""
    return (one.loss, one.eval_loss, one.learning_rate) == (other.loss, other.eval_loss, other.learning_rate)


def as_curve(rows: Sequence[Row]) -> Curve:
    """Rows as a curve; of evaluations at one step the first counts."""
    points = [Point(row.step, row.loss, row.epoch, row.learning_rate, row.grad_norm, row.accuracy)
              for row in rows if row.loss is not None]  # fmt: skip
    evaluated: dict[int, float] = {}
    for row in rows:
        if row.eval_loss is not None:
            evaluated.setdefault(row.step, row.eval_loss)
    return Curve(tuple(points), tuple(Evaluation(step, loss) for step, loss in evaluated.items()))


# Beside the log -----------------------------------------------------------------------------------------------------


def with_folder(log: TrainerLog) -> TrainerLog:
    """The log with what lies beside it: the adapter's rank and base, the checkpoints, and the trainings that left other
    checkpoints in the same folder."""
    config = adapter_config(log)
    folders = checkpoint_folders(log.folder)
    rank = whole(config.get("r")) or whole(config.get("lora_rank"))
    base = config.get("base_model_name_or_path")
    numbers = tuple(int(one.name.partition("-")[2]) for one in folders)
    return replace(log, rank=rank, base=base if isinstance(base, str) else None, checkpoints=numbers,
                   attempts=(*earlier_trainings(log, folders), *log.attempts))  # fmt: skip


def adapter_config(log: TrainerLog) -> Mapping[str, Any]:
    """PEFT's adapter_config.json in the folder or in a checkpoint of it; empty where there is none."""
    for folder in (log.path.parent, log.folder, *reversed(checkpoint_folders(log.folder))):
        try:
            content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, Mapping):
            return content
    return {}


def earlier_trainings(log: TrainerLog, folders: Sequence[Path]) -> list[Curve]:
    """The trainings that left checkpoints in the same folder whose first logged losses are others than this one's."""
    found: list[Curve] = []
    if log.trainer != "Hugging Face" or len(log.attempts) > 1:
        return found
    known = [log.attempts[0].losses[:3]]
    for folder in folders:
        path = folder / "trainer_state.json"
        if path == log.path or not path.is_file():
            continue
        try:
            _document, lines, _unreadable = read_lines(path)
        except UsageError:
            continue
        rows = [row for line in lines if (row := row_of(line, "Hugging Face"))]
        curve = as_curve(sorted(rows, key=lambda row: row.step))
        if curve.points and not any(curve.losses[:3] == losses[: len(curve.losses)] for losses in known):
            known.append(curve.losses[:3])
            found.append(curve)
    return found


def not_a_log(path: Path) -> UsageError:
    """The error for a file that holds no logged step."""
    fix = _("it reads trainer_state.json (Hugging Face, TRL, Unsloth, Axolotl), trainer_log.jsonl (LLaMA-Factory) and "
            "logging.jsonl (ms-swift)")  # fmt: skip
    return usage_error("not-a-log", _("it holds no logged training step"), where=str(path), fix=fix)
