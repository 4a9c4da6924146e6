"""The JSON files that pass between an experiment and the processes of its arms; written and read here and nowhere else.

    NAME.job.json   Job          what the process is to do; deleted when the process has ended
    NAME.part       Answer       what it measured, as the process itself writes it; deleted once it is in NAME.json
    NAME.json       KeptResult   the answer with its commit, its time and the digest of its job

NAME is `roundN-ARM`, or `roundN-limit` for the machine's matrix-multiply rates. NAME.log is what the process printed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fasttune.files import read_json, write_json

Engine = Literal["fasttune", "stock", "stock-padding-free", "plain", "limit"]
MatmulRates = dict[str, float]  # GFLOP/s by "PRODUCT INPUTS to OUTPUTS"


@dataclass(frozen=True)
class Job:
    """What a process is to do. `recipe` and `base` are paths; `started` is time.monotonic() just before its start.

    `warmup_samples` shortens the first step to so many samples (0: a whole step). `micro_batch` is how many samples
    TRL's trainer takes at a time (0: the whole step). `without` names functions of `fasttune.training.model` that make
    fasttune's model faster and that this arm leaves out.
    """

    engine: Engine
    recipe: str
    overrides: tuple[str, ...]
    base: str
    steps: int
    started: float
    warmup_samples: int = 0
    micro_batch: int = 0
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What an arm's process measured; lists have one entry a step, warmup steps included.

    A step's seconds end when its optimizer step ends. The first step begins with the first forward pass, at which
    `start_up_seconds`, counted from the start of the process, end. `computed_tokens` are the tokens that went through
    the model: padding counts, a shared prefix counts once. `attention_pairs` counts the pairs of a token and one that
    it attends to which the samples need. `memory` holds GiB at the peak; `precision` is the type of the embeddings.
    """

    device: str
    unsloth: bool
    precision: str
    start_up_seconds: float
    step_seconds: list[float]
    losses: list[float]
    grad_norms: list[float]
    samples: list[int]
    tokens: list[int]
    supervised_tokens: list[int]
    computed_tokens: list[int]
    attention_pairs: list[int]
    memory: dict[str, float]


Answer = Measured | MatmulRates


@dataclass(frozen=True)
class KeptResult:
    """An answer that is kept: of which job (its digest), when (ISO 8601, UTC), on which commit of fasttune."""

    job: str
    at: str
    commit: str
    measured: Answer


def write_job(path: Path, job: Job) -> None:
    """Write what a process is to do."""
    write_json(path, asdict(job))


def read_job(path: Path) -> Job:
    """Read a job as `write_job` wrote it."""
    document = read_json(path)
    return Job(**document | {name: tuple(document[name]) for name in ("overrides", "without")})


def write_answer(path: Path, answer: Answer) -> None:
    """Write what a process measured."""
    write_json(path, asdict(answer) if isinstance(answer, Measured) else answer)


def read_answer(path: Path, engine: Engine) -> Answer:
    """Read what the process of an engine measured."""
    return _answer(read_json(path), engine)


def write_kept(path: Path, kept: KeptResult) -> None:
    """Write an answer with where it comes from."""
    write_json(path, asdict(kept))


def read_kept(path: Path, engine: Engine) -> KeptResult | None:
    """A result that is kept; None where there is none, or one with the fields of another version."""
    if not path.is_file():
        return None
    try:
        document = read_json(path)
        return KeptResult(**document | {"measured": _answer(document["measured"], engine)})
    except (KeyError, TypeError):
        return None


def _answer(document: dict[str, Any], engine: Engine) -> Answer:
    return dict(document) if engine == "limit" else Measured(**document)


def job_digest(job: Job, environment: Sequence[tuple[str, str]]) -> str:
    """16 hexadecimal digits that are the same for the same job, whenever it is started.

    The recipe's text counts, not only its path; no path of the machine can be read from the digest.
    """
    identity = {**asdict(job), "started": 0, "environment": environment}
    identity["text"] = Path(job.recipe).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
