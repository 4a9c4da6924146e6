"""The JSON documents of a run, typed: written and read here and nowhere else.

    plan.json                 PlanDocument        every resolved setting with its source, and what follows from the data
    provenance.json           Provenance          versions, device, fingerprints, row budget, starts, continuations
    scores.json               Scores              probe questions with the answers of the base and of the trained model
    proof.json                CheckBatch          in each checkpoint and adapter: the loss of a fixed batch when saved
    window.json               UnloggedMetrics     in each checkpoint: sums since the last logged step
    manifest.json             Manifest            in each checkpoint: sha256 of each file
    exports/NAME.json         ArtifactDocument    beside each GGUF file
    exports/merged/….json     MergedDocument      in the merged Hugging Face folder

Each carries a `format` number. A document without one is format 0, which fasttune wrote before 0.1.0 was released; its
fields are the same. An older format is read, a newer one is refused in one sentence. `TrainerStateFigures` are what
fasttune reads of trainer_state.json, which is Hugging Face's own file.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fasttune.console import FasttuneError, _, error
from fasttune.files import write_json
from fasttune.recipe.schema import Setting
from fasttune.runs.store import Run

FORMAT = 1  # of what this version writes
CHECK_BATCH, UNLOGGED_METRICS, MANIFEST = "proof.json", "window.json", "manifest.json"

StartKind = Literal["base", "adapter", "checkpoint"]
Document = TypeVar("Document")


# What stands in them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanDocument:
    """plan.json. `parent` is a run id, `start_step` the step of the checkpoint that the run starts from (0: none)."""

    name: str
    strategy: str
    parent: str | None
    start: StartKind
    start_step: int
    settings: tuple[Setting, ...]
    system: str | None
    data_fingerprint: str
    train_samples: int
    val_samples: int
    steps_per_epoch: int
    total_steps: int
    epochs: float

    @property
    def values(self) -> dict[str, Any]:
        """{dotted key: value} of all settings, lists as JSON has them."""
        return {setting.key: setting.value for setting in self.settings}


@dataclass(frozen=True)
class RowsFrom:
    """From `step` on a row holds at most `tokens_per_row` tokens; half a step later is the evaluation after it."""

    step: float
    tokens_per_row: int


@dataclass(frozen=True)
class RowRecord:
    """How a run lays its steps out in rows: the budget now, as it was chosen, measured and lowered; and whether
    activations are recomputed in the backward pass. `rows_asked` is the recipe's train.tokens_per_row."""

    tokens_per_row: int
    rows_chosen: int = 0  # format 0 wrote it from some version on; 0: as tokens_per_row
    rows_measured: RowsFrom | None = None
    rows_cut: tuple[RowsFrom, ...] = ()
    rows_asked: int | str = "auto"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class BaseRecord:
    """The base a run was trained on; `fingerprint` is made by training.provenance.fingerprint."""

    name: str
    revision: str
    fingerprint: str


@dataclass(frozen=True)
class DataRecord:
    """The files of a run's data; `fingerprint` is that of their contents (data.dataset.fingerprint)."""

    train: tuple[str, ...]
    val: str | float
    fingerprint: str


@dataclass(frozen=True)
class StartRecord:
    """One start of a run: the first step it trained, seconds of each start-up phase, samples and how many of them were
    tokenized anew."""

    step: int
    seconds: Mapping[str, float]
    samples: int
    rendered: int


@dataclass(frozen=True)
class Continuation:
    """One start from a checkpoint or an adapter, with the losses of the check batch; None where the data is another."""

    from_: str
    loss_when_saved: float | None
    loss: float | None
    step: int | None = None
    learning_rate_before: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class PrefixDifference:
    """How far shared prefixes and plain attention were apart before the first step, relative to the latter."""

    loss: float
    gradient: float


@dataclass(frozen=True)
class Provenance:
    """provenance.json. `created` is UTC in ISO 8601, `device` the GPU or processor, `system` the prompt served with."""

    fasttune: str
    commit: str
    created: str
    python: str
    platform: str
    command: tuple[str, ...]
    device: Mapping[str, Any]
    packages: Mapping[str, str]
    base: BaseRecord
    data: DataRecord
    system: str | None
    parent: str | None
    rows: RowRecord = field(metadata={"flat": True})  # its fields stand among the others
    starts: tuple[StartRecord, ...] = ()
    continuations: tuple[Continuation, ...] = ()
    sharing_check: PrefixDifference | None = None


@dataclass(frozen=True)
class Probe:
    """A probe question with the answers of the untrained base and of what was trained ("" before it was asked)."""

    question: str
    base: str
    trained: str = ""


@dataclass(frozen=True)
class Scores:
    """scores.json. `answered_by` is the GGUF file, "adapter", None where there was nothing to answer, and NOT_ASKED
    before the probe questions were asked: the last thing that a run does."""

    probes: tuple[Probe, ...]
    answered_by: str | None = ""


NOT_ASKED = ""


@dataclass(frozen=True)
class CheckBatch:
    """proof.json. `loss` is the mean over the supervised tokens of `samples`, `tokens` a digest of their token ids,
    `random_state` one of the random generators."""

    step: int
    optimizer_step: int
    learning_rate: float
    loss: float
    samples: tuple[str, ...]
    tokens: str
    random_state: str
    device: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class UnloggedMetrics:
    """window.json: sums over the steps since the last logged one, exact; `tokens_seen` counts from the run's start."""

    loss: float
    hits: int
    supervised: int
    tokens: int
    computed_tokens: int
    samples: int
    steps: int
    seconds: float
    tokens_seen: int


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a checkpoint."""

    step: int
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class ArtifactDocument:
    """The .json beside a GGUF file: `type` as in the recipe, `bytes` its size, `checks` the figures of verify.py,
    `inputs` a digest of everything the file was made from."""

    path: str
    type: str
    sha256: str
    bytes: int
    run_id: str
    system: str | None
    checks: Mapping[str, Any]
    base: str
    inputs: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class MergedDocument:
    """In the folder of a merged model: what it was made from."""

    inputs: str
    run_id: str
    base: str


@dataclass(frozen=True)
class TrainerStateFigures:
    """What is read of Hugging Face's trainer_state.json; `best_metric` is the lowest held-out loss."""

    global_step: int
    log_history: tuple[dict[str, float], ...]
    best_metric: float | None = None


# A run's own --------------------------------------------------------------------------------------------------------


def read_plan(run: Run) -> PlanDocument:
    """The plan of a run. Raises FasttuneError as `read` does."""
    return read(run.plan, PlanDocument)


def read_provenance(run: Run) -> Provenance:
    """The provenance of a run. Raises FasttuneError as `read` does."""
    return read(run.provenance, Provenance)


def read_trainer_state(run: Run) -> TrainerStateFigures:
    """The figures of a finished run's trainer state. Raises FasttuneError as `read` does."""
    return read(run.trainer_state, TrainerStateFigures)


def read_scores(run: Run) -> Scores:
    """The scores of a run. Raises FasttuneError as `read` does."""
    return read(run.scores, Scores)


def is_answered(run: Run) -> bool:
    """Whether a run's files were exported and asked the probe questions: the last thing that a run does."""
    return run.scores.is_file() and read_scores(run).answered_by != NOT_ASKED


def update_provenance(run: Run, **changed: Any) -> None:
    """Replace fields of a run's provenance.json."""
    write(run.provenance, replace(read_provenance(run), **changed))


def add_continuation(run: Run, shown: Continuation) -> None:
    """Add one more continuation to a run's provenance.json."""
    update_provenance(run, continuations=(*read_provenance(run).continuations, shown))


def add_start(run: Run, start: StartRecord) -> None:
    """Add one more start to a run's provenance.json."""
    update_provenance(run, starts=(*read_provenance(run).starts, start))


def recorded_overrides(run: Run) -> list[str]:
    """What a run's recipe needs besides its own text to be read as it was: overridden and inherited values."""
    given = [
        setting
        for setting in read_plan(run).settings
        if setting.source != "recipe" and not setting.source.startswith("default") and setting.value is not None
    ]
    return [f"{one.key}={json.dumps(one.value, ensure_ascii=False)}" for one in given]


# JSON ---------------------------------------------------------------------------------------------------------------


def write(path: Path, document: Any) -> None:
    """Write a document with its format number; the file appears whole or not at all."""
    write_json(path, {"format": FORMAT} | as_json(document))


def read(path: Path, kind: type[Document]) -> Document:
    """The document in a file.

    Raises FasttuneError where a newer fasttune wrote it, and where it is damaged: no JSON, or a field is missing or of
    another type.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(path, _("the file is missing")) from None
    except ValueError as problem:
        raise damaged(path, str(problem)) from None
    if not isinstance(document, dict):
        raise damaged(path, _("this is no JSON object"))
    written = document.get("format", 0)
    if not isinstance(written, int) or written > FORMAT:
        what = _("this was written by a newer fasttune (format {written}; this version reads up to {known})",
                 written=written, known=FORMAT)  # fmt: skip
        raise error("document-newer", what, where=str(path), fix=_("update fasttune"))
    try:
        return from_json(kind, document)
    except (KeyError, TypeError, ValueError) as problem:
        raise damaged(path, _("its field {field} is missing or damaged", field=problem.args[0])) from None


def damaged(path: Path, what: str) -> FasttuneError:
    """The error for a document that can't be read."""
    fix = _("restore the file, or train the run again; its recipe lies beside it")
    return error("document-damaged", what, where=str(path), fix=fix)


def as_json(value: Any) -> Any:
    """A document as JSON has it: tuples are lists, a trailing _ of a name is dropped, `flat` parts stand in their
    parent."""
    if is_dataclass(value) and not isinstance(value, type):
        parts: dict[str, Any] = {}
        for each in fields(value):
            inner = as_json(getattr(value, each.name))
            parts |= inner if each.metadata.get("flat") else {each.name.rstrip("_"): inner}
        return parts
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def from_json(kind: Any, value: Any) -> Any:
    """The value of a type from its JSON; fields that are no longer known are left out.

    Raises KeyError, TypeError or ValueError, with the name of the field, where it doesn't fit.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None and types.NoneType in parts else from_json(first_fit(parts, value), value)
    if isinstance(kind, type) and is_dataclass(kind):
        return dataclass_from_json(kind, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(str(value))
        return tuple(from_json(parts[0], inner) for inner in value)
    plain = {Literal: str, Mapping: dict}.get(origin, origin or kind)
    if kind is not Any and not isinstance(value, (int, float) if plain is float else plain):
        raise TypeError(str(value))
    return value


def first_fit(parts: tuple[Any, ...], value: Any) -> Any:
    """The member of a union of plain types that a value is of; the first one where it is of none."""
    whole = [part for part in parts if part is not types.NoneType]
    return next((part for part in whole if isinstance(part, type) and type(value) is part), whole[0])


def dataclass_from_json(kind: Any, document: Any) -> Any:
    """A dataclass from a JSON object."""
    if not isinstance(document, dict):
        raise TypeError(str(document))
    hints, values = get_type_hints(kind), {}
    for each in fields(kind):
        name = each.name.rstrip("_")
        if each.metadata.get("flat"):
            values[each.name] = from_json(hints[each.name], document)
        elif name in document:
            try:
                values[each.name] = from_json(hints[each.name], document[name])
            except TypeError:
                raise TypeError(name) from None
        elif not has_default(each):
            raise KeyError(name)
    return kind(**values)


def has_default(each: Any) -> bool:
    """Whether a field of a dataclass may be left out."""
    return each.default is not MISSING or each.default_factory is not MISSING
