"""What an export is to make, of which base and adapter, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fasttune.export import conversations
from fasttune.export.conversations import NONE, Conversations
from fasttune.export.merged import FOLDER
from fasttune.export.serving import DEFAULT, Serving, serving_of_run
from fasttune.recipe.schema import ExportRecipe, Recipe
from fasttune.runs import documents, epochs
from fasttune.runs.store import Run

AUTO = "auto"  # the type that stands for the smallest file that keeps enough
NO_BASE = Path("/nonexistent")  # of a request for a base that is still to be downloaded


@dataclass(frozen=True)
class ExportRequest:
    """One GGUF file a quantization type in `out`, and with `keep_merged` the merged model as a Hugging Face folder.

    `base` is a local Hugging Face folder of Qwen2 weights, `adapter` a PEFT folder to merge into it (None: the base
    alone). `name` begins the file names. `types` are quantization types ("f16", "q8_0", "q4_k_m" …; see
    preflight.QUANTIZATION_TYPES), of any case; each is made once. `system` becomes the chat template's default system
    message (None keeps the training template), `num_ctx` is the context length in tokens that the Modelfile asks for,
    `serving` its other numbers. With `adapter_file` the adapter alone becomes a GGUF file too. `epoch` is that of a
    picked adapter, "" for the run's own; it is in every name, so that files of several epochs lie side by side.
    `is_qlora`: the adapter was trained on the base in NF4.

    The type "auto" stands for the smallest that keeps the share `keep` of what was learned, measured on the run's own
    `conversations`; `imatrix` is "own" (their importance matrix), "none" or a file. `root` holds the runs, for commands
    that are printed.
    """

    base: Path
    adapter: Path | None
    out: Path
    name: str
    types: tuple[str, ...]
    run_id: str
    system: str | None
    num_ctx: int
    keep_merged: bool = False
    conversations: Conversations = NONE
    imatrix: str = "own"
    keep: float = 0.9
    root: Path | None = None
    serving: Serving = DEFAULT
    adapter_file: bool = False
    epoch: str = ""
    is_qlora: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(dict.fromkeys(name.lower() for name in self.types)))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to make."""
        return not self.types and not self.keep_merged and not self.adapter_file

    def path(self, quantization: str) -> Path:
        """exports/linzhi-Q4_K_M.gguf, of a picked epoch exports/linzhi-epoch-2-Q4_K_M.gguf"""
        return self.out / f"{self.file_name}-{quantization.upper()}.gguf"

    @property
    def file_name(self) -> str:
        """What every file name begins with."""
        return f"{self.name}-epoch-{self.epoch}" if self.epoch else self.name

    @property
    def merged(self) -> Path:
        """The folder of the merged model."""
        return self.out / (f"{FOLDER}-epoch-{self.epoch}" if self.epoch else FOLDER)

    @property
    def lora_file(self) -> Path:
        """The GGUF file of the adapter alone, in a folder of its own: the others are models."""
        return self.out / "lora" / f"{self.name}-LoRA.gguf"

    @property
    def tokenizer(self) -> Path:
        """The adapter's folder where the tokenizer of the training was saved with it, else the base's."""
        if self.adapter is not None and (self.adapter / "tokenizer.json").is_file():
            return self.adapter
        return self.base


def request_for_run(run: Run, base: Path, recipe: ExportRecipe) -> ExportRequest:
    """What a recipe's [export] table asks for, made of a finished run.

    Raises FasttuneError where a document of the run can't be read, or its picked epoch is gone.
    """
    plan, picked = documents.read_plan(run), epochs.picked_epoch(run)
    system = plan.served_system
    return ExportRequest(
        base, epochs.served_adapter(run), run.exports, run.series, recipe.gguf, run.id, system, recipe.num_ctx,
        recipe.keep_merged, conversations.of_run(run) if recipe.gguf else conversations.NONE, recipe.imatrix,
        recipe.keep, run.root, serving_of_run(run, base, recipe),
        epoch=epochs.epoch_word(picked.epoch) if picked else "", is_qlora=plan.values.get("model.load_in_4bit") is True,
    )  # fmt: skip


def request_before_training(base: Path | None, recipe: Recipe, system: str | None, out: Path) -> ExportRequest:
    """What a recipe's [export] table will ask for once there is an adapter: for preflight.check.

    `base` is None where it is not on this machine yet.
    """
    export = recipe.export
    return ExportRequest(
        base or NO_BASE, None, out, recipe.name, export.gguf, "", system, export.num_ctx, export.keep_merged,
        imatrix=export.imatrix, keep=export.keep,
    )  # fmt: skip
