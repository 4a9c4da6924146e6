"""The recipe: every setting there is, read strictly from a TOML file, and where each value came from.

    name = "linzhi"                    # the series; its runs lie in runs/linzhi/
    [model]
    base = "Qwen/Qwen2.5-0.5B-Instruct"
    [data]
    train = "data/linzhi/train.jsonl"

A setting is declared once: a field of a frozen dataclass, one dataclass a table, with its type, default, bounds and one
line of help. Loading, `--set key=value`, `settings` (what `fasttune plan` prints) and docs/recipe.md follow from it.

Rules: an unknown key is an error that says which one was meant, also where another trainer's name was used
(foreign.py); values are taken as strict.py says; all problems of the file and the overrides come in one `UsageError`.
`python -m fasttune.recipe docs/recipe.md` writes the settings into that page.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from fasttune import foreign
from fasttune.console import Finding, UsageError, _
from fasttune.strict import (
    REFUSED,
    Entry,
    Key,
    as_toml,
    convert,
    declared,
    describe,
    near_name,
    read_toml,
    refusal,
    sample,
    setting,
    toml_value,
)

Module = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Quantization = Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The base model."""

    base: str = setting(
        MISSING,
        'hub name ("Qwen/Qwen2.5-0.5B-Instruct"), local folder, or "builtin:tiny"',
        example="Qwen/Qwen2.5-0.5B-Instruct",
    )
    load_in_4bit: bool = setting(False, "QLoRA: hold the base in 4 bits (NF4); needs a CUDA card")
    max_seq_length: int = setting(2048, "longest sample in tokens; a longer one is an error, never cut", ge=16)
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "what the model computes in; auto: 16 bit on a card, float32 without one; bfloat16 on a CPU wants AMX"
    )
    revision: str = setting("", "branch, tag or commit of the hub repository; empty: its main branch")
    mirror: Literal["hf", "modelscope"] = setting("hf", "hub that the base is fetched from")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The samples."""

    train: tuple[str, ...] = setting(MISSING, "file or files of training samples", example="data/linzhi/train.jsonl")
    val: str | float = setting("", "file of held-out samples, or the share to hold out; empty: none", gt=0, lt=1)
    system: str | None = setting(
        None,
        "system prompt of every sample that has none; unset: samples stay as they are; empty: an empty one, which "
        "keeps the chat template's own default out",
        prose=True,
    )
    learn: Literal["assistant", "all"] = setting("assistant", "train on the assistant's turns, or on every token")


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """The adapter."""

    r: int = setting(8, "rank of the adapter", ge=1)
    alpha: int = setting(0, "scale: what the adapter adds counts alpha / r times; 0: 2 × r", ge=0)
    dropout: float = setting(0.0, "dropout before the adapter; above 0, no prefix can be shared", ge=0, lt=1)
    target_modules: tuple[Module, ...] = setting(get_args(Module), "linear layers that get an adapter")


@dataclass(frozen=True, kw_only=True)
class Until:
    """Stop once an epoch of training was this good; where both are given, once both are reached."""

    loss: float | None = setting(None, "stop at this training loss, the mean of an epoch", gt=0)
    token_accuracy: float | None = setting(
        None, "stop once this share of an epoch's supervised tokens is predicted right", gt=0, le=1
    )


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """The training."""

    epochs: float = setting(3.0, "passes over the training data", gt=0)
    max_steps: int = setting(0, "stop after this many optimizer steps; 0: as epochs says", ge=0)
    learning_rate: float = setting(2e-4, "peak learning rate", gt=0, le=1)
    batch_size: int = setting(16, "samples per optimizer step, over all GPUs; memory never changes it", ge=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = setting(
        "linear", "course of the learning rate after its warm-up"
    )
    warmup_steps: float = setting(0.05, "below 1: share of all steps; 1 and above: number of steps", ge=0)
    weight_decay: float = setting(0.0, "decoupled weight decay of the optimizer", ge=0, le=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0: never", ge=0)
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "sgd"] = setting(
        "adamw_torch_fused", "optimizer; adamw_8bit needs a CUDA card"
    )
    seed: int = setting(3407, "seed of the adapter's first weights, the sample order and dropout", ge=0, le=2**32 - 1)
    tokens_per_row: int | Literal["auto"] = setting(
        "auto", "tokens of a packed row; auto: by free memory; 0: one sample a row; never changes the result", ge=0
    )
    shared_prefix: bool = setting(True, "compute a beginning that samples share once per row; never changes the result")
    gradient_checkpointing: bool | Literal["auto"] = setting("auto", "recompute activations: less memory, more time")
    logging_steps: int = setting(1, "steps between two lines of history.jsonl", ge=1)
    eval_steps: int = setting(0, "steps between two evaluations on data.val; 0: once an epoch", ge=0)
    save_steps: int = setting(0, "steps between two checkpoints; 0: once an epoch", ge=0)
    save_total_limit: int = setting(2, "how many of the newest checkpoints are kept", ge=1)
    until: Until = field(default_factory=Until)
    early_stopping_patience: int = setting(0, "stop after this many evaluations without a better loss; 0: never", ge=0)
    report_to: tuple[Literal["tensorboard", "wandb", "none"], ...] = setting(
        ("tensorboard",), "where curves go besides history.jsonl"
    )


@dataclass(frozen=True, kw_only=True)
class ContinueRecipe:
    """What a continuation continues from; for every strategy but fresh."""

    parent: str = setting("latest", 'run to continue from: "latest" of the series, or an id as "linzhi/001-fresh"')
    start: Literal["checkpoint", "adapter", "base"] = setting(
        "checkpoint", "begin with all state of the parent's last checkpoint, with its adapter alone, or with the base"
    )
    add_epochs: float = setting(0.0, "epochs on top of the parent's", ge=0)


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """What is made of the trained adapter."""

    gguf: tuple[Quantization, ...] = setting(("q8_0",), "GGUF files to write; [] for none")
    ollama: str = setting("", "name of the model in Ollama; empty: no import")
    num_ctx: int = setting(4096, "context length that the Modelfile asks for, in tokens", ge=16)
    keep_merged: bool = setting(False, "keep the merged 16-bit model in Hugging Face layout")


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe:
    """Questions that the base and the trained model both answer, for the eye."""

    questions: tuple[str, ...] = setting((), "what to ask", prose=True)
    max_new_tokens: int = setting(256, "longest answer in tokens", ge=1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What stands before the first [table].

    `path` is the file as it was named. `sources` says for each dotted key where its value came from: "recipe",
    "override", "default", "default (2 × r)" and the like, or what `with_values` was told.
    """

    name: str = setting(MISSING, "the series; its runs lie in runs/NAME/", example="linzhi")
    strategy: Literal["fresh", "incremental", "retune", "augment", "custom"] = setting(
        "fresh", "how this run relates to earlier runs of the series"
    )
    model: ModelRecipe
    data: DataRecipe
    lora: LoraRecipe
    train: TrainRecipe
    continue_: ContinueRecipe
    export: ExportRecipe
    probe: ProbeRecipe
    path: Path
    sources: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class Setting:
    """One resolved value and where it came from: a line of `fasttune plan` and of plan.json."""

    key: str
    value: Any
    source: str


KEYS: dict[str, Key] = {key.name: key for key in declared(Recipe) if isinstance(key, Key)}
TABLES: dict[str, type] = {table[0]: table[1] for table in declared(Recipe) if not isinstance(table, Key)}
LEAVES: dict[str, str] = {key.leaf: key.name for key in KEYS.values()}  # no two settings share their last name


def load(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a TOML file with `key=value` overrides laid over it, the last one of a key winning.

    Raises UsageError with one finding for every problem of the file and the overrides; where TOML itself can't be read,
    with that one alone.
    """
    path = Path(path)
    document, lines = read_toml(path)
    overriding, findings = override_entries(overrides)
    written = [Entry(key, value, place(path, lines, name), "recipe") for name, key, value in leaves("", "", document)]
    entries = {entry.key: entry for entry in [*written, *overriding]}
    refused: set[str] = set()  # what was meant by entries that were refused: not missing, nor ground for contradictions
    for entry in entries.values():
        problem, meant = check(entry)
        if problem:
            findings.append(problem)
            refused.add(meant)
    for key in KEYS.values():
        if key.required and key.name not in entries and not covered(key.name, refused):
            where, what = place(path, lines, key.name), _("{key} is missing", key=key.name)
            findings.append(Finding("missing-key", "error", where, what, _(key.help), sample(key)))
    values = {key.name: key.default for key in KEYS.values()}
    values |= {key: convert(KEYS[key].hint, entry.value) for key, entry in entries.items() if key in KEYS}
    findings += contradictions({key: value for key, value in values.items() if not covered(key, refused)}, entries)
    if findings:
        raise UsageError(*findings)
    return build(path, values, {key: entries[key].source if key in entries else "default" for key in KEYS})


def settings(recipe: Recipe) -> list[Setting]:
    """Every value with its source, in order of declaration."""
    values = flat(vars(recipe))
    return [Setting(key, values[key], recipe.sources[key]) for key in KEYS]


def with_values(recipe: Recipe, values: Mapping[str, Any], source: str) -> Recipe:
    """A new recipe with some dotted keys replaced and their source noted: how a strategy inherits from a parent run.

    Lists from JSON are fine. Defaults that follow from other settings (alpha = 2 × r) are worked out again. Raises
    UsageError where a value or the outcome is not valid, KeyError for a key that is no setting.
    """
    derived = {key.name: key.default for key in KEYS.values() if recipe.sources[key.name].startswith("default")}
    entries = {key: Entry(key, value, f"{source}: {key}", source) for key, value in values.items()}
    findings = [finding for entry in entries.values() if (finding := refusal(entry, KEYS[entry.key]))]
    if findings:
        raise UsageError(*findings)
    new = flat(vars(recipe)) | derived | {key: convert(KEYS[key].hint, value) for key, value in values.items()}
    findings = contradictions(new, entries)
    if findings:
        raise UsageError(*findings)
    sources = {key: "default" if key in derived else recipe.sources[key] for key in KEYS}
    return build(recipe.path, new, sources | dict.fromkeys(values, source))


def build(path: Path, values: Mapping[str, Any], sources: Mapping[str, str]) -> Recipe:
    """The recipe of checked values; settings whose default follows from another one are resolved here."""
    new, origin = dict(values), dict(sources)
    if new["lora.alpha"] == 0:
        new["lora.alpha"], origin["lora.alpha"] = 2 * new["lora.r"], "default (2 × r)"
    if new["train.lr_scheduler_type"] == "constant" and origin["train.warmup_steps"] == "default":
        new["train.warmup_steps"], origin["train.warmup_steps"] = 0.0, "default (constant has no warm-up)"
    return Recipe(**assemble(Recipe, "", new), path=path, sources=origin)


def assemble(table: type, prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a table's dataclass, its sub-tables built."""
    arguments: dict[str, Any] = {}
    for each in fields(table):
        key = prefix + each.name.rstrip("_")
        if key in KEYS:
            arguments[each.name] = values[key]
        elif key in TABLES:
            arguments[each.name] = TABLES[key](**assemble(TABLES[key], key + ".", values))
    return arguments


def flat(attributes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a built table: the inverse of `assemble`."""
    values: dict[str, Any] = {}
    for name, value in attributes.items():
        key = prefix + name.rstrip("_")
        values |= flat(vars(value), key + ".") if key in TABLES else {key: value} if key in KEYS else {}
    return values


def place(path: Path, lines: Mapping[str, int], name: str) -> str:
    """`recipes/x.toml:7: train.lr`: the line of the key, else of its table, else none."""
    known = name
    while known and known not in lines:
        known = known.rpartition(".")[0]
    return f"{path}:{lines[known]}: {name}" if known else f"{path}: {name}"


def leaves(name: str, key: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(name as written, key, value) of everything in a table.

    A table of another name is yielded whole, to be refused, and then read as the one that was meant, so that its
    contents are checked too.
    """
    if not isinstance(value, dict) or (key and (key not in TABLES or not value)):
        yield name, key, value
        return
    for part, inner in value.items():
        inner_name, inner_key = f"{name}.{part}".lstrip("."), f"{key}.{part}".lstrip(".")
        if isinstance(inner, dict) and inner_key not in TABLES and inner_key not in KEYS and meant_table(inner_key):
            yield inner_name, inner_key, inner
            inner_key = meant_table(inner_key)
        yield from leaves(inner_name, inner_key, inner)


def override_entries(overrides: Iterable[str]) -> tuple[list[Entry], list[Finding]]:
    """The entries of `key=value` texts, and findings about texts that are no such thing."""
    entries: list[Entry] = []
    findings: list[Finding] = []
    for override in overrides:
        key, sign, text = override.partition("=")
        key, where = key.strip(), f"--set {override}"
        if sign and key:
            found = leaves(key, key, override_value(key, text))
            entries += [Entry(inner_key, value, where, "override") for _name, inner_key, value in found]
        else:
            fix = _("for example --set train.epochs=2")
            findings.append(Finding("bad-override", "error", where, _("an override is key=value"), "", fix))
    return entries, findings


def override_value(key: str, text: str) -> Any:
    """A TOML value; the text itself where it is none, or where the setting takes this text but no such value."""
    value = toml_value(text)
    hint = KEYS[key].hint if key in KEYS else None
    is_text = value is REFUSED or (hint and convert(hint, value) is REFUSED and convert(hint, text) is not REFUSED)
    return text if is_text else value


def check(entry: Entry) -> tuple[Finding | None, str]:
    """What is wrong with an entry, if anything, and the setting or table that was meant ("" where nobody knows)."""
    if entry.key in TABLES:
        return table_problem(entry)
    if entry.key not in KEYS:
        return unknown_table(entry) if isinstance(entry.value, dict) else unknown_key(entry)
    problem = refusal(entry, KEYS[entry.key])
    if entry.key == "name" and not problem and not names_a_folder(entry.value):
        fix = _(
            "use up to 64 letters (Chinese ones too), digits, - _ and . ; begin with a letter or digit, end with no "
            'dot; "current" and the device names of Windows (con, nul, com1 …) are taken'
        )
        problem = entry.refuse("bad-name", _("{name} can't name a series", name=as_toml(entry.value)), fix)
    return problem, entry.key


def names_a_folder(name: str) -> bool:
    """Whether a series of that name gets a safe folder, on Linux and on Windows drives."""
    taken = {"current", "con", "prn", "aux", "nul"} | {
        port + digit for port in ("com", "lpt") for digit in "0123456789"
    }
    if name.lower().partition(".")[0] in taken or len(name) > 64 or name.endswith("."):
        return False
    return name[0].isalnum() and all(character.isalnum() or character in "-_." for character in name)


def table_problem(entry: Entry) -> tuple[Finding | None, str]:
    """A table that is no table, or [train.until] with nothing in it."""
    if entry.value == {}:
        fix = _("give it loss, token_accuracy or both, or leave it out")
        empty = entry.refuse("empty-value", _("{key} is empty", key=entry.key), fix)
        return empty if entry.key == "train.until" else None, entry.key
    what = _("{key} is a table, not {value}", key=entry.key, value=as_toml(entry.value))
    if entry.key in LEAVES:  # train = "file.jsonl"
        return entry.refuse("wrong-type", what, how_to_write(entry, LEAVES[entry.key])), LEAVES[entry.key]
    fix = _("write [{key}] on a line of its own and its settings below", key=entry.key)
    return entry.refuse("wrong-type", what, fix), entry.key


def unknown_table(entry: Entry) -> tuple[Finding, str]:
    """A table that there is not; what stands in it is read as if it had the right name."""
    meant = meant_table(entry.key)
    tables = ", ".join(f"[{name}]" for name in TABLES)
    fix = _("did you mean [{name}]?", name=meant) if meant else _("the tables are {names}", names=tables)
    return entry.refuse("unknown-table", _("there is no table [{name}]", name=entry.key), fix), ""


def unknown_key(entry: Entry) -> tuple[Finding, str]:
    """A setting that there is not: another trainer's name, one of another table, or a slip."""
    table, _dot, leaf = entry.key.rpartition(".")
    leaf = leaf.lower().replace("-", "_")
    here = [key.leaf for key in KEYS.values() if key.table == table]
    what = _("there is no setting {key}", key=entry.key)
    reason = foreign.without_counterpart().get(leaf)
    if reason:
        return entry.refuse("unknown-key", what, reason), ""
    if leaf in foreign.RENAMED:
        meant = foreign.RENAMED[leaf]
        note = foreign.notes().get(meant, "")
        return entry.refuse("unknown-key", what, how_to_write(entry, meant) + (f"; {note}" if note else "")), meant
    near = leaf if leaf in LEAVES else near_name(leaf, here) or near_name(leaf, LEAVES)
    if near:
        return entry.refuse("unknown-key", what, how_to_write(entry, LEAVES[near])), LEAVES[near]
    known = _("the settings of [{table}] are {names}", table=table, names=", ".join(here))
    return entry.refuse("unknown-key", what, known if table in TABLES else _("docs/recipe.md lists every setting")), ""


def how_to_write(entry: Entry, meant: str) -> str:
    """The hint that leads from a wrong key to the right one."""
    key = KEYS[meant]
    if entry.source == "override":
        return _("write --set {key}=…", key=meant)
    if key.table:
        return _("write {leaf} in table [{table}]", leaf=key.leaf, table=key.table)
    return _("write {leaf} at the top of the file, before the first [table]", leaf=key.leaf)


def meant_table(name: str) -> str:
    """The table that another name stands for or comes close to, or ""."""
    inner = {table.rpartition(".")[2]: table for table in TABLES}
    return foreign.RENAMED_TABLES.get(name.lower()) or inner.get(name.lower()) or near_name(name, TABLES)


def covered(key: str, names: Iterable[str]) -> bool:
    """Whether a key or a table around it is among the names."""
    return any(key == name or key.startswith(name + ".") for name in names if name)


def contradictions(values: Mapping[str, Any], entries: Mapping[str, Entry]) -> list[Finding]:
    """Settings that are good alone and not together. A refused setting is not in `values` and raises nothing more."""
    found: list[Finding] = []

    def refuse(key: str, what: str, fix: str) -> None:
        found.append(Finding("contradiction", "error", entries[key].where if key in entries else key, what, "", fix))

    if values.get("data.val") == "":
        fix = _("set data.val to a file or a fraction such as 0.1, or leave this out")
        if values.get("train.early_stopping_patience"):
            refuse(
                "train.early_stopping_patience", _("early stopping watches the loss on data.val: there is none"), fix
            )
        if values.get("train.eval_steps"):
            refuse("train.eval_steps", _("there is no data.val to evaluate on"), fix)
    warmup, reports = values.get("train.warmup_steps", 0.0), values.get("train.report_to", ())
    if warmup > 1 and warmup % 1:
        what = _("{value} is neither a share below 1 nor a whole number of steps", value=warmup)
        refuse("train.warmup_steps", what, _("write {whole} for that many steps", whole=round(warmup)))
    if values.get("train.lr_scheduler_type") == "constant" and warmup and "train.warmup_steps" in entries:
        fix = _('use "constant_with_warmup", or leave warmup_steps out')
        refuse("train.warmup_steps", _('lr_scheduler_type "constant" has no warm-up'), fix)
    if "none" in reports and len(reports) > 1:
        refuse("train.report_to", _('"none" and a place to report to exclude each other'), _("keep one of them"))
    if values.get("model.base") == "builtin:tiny" and values.get("model.load_in_4bit"):
        what = _("builtin:tiny is too small to be held in 4 bits")
        refuse("model.load_in_4bit", what, _("leave load_in_4bit out"))
    return found


def reference() -> str:
    """Every setting, and every other trainer's name for it, as Markdown: the second half of docs/recipe.md."""
    parts: list[str] = []
    for name, table in {"": Recipe, **TABLES}.items():
        rows = [row(key) for key in KEYS.values() if key.table == name]
        parts += [f"### [{name}]" if name else "### Top of the file", (table.__doc__ or "").split("\n")[0]]
        parts.append("\n".join(["| key | takes | default | meaning |", "|---|---|---|---|", *rows]))
    aliases = [f"| `{key}` | {', '.join(names.split())} |" for key, names in foreign.ALIASES.items()]
    parts += ["### Names in other trainers", "They are refused with the name to use here."]
    parts.append("\n".join(["| here | elsewhere |", "|---|---|", *aliases]))
    return "\n\n".join(parts) + "\n"


def row(key: Key) -> str:
    """One line of the reference."""
    default = "unset" if key.default is None else f"`{as_toml(key.default)}`"
    takes = ", ".join([describe(key.hint), *(f"{sign} {bound}" for sign, bound in key.bounds.items())])
    return f"| `{key.leaf}` | {takes} | {'**required**' if key.required else default} | {key.help} |"


def main(arguments: Sequence[str]) -> None:
    """Prints the reference, or puts it below the heading "All settings" of a page."""
    os.environ["FASTTUNE_LANG"] = "en"
    if not arguments:
        sys.stdout.write(reference())
        return
    page = Path(arguments[0])
    head, heading, _old = page.read_text(encoding="utf-8").partition("## All settings\n")
    page.write_text(f"{head}{heading}\n{reference()}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
