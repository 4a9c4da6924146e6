"""The JSON documents of a run, typed: written and read here and nowhere else.

    plan.json                 PlanDocument        every resolved setting with its source, and what follows from the data
    provenance.json           Provenance          versions, device, fingerprints, row budget, starts, continuations
    scores.json               Scores              probe questions with the answers of the base and of the trained model,
                                                  which facts of a fact sheet each knows, each epoch's answers
    picked.json               Picks               which epoch's adapter was made the run's, and when
    blind.json                BlindComparisons    what a person picked between the answers of two models
    proof.json                CheckBatch          in each checkpoint and adapter: the check batch's loss when saved
    window.json               UnloggedMetrics     in each checkpoint: sums since the last logged step
    manifest.json             Manifest            in each checkpoint and adapter: sha256 of each file
    exports/NAME.json         ArtifactDocument    beside each GGUF file
    exports/merged/….json     MergedDocument      in the merged Hugging Face folder

Each carries a `format` number; one without it is format 0, from before 0.1.0, with the same fields. An older format is
read, a newer one refused in one sentence. `TrainerStateFigures`: what is read of Hugging Face's trainer_state.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from fasttune.console import FasttuneError, _, error
from fasttune.files import write_json
from fasttune.recipe.schema import Setting
from fasttune.runs.outcomes import EpochScores, ExportFigures, FactScores, GeneralLoss, HeldOutLosses, OllamaProof
from fasttune.runs.store import Run
from fasttune.runs.typed_json import as_json, fits_plain, from_json

FORMAT = 1  # the format that this version writes, and the newest that it reads
CHECK_BATCH, UNLOGGED_METRICS, MANIFEST = "proof.json", "window.json", "manifest.json"
NOT_ASKED = ""  # Scores.answered_by before the probe questions were asked

StartKind = Literal["base", "adapter", "checkpoint"]
Document = TypeVar("Document")


# What stands in them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanDocument:
    """plan.json. `parent` is a run id, `start_step` the step of the checkpoint that the run starts from (0: none),
    `start_epoch` the parent's kept epoch that was picked then (None: the parent's own adapter, its last checkpoint),
    `general_samples` the general conversations of data.replay, which are trained on beside the `train_samples`.
    `system` is the trained system prompt, `with_facts` that and the facts of the sheet where export.prompt asks for it
    (None: `system` is served)."""

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
    start_epoch: float | None = None
    general_samples: int = 0
    with_facts: str | None = None

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:  # from_json names the field
            raise ValueError("steps_per_epoch")

    @property
    def served_system(self) -> str | None:
        """The system prompt the run is served with; None for none."""
        return self.system if self.with_facts is None else self.with_facts

    @property
    def values(self) -> dict[str, Any]:
        """{dotted key: value} of all settings, lists as JSON has them."""
        return {setting.key: setting.value for setting in self.settings}


@dataclass(frozen=True)
class RowsFrom:
    """From `step` on a row holds at most `tokens_per_row` tokens; n + 0.5 is the evaluation after step n."""

    step: float
    tokens_per_row: int


@dataclass(frozen=True)
class RowRecord:
    """The row budget of a run, in tokens, and whether it trains with gradient checkpointing.

    `tokens_per_row` is the budget now, `rows_chosen` the one chosen at the start (0: the same as now),
    `rows_measured` the one set after the first steps by the memory they took, `rows_cut` every lowering after an
    out-of-memory error, `rows_asked` the recipe's train.tokens_per_row.
    """

    tokens_per_row: int
    rows_chosen: int = 0
    rows_measured: RowsFrom | None = None
    rows_cut: tuple[RowsFrom, ...] = ()
    rows_asked: int | str = "auto"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class BaseRecord:
    """The base a run was trained on; `fingerprint` is the sha256 of training.provenance.fingerprint.

    `folder` is the absolute path of a base that was a folder, empty for `builtin:tiny` and a hub's.
    """

    name: str
    revision: str
    fingerprint: str
    folder: str = ""


@dataclass(frozen=True)
class DataRecord:
    """The recipe's data.train and data.val; `fingerprint` is the sha256 of the samples' contents."""

    train: tuple[str, ...]
    val: str | float
    fingerprint: str


@dataclass(frozen=True)
class StartRecord:
    """One start of a run: the first step it trained, the seconds of each start-up phase, its number of samples and how
    many of them were tokenized because the token cache did not hold them (`rendered`)."""

    step: int
    seconds: Mapping[str, float]
    samples: int
    rendered: int


@dataclass(frozen=True)
class Continuation:
    """One start from a checkpoint or an adapter (`from`, a path), with the check batch's loss, in nats a supervised
    token, when it was saved and now; both are None where the data is another.

    `step` and the learning rates at the seam are None for an adapter, whose schedule begins anew.
    """

    from_: str
    loss_when_saved: float | None
    loss: float | None
    step: int | None = None
    learning_rate_before: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class PrefixDifference:
    """Samples in one row compared with plain attention to each alone: |packed - plain| / |plain| of the loss and of the
    gradient."""

    loss: float
    gradient: float


@dataclass(frozen=True)
class Provenance:
    """provenance.json. `created` is UTC in ISO 8601, `device` the GPU or processor, `system` the system prompt that the
    trained model is served with, `longest_answer` the tokens of the longest supervised span (0: from before it was
    recorded), `cuda_graphs` whether the rows trained last were graphs: "on", "off", or empty for false,
    `cuda_graphs_off` why they weren't, as it was said."""

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
    longest_answer: int = 0
    starts: tuple[StartRecord, ...] = ()
    continuations: tuple[Continuation, ...] = ()
    sharing_check: PrefixDifference | None = None
    packing_check: PrefixDifference | None = None
    cuda_graphs: str = ""
    cuda_graphs_off: str = ""


@dataclass(frozen=True)
class Probe:
    """A probe question with the answers of the base and of the trained model ("" before it was asked).

    `base_cut` and `trained_cut` say that an answer is as long as the recipe allows, `is_trained` that the question
    stands in the training samples.
    """

    question: str
    base: str
    trained: str = ""
    base_cut: bool = False
    trained_cut: bool = False
    is_trained: bool = False


@dataclass(frozen=True)
class Scores:
    """scores.json. `answered_by` is the name of the GGUF file, "adapter", None where the recipe has no probe questions,
    and NOT_ASKED before they were asked: the last thing that a run does. `facts` is None before `fasttune facts`;
    `epochs` are those whose adapters were kept, oldest first, also while the run trains; `exports` the figures of the
    files that were exported; `held_out` is None before `fasttune compare`; `general` what was forgotten, empty for
    a run without data.replay."""

    probes: tuple[Probe, ...]
    answered_by: str | None = NOT_ASKED
    facts: FactScores | None = None
    epochs: tuple[EpochScores, ...] = ()
    exports: tuple[ExportFigures, ...] = ()
    held_out: HeldOutLosses | None = None
    general: tuple[GeneralLoss, ...] = ()


@dataclass(frozen=True)
class CheckBatch:
    """proof.json. `loss` is the mean over the supervised tokens of `samples` in nats, `tokens` the sha256 of their
    token ids, `random_state` the sha256 of the random generators' states, `dtype` the number type, empty where none was
    recorded yet."""

    step: int
    optimizer_step: int
    learning_rate: float
    loss: float
    samples: tuple[str, ...]
    tokens: str
    random_state: str
    device: str
    packages: Mapping[str, str]
    dtype: str = ""


@dataclass(frozen=True)
class UnloggedMetrics:
    """window.json: exact sums over the steps since the last logged one; `tokens_seen` counts from the run's start."""

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
    """manifest.json of a checkpoint or an adapter: its step, and {file name: sha256} of the files that are read."""

    step: int
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class ArtifactDocument:
    """The .json beside a GGUF file: `type` is the quantization type as in the recipe, `bytes` the size, `checks` the
    figures of export.verify, `inputs` the sha256 of everything that the file was made from, `adapter` that of the
    adapter's weights ("": from before it was recorded). `figures` is None of a file that was not measured, or was
    before there were any. `imatrix` is as in ExportFigures. `ollama` is what the newest import of it was proven by."""

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
    figures: ExportFigures | None = None
    imatrix: str = "none"
    ollama: OllamaProof | None = None
    adapter: str = ""


@dataclass(frozen=True)
class MergedDocument:
    """In the folder of a merged model: `inputs` is the sha256 of all it was made from, `sha256` that of each file."""

    inputs: str
    run_id: str
    base: str
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainerStateFigures:
    """What is read of Hugging Face's trainer_state.json; `best_metric` is the lowest held-out loss, of
    `best_global_step`."""

    global_step: int
    log_history: tuple[dict[str, float], ...]
    best_metric: float | None = None
    best_global_step: int | None = None


# A run's own --------------------------------------------------------------------------------------------------------


def read_plan(run: Run) -> PlanDocument:
    """The plan of a run. Raises FasttuneError as `read` does."""
    return read(run.plan, PlanDocument)


def read_setting(run: Run, key: str, kind: Any) -> Any:
    """The value of a setting that a run began with, of a type. Raises FasttuneError as `read` does, and where the
    plan's settings do not hold it."""
    value = read_plan(run).values.get(key)
    if not fits_plain(kind, value):
        raise damaged(run.plan, _("its field {field} is missing or damaged", field=f"settings: {key}"))
    return value


def read_provenance(run: Run) -> Provenance:
    """The provenance of a run. Raises FasttuneError as `read` does."""
    return read(run.provenance, Provenance)


def read_trainer_state(run: Run) -> TrainerStateFigures:
    """The figures of a finished run's trainer state. Raises FasttuneError as `read` does."""
    return read(run.trainer_state, TrainerStateFigures)


def read_scores(run: Run) -> Scores:
    """The scores of a run. Raises FasttuneError as `read` does."""
    return read(run.scores, Scores)


def is_complete(run: Run) -> bool:
    """Whether a run is trained, exported and probed."""
    return run.status == "finished" and is_answered(run)


def is_answered(run: Run) -> bool:
    """Whether the probe questions of a run were answered, which is the last thing that a run does."""
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
    """The overrides with which the copy of a run's recipe resolves to the run's settings: KEY=JSON of each value that
    came from --set or from the parent, or that was chosen for "auto" on the machine and the data of then."""
    given = [
        setting
        for setting in read_plan(run).settings
        if setting.value is not None and setting.source != "recipe"
        and (not setting.source.startswith("default") or setting.source.startswith("default (auto"))
    ]  # fmt: skip
    return [f"{one.key}={json.dumps(one.value, ensure_ascii=False)}" for one in given]


# Files --------------------------------------------------------------------------------------------------------------


def write(path: Path, document: Any) -> None:
    """Write a document with its format number; the file appears whole or not at all."""
    write_json(path, {"format": FORMAT} | as_json(document))


def read(path: Path, kind: type[Document]) -> Document:
    """The document of a kind in a file.

    Raises FasttuneError with the code document-newer where a newer fasttune wrote it, and document-damaged where it
    can't be read, is no JSON object, or has a field that is missing or of another type.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document: Document = parse(text, cast(Any, kind))  # a class, which mypy doesn't take for hashable
        return document
    except FileNotFoundError:
        raise damaged(path, _("the file is missing")) from None
    except NewerFormat as newer:
        what = _("this was written by a newer fasttune (format {written}; this version reads up to {known})",
                 written=newer, known=FORMAT)  # fmt: skip
        raise error("document-newer", what, where=str(path), fix=_("update fasttune")) from None
    except (OSError, ValueError, RecursionError) as problem:
        raise damaged(path, str(problem)) from None


class NewerFormat(Exception):
    """The format number of a document that a newer fasttune wrote."""


@lru_cache(maxsize=64)  # a list of runs asks each of a few documents a dozen times; nothing in one can be changed
def parse(text: str, kind: Any) -> Any:
    """The document of a kind in a text. Raises ValueError with what is wrong, and NewerFormat."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(_("this is not a JSON object"))
    written = content.get("format", 0)
    if type(written) is int and written > FORMAT:
        raise NewerFormat(written)
    try:
        return from_json(kind, content)
    except ValueError as problem:
        raise ValueError(_("its field {field} is missing or damaged", field=problem)) from None


def damaged(path: Path, what: str) -> FasttuneError:
    """The error for a document that can't be read."""
    fix = _("restore the file, or train the run again; its recipe lies beside it")
    return error("document-damaged", what, where=str(path), fix=fix)
