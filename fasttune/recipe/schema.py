"""The declaration of every setting of a recipe.

A setting is a field of a frozen dataclass, one dataclass a table, with its type, default, bounds and one line of help.
Loading (load.py), `--set key=value`, `fasttune plan` and the reference in docs/recipe.md follow from these
declarations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from fasttune.console import N_


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    most: str = "",
    prose: bool = False,
    words: bool = False,
    filled: bool = False,
    example: str = "",
) -> Any:
    """A dataclass field that is a setting.

    `default` is MISSING where the setting is required; then `example` is a value for hints. The bounds (≥, >, ≤, <) are
    for numbers; `most` is why there is an upper one, where the number itself does not say it. A text of `prose` may
    hold tabs and line breaks. `words` are names of any case, and a text may hold several of them between commas. What
    is `filled` has a default, but may not be written empty.
    """
    bounds = {sign: bound for sign, bound in (("≥", ge), (">", gt), ("≤", le), ("<", lt)) if bound is not None}
    more = {"bounds": bounds, "most": most, "prose": prose, "words": words}
    more |= {"filled": filled, "example": example}
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Key:
    """A setting as declared: dotted name, type, default (MISSING: required) and the other arguments of `setting`."""

    name: str
    hint: Any
    default: Any
    help: str
    bounds: Mapping[str, float]
    most: str
    prose: bool
    example: str
    words: bool = False
    filled: bool = False

    @property
    def required(self) -> bool:
        """Whether a recipe has to set it."""
        return self.default is MISSING

    @property
    def table(self) -> str:
        """The dotted name of its table; "" at the top of the file."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """The last part of its name, as it is written below the table's line."""
        return self.name.rpartition(".")[2]


def declared(table: type, prefix: str = "") -> Iterator[Key | tuple[str, type]]:
    """The settings of a dataclass and the (name, dataclass) of its sub-tables, recursively, in order of declaration."""
    hints = get_type_hints(table)
    for each in fields(table):
        name, hint = prefix + each.name.rstrip("_"), hints[each.name]
        if "help" in each.metadata:
            yield Key(name, hint, each.default, **each.metadata)
        elif isinstance(hint, type) and is_dataclass(hint):
            yield name, hint
            yield from declared(hint, name + ".")


# Upper bounds that several settings share, and the reasons of all: beyond them lies no training that anybody runs, but
# memory that can't be had, numbers that no float holds, and figures with a digit too many.
MOST_TOKENS = 2**20  # Qwen2.5's longest context, of its 1M models
MOST_STEPS = 10_000_000
CONTEXT = N_("no Qwen2.5 model reads more tokens")
STEPS = N_("no training has so many steps")
EPOCHS = N_("each epoch is a pass over all samples; from about 10 on they are learned by heart")
REPLAY = N_("it is a share of the training samples, and with more of them the persona becomes an assistant")
SHARE = N_("it is the share of the samples, and some must be left to train on")
RANK = N_("the memory of an adapter grows with its rank, and a rank near the width of the layers adds nothing")
SCALE = N_("so large a scale only makes the loss diverge; usual is 1 to 4 times lora.r")
DROPOUT = N_("it is the share of the input that is dropped, and something must be left")
ACCURACY = N_("it is a share: 1 stands for all tokens")
RATE = N_("a step of this size overwrites the weights; usual is 0.0002 for LoRA")
BATCH = N_("a step learns from the mean of its samples; with so many, a training has next to no steps")
DECAY = N_("at 1 a step takes the whole learning rate's share off every weight; usual is 0 to 0.1")
SEED = N_("numpy's generator takes 32 bits")
KEPT = N_("it is a share, and a quantized file always loses a little")
ROW = N_("a row is computed at once, and no GPU holds so many tokens")
CHECKPOINTS = N_("each one holds the adapter and the optimizer's state: so many fill a disk")
TEMPERATURE = N_("from 2 on nearly every token is as likely as any other")
VOCABULARY = N_("so many tokens are as good as all of them: write 0")
PROBABILITY = N_("it is a share of the probability: 1 stands for all tokens")
PENALTY = N_("even 1.3 takes the words that an answer needs again; usual is 1 to 1.1")
ANSWER = N_("memory is allocated for the longest answer, and a model that never ends writes all of it")

Module = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Quantization = Literal[
    "auto", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs", "q3_k_m", "q2_k"
]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The base model."""

    base: str = setting(
        MISSING,
        'hub name ("Qwen/Qwen2.5-0.5B-Instruct"), local folder, or "builtin:tiny"',
        example="Qwen/Qwen2.5-0.5B-Instruct",
    )
    load_in_4bit: bool = setting(
        False, "QLoRA: hold the base in 4 bits (NF4): a third of the memory or less; slower, above all on a CPU"
    )
    max_seq_length: int = setting(
        2048,
        "longest sample in tokens; a longer one is an error and never truncated",
        ge=16,
        le=MOST_TOKENS,
        most=CONTEXT,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "number type to compute in; auto: 16 bits on a GPU, on a CPU bfloat16 where it has AMX or AVX512-BF16, "
        "else float32; a run keeps the one it began with",
    )
    revision: str = setting("", "branch, tag or commit of the hub repository; empty: its main branch")
    mirror: Literal["hf", "modelscope"] = setting("hf", "hub that the base is fetched from")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The samples."""

    train: tuple[str, ...] = setting(MISSING, "file or files of training samples", example="data/linzhi/train.jsonl")
    val: str | float = setting(
        "", "file of held-out samples, or the share to hold out; empty: none", gt=0, lt=1, most=SHARE
    )
    system: str | None = setting(
        None,
        "system prompt of every sample that has none; unset: samples stay as they are; empty: an empty one, so that "
        "the chat template does not add its own",
        prose=True,
    )
    system_facts: str = setting(
        "", "fact sheet (TOML) whose facts stand below the system prompt, in training and when served; empty: none"
    )
    learn: Literal["assistant", "all"] = setting("assistant", "train on the assistant's turns, or on every token")
    replay: float = setting(
        0.0,
        "mix in general conversations, against forgetting: this share of the training samples, as 0.05; 0: none",
        ge=0,
        le=0.2,
        most=REPLAY,
    )


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """The adapter."""

    r: int = setting(8, "rank of the adapter", ge=1, le=1024, most=RANK)
    alpha: int = setting(0, "the adapter's product is scaled by alpha / r; 0: 2 × r", ge=0, le=65_536, most=SCALE)
    dropout: float = setting(
        0.0, "dropout on the adapter's input; above 0, no prefix can be shared", ge=0, lt=1, most=DROPOUT
    )
    target_modules: tuple[Module, ...] = setting(get_args(Module), "linear layers that get an adapter", filled=True)


@dataclass(frozen=True, kw_only=True)
class Until:
    """Stop after an epoch that reached these values: both of them, where both are given."""

    loss: float | None = setting(None, "stop at this training loss, the mean over an epoch", gt=0)
    token_accuracy: float | None = setting(
        None, "stop once the model ranks this share of an epoch's supervised tokens first", gt=0, le=1, most=ACCURACY
    )


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """The training."""

    epochs: float | Literal["auto"] = setting(
        "auto", "passes over the training data; auto: by its samples", gt=0, le=10_000, most=EPOCHS
    )
    max_steps: int = setting(
        0, "stop after this many optimizer steps; 0: after `epochs`", ge=0, le=MOST_STEPS, most=STEPS
    )
    learning_rate: float | Literal["auto"] = setting(
        "auto", "peak learning rate; auto: by the epochs and alpha", gt=0, le=1, most=RATE
    )
    batch_size: int | Literal["auto"] = setting(
        "auto",
        "samples per optimizer step, over all GPUs; auto: by the number of samples; memory never changes it",
        ge=1,
        le=65_536,
        most=BATCH,
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = setting(
        "linear", "learning rate schedule after the warmup"
    )
    warmup_steps: float = setting(
        0.05, "warmup: below 1 a share of all steps, else a number of steps", ge=0, le=MOST_STEPS, most=STEPS
    )
    weight_decay: float = setting(0.0, "decoupled weight decay of the optimizer", ge=0, le=1, most=DECAY)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0: never", ge=0)
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "sgd"] = setting(
        "adamw_torch_fused", "optimizer; adamw_8bit needs a CUDA GPU"
    )
    seed: int = setting(
        3407, "seed of the adapter's first weights, the sample order and dropout", ge=0, le=2**32 - 1, most=SEED
    )
    tokens_per_row: int | Literal["auto"] = setting(
        "auto",
        "token budget of a row; auto: by free memory; 0: one sample a row; never changes the result",
        ge=0,
        le=2**24,
        most=ROW,
    )
    shared_prefix: bool = setting(True, "compute a prefix that samples share once a row; never changes the result")
    gradient_checkpointing: bool | Literal["auto"] = setting(
        "auto", "drop activations and compute them again: less memory, more time"
    )
    cuda_graphs: bool | Literal["auto"] = setting(
        False,
        "replay rows as CUDA graphs, for GPUs that wait for the computer; auto: where the first rows' times say so; "
        "without a GPU, never",
    )
    logging_steps: int = setting(1, "steps between two lines of history.jsonl", ge=1, le=MOST_STEPS, most=STEPS)
    eval_steps: int = setting(
        0, "steps between two evaluations on data.val; 0: once an epoch", ge=0, le=MOST_STEPS, most=STEPS
    )
    save_steps: int = setting(0, "steps between two checkpoints; 0: once an epoch", ge=0, le=MOST_STEPS, most=STEPS)
    save_total_limit: int = setting(2, "how many of the newest checkpoints are kept", ge=1, le=10_000, most=CHECKPOINTS)
    keep_epochs: bool | Literal["auto"] = setting(
        "auto", "keep the adapter of each epoch for `fasttune pick`; auto: where there are held-out samples"
    )
    until: Until = field(default_factory=Until)
    early_stopping_patience: int = setting(
        0, "stop after so many evaluations without a better held-out loss; 0: never", ge=0, le=MOST_STEPS, most=STEPS
    )
    report_to: tuple[Literal["tensorboard", "wandb", "none"], ...] = setting(
        ("tensorboard",), "where metrics are reported besides history.jsonl"
    )

    @property
    def samples_per_step(self) -> int:
        """batch_size, which is a number in the recipe of a plan."""
        assert self.batch_size != "auto"
        return self.batch_size

    @property
    def passes(self) -> float:
        """epochs, which is a number in the recipe of a plan."""
        assert self.epochs != "auto"
        return self.epochs

    @property
    def peak_learning_rate(self) -> float:
        """learning_rate, which is a number in the recipe of a plan."""
        assert self.learning_rate != "auto"
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class ContinueRecipe:
    """Where a run that continues begins; for every strategy but fresh."""

    parent: str = setting("latest", 'run to continue from: "latest" of the series, or an id as "linzhi/001-fresh"')
    start: Literal["checkpoint", "adapter", "base"] = setting(
        "checkpoint", "begin with the parent's last checkpoint (all state), with its adapter alone, or with the base"
    )
    add_epochs: float = setting(0.0, "epochs to train beyond the parent's", ge=0, le=10_000, most=EPOCHS)


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """What is made of the trained adapter."""

    gguf: tuple[Quantization, ...] = setting(
        ("q8_0",),
        "GGUF files to write, [] for none; auto: the smallest type that keeps `export.keep` of what was learned",
        words=True,
    )
    keep: float = setting(
        0.9, "share of what was learned that a file must keep, or it is warned about", gt=0, lt=1, most=KEPT
    )
    imatrix: str = setting(
        "own",
        "importance matrix for the types below q8_0: own (of the training conversations), none, or a file",
        filled=True,
    )
    ollama: str = setting("", "name of the model in Ollama; empty: no import")
    num_ctx: int = setting(
        4096, "context length in tokens, written into the Modelfile", ge=16, le=MOST_TOKENS, most=CONTEXT
    )
    prompt: Literal["trained", "facts"] = setting(
        "trained", "system prompt when served: the trained one, or that and the facts of facts.file in sentences"
    )
    temperature: float | Literal["auto"] = setting(
        "auto",
        "sampling temperature when served; auto: as the base's generation_config.json says",
        ge=0,
        le=2,
        most=TEMPERATURE,
    )
    top_k: int | Literal["auto"] = setting(
        "auto",
        "sample from so many of the likeliest tokens, 0: from all; auto: as the base says",
        ge=0,
        le=10_000,
        most=VOCABULARY,
    )
    top_p: float | Literal["auto"] = setting(
        "auto",
        "sample from the likeliest tokens that add up to this; auto: as the base says",
        gt=0,
        le=1,
        most=PROBABILITY,
    )
    repeat_penalty: float | Literal["auto"] = setting(
        "auto",
        "divides the scores of the last 64 tokens, 1: not at all; auto: as the base says",
        ge=0.5,
        le=2,
        most=PENALTY,
    )
    num_predict: int | Literal["auto"] = setting(
        "auto", "longest answer in tokens, -1: no limit; auto: half as long again as the longest trained one",
        ge=-1, le=MOST_TOKENS, most=CONTEXT,
    )  # fmt: skip
    keep_merged: bool = setting(False, "keep the merged 16-bit model in Hugging Face layout")


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe:
    """Questions that the base and the trained model both answer, to be compared by eye."""

    questions: tuple[str, ...] = setting((), "questions to ask", prose=True)
    max_new_tokens: int = setting(256, "longest answer in tokens", ge=1, le=32_768, most=ANSWER)


@dataclass(frozen=True, kw_only=True)
class FactsRecipe:
    """What the trained model must know, asked by `fasttune facts`."""

    file: str = setting("", "fact sheet (TOML): facts with their questions and accepted answers; empty: none")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings before the first [table].

    `path` is the file as the user named it. `sources` is {dotted key: where its value comes from}: "recipe",
    "override", "default", "default (2 × r)" and the like, or the source given to `with_values`.
    """

    name: str = setting(MISSING, "the series; its runs are in runs/NAME/", example="linzhi")
    strategy: Literal["fresh", "incremental", "retune", "augment", "custom"] = setting(
        "fresh", "how this run relates to earlier runs of the series (augment trains longer, it makes no samples)"
    )
    model: ModelRecipe
    data: DataRecipe
    lora: LoraRecipe
    train: TrainRecipe
    continue_: ContinueRecipe
    export: ExportRecipe
    probe: ProbeRecipe
    facts: FactsRecipe
    path: Path
    sources: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class Setting:
    """A resolved value and where it comes from: a line of `fasttune plan` and of plan.json."""

    key: str
    value: Any
    source: str


KEYS: dict[str, Key] = {key.name: key for key in declared(Recipe) if isinstance(key, Key)}
TABLES: dict[str, type] = {table[0]: table[1] for table in declared(Recipe) if not isinstance(table, Key)}
LEAVES: dict[str, str] = {key.leaf: key.name for key in KEYS.values()}  # the last part of each key is unique
