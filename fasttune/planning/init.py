"""`fasttune init`: a first recipe for a data file, with values chosen from the data and the machine.

    samples ── how many ──► epochs, batch_size, r, share to hold out      machine ── free memory ──► base, load_in_4bit
            ── how long ──► max_seq_length

Only what differs from the defaults is written, each line with its reason. An existing file is never overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.command import command_line
from fasttune.console import FasttuneError, UsageError, _, ngettext, say, show_findings, usage_error
from fasttune.data import dataset
from fasttune.data.dataset import Sample
from fasttune.data.tokenize import estimate_tokens
from fasttune.machine import Machine, free_memory
from fasttune.planning import data_advice
from fasttune.planning.auto_values import batch_size
from fasttune.planning.number_type import read_config
from fasttune.recipe.load import check_entry
from fasttune.recipe.schema import KEYS, DataRecipe
from fasttune.recipe.values import Entry, as_toml
from fasttune.runs.bands import TINY, band, band_epochs
from fasttune.runs.holding_out import HOLD_OUT_FROM, share_to_hold_out
from fasttune.runs.judgement import ENOUGH_HELD_OUT

ESTIMATE_MARGIN = 4 / 3  # how far a sample's tokens may exceed their estimate
TEMPLATE_TOKENS = 8  # at most, that a chat template writes around a message; ChatML has 5
BASES = {size: f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B")}
# (free GPU memory in GiB, size, load_in_4bit): the first whose memory is free is chosen. It holds the weights (16 bits:
# 1.0, 3.1, 6.2 GB; 4 bits: 0.5, 1.2, 2.0 GB), the driver's and torch's 1.4 GiB, adapter, optimizer and activations.
GPU_BASES = ((11.0, "3B", False), (6.5, "1.5B", False), (4.0, "1.5B", True), (2.8, "0.5B", False), (0.0, "0.5B", True))
RAM_FOR_HALF_B = 6.0  # GiB: 2 GB of float32 weights, twice while they are merged, and the process itself
# Rank by number of samples: from this many, this rank.
RANKS = ((2000, 32), (200, 16), (0, 8))
CONTEXT = 32768  # of Qwen2.5, in tokens
TINY_LEARNING_RATE = 2e-3
WITH_K_QUANTS = ("1.5b", "3b", "7b")  # in the names of bases whose rows 256 divides
PROBES, PROBE_CHARACTERS = 3, 200
STANDARD = Path(__file__).parent.parent / "questions"  # those of `fasttune compare`, by language


@dataclass(frozen=True)
class Line:
    """One setting of the recipe to write, with the reason for its value."""

    key: str
    value: Any
    why: str


def init(name: str, files: Sequence[str], base: str | None, out: Path | None) -> Path:
    """Write recipes/NAME.toml, or `out`; returns its path.

    Raises UsageError for a name that can't name a series and for a file that exists, FasttuneError for data that can't
    be used, with all findings about it.
    """
    check({"name": name, "data.train": list(files), **({} if base is None else {"model.base": base})})
    path = out or Path("recipes") / f"{name}.toml"
    if path.exists():
        raise exists_already(path)
    read = dataset.load_dataset(DataRecipe(train=tuple(files)), seed=0)
    too_long = data_advice.probably_too_long(read.train, context(base), _("split it: the base reads no more at once"))
    show_findings([*read.findings, *data_advice.about_samples(read.train, "assistant"), *too_long])
    machine = free_memory()
    lines = settings(name, files, read.train, base, machine)
    text = written(path, read.train, files, machine, lines)
    if not any(line.key == "data.val" for line in lines):
        say(nothing_held_out())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:  # written by somebody else meanwhile
        raise exists_already(path) from None
    return path


def check(given: Mapping[str, Any]) -> None:
    """Raises UsageError, as reading the recipe would, for a value that a recipe can't hold."""
    found = [check_entry(Entry(key, value, key, "override"))[0] for key, value in given.items()]
    if problems := [problem for problem in found if problem]:
        raise UsageError(*problems)


def exists_already(path: Path) -> UsageError:
    """The error for a file that would be overwritten."""
    return usage_error(
        "file-exists",
        _("the file already exists"),
        where=str(path),
        fix=_("train it with `{command}`, or write another one with `--out FILE`", command=command("run", path)),
    )


# Choosing -----------------------------------------------------------------------------------------------------------


def settings(
    name: str, files: Sequence[str], samples: Sequence[Sample], base: str | None, machine: Machine
) -> list[Line]:
    """The lines of the recipe: the required settings, and those whose chosen value is not the default."""
    val = val_line(files, len(samples))
    train = len(samples) - (max(1, round(val.value * len(samples))) if isinstance(val.value, float) else 0)
    chosen = [
        Line("name", name, ""),
        *base_lines(base, machine),
        length_line(samples, base),
        Line("data.train", files[0] if len(files) == 1 else list(files), ""),
        val,
        rank_line(train),
        epochs_line(train),
        batch_line(train),
        *tiny_lines(base),
        *gguf_lines(base_lines(base, machine)[0].value),
        probe_line(*held_out_samples(files, val.value, samples)),
    ]
    return [line for line in chosen if KEYS[line.key].required or line.value not in (KEYS[line.key].default, [])]


def base_lines(base: str | None, machine: Machine) -> list[Line]:
    """The base that fits into the free memory, or the one that was named; in 4 bits where its 16-bit weights do not
    fit."""
    quantized = _("4-bit: 16-bit weights need more than the {free:.1f} GiB free on the GPU", free=machine.gpu_gib or 0)
    if base is not None:
        needed = next((free for free, size, small in GPU_BASES if not small and size.lower() in base.lower()), 0.0)
        small = machine.gpu_gib is not None and machine.gpu_gib < needed
        return [Line("model.base", base, ""), Line("model.load_in_4bit", small, quantized)]
    if machine.gpu_gib is None:
        why = _("no GPU: a step of a larger base takes minutes on a CPU")
        if machine.ram_gib < RAM_FOR_HALF_B:
            why = _(
                "it needs {needed:.0f} GiB of memory, {free:.1f} are free", needed=RAM_FOR_HALF_B, free=machine.ram_gib
            )
        return [Line("model.base", BASES["0.5B"], why)]
    size, small = next((size, small) for needed, size, small in GPU_BASES if machine.gpu_gib >= needed)
    why = _("the largest base that {free:.1f} GiB of GPU memory can train", free=machine.gpu_gib)
    if size == "3B":
        why = _("{why}; its licence excludes commercial use, that of 1.5B does not", why=why)
    return [Line("model.base", BASES[size], why), Line("model.load_in_4bit", small, quantized)]


def length_line(samples: Sequence[Sample], base: str | None) -> Line:
    """max_seq_length: the longest sample rounded up to 512 tokens, at least the default, at most the base's context."""
    longest = max(samples, key=tokens_at_most)
    tokens = tokens_at_most(longest)
    default = int(KEYS["model.max_seq_length"].default)
    length = default if tokens <= default else min(context(base), -(-tokens // 512) * 512)
    why = _("{sample} has up to {tokens} tokens", sample=longest.id, tokens=tokens)
    return Line("model.max_seq_length", length, why)


def tokens_at_most(sample: Sample) -> int:
    """An upper bound of a sample's tokens: the estimate with a margin, and the chat template's tokens."""
    estimate = sum(estimate_tokens(message.content) for message in sample.messages)
    return math.ceil(ESTIMATE_MARGIN * estimate) + TEMPLATE_TOKENS * len(sample.messages)


def val_line(files: Sequence[str], samples: int) -> Line:
    """data.val: val.jsonl beside train.jsonl, else the share that suits so many samples; none of few."""
    beside = Path(files[0]).with_name(Path(files[0]).name.replace("train", "val"))
    if str(beside) not in files and beside.is_file():
        return Line("data.val", str(beside), _("the file beside it"))
    if samples < HOLD_OUT_FROM:
        return Line("data.val", "", "")
    share = share_to_hold_out(samples)
    why = _("of {samples} samples: their loss shows over-fitting", samples=samples)
    if round(share * samples) < ENOUGH_HELD_OUT:
        why = _("of {samples} samples, to compare epochs; a verdict takes {enough} held-out ones", samples=samples,
                enough=ENOUGH_HELD_OUT)  # fmt: skip
    return Line("data.val", share, why)


def nothing_held_out() -> str:
    """Why nothing is held out of few samples."""
    return _("Nothing is held out (data.val): of fewer than {least} samples each is needed to learn from. No figure "
             "then tells which epoch or value is better: judge by the answers.", least=HOLD_OUT_FROM)  # fmt: skip


def rank_line(samples: int) -> Line:
    """lora.r by the number of samples (RANKS)."""
    r = next(r for least, r in RANKS if samples >= least)
    return Line("lora.r", r, _("rank 8 is small for {samples} samples", samples=samples))


def epochs_line(samples: int) -> Line:
    """train.epochs: the middle of the band for so many samples."""
    low, high = band(samples)
    why = ngettext(
        "{low:g} to {high:g} suit {n} sample", "{low:g} to {high:g} suit {n} samples", samples, low=low, high=high
    )
    return Line("train.epochs", band_epochs(samples), why)


def batch_line(samples: int) -> Line:
    """train.batch_size: the one that "auto" chooses."""
    size = batch_size(samples)
    return Line("train.batch_size", size, ngettext("{n} step an epoch", "{n} steps an epoch", -(-samples // size)))


def tiny_lines(base: str | None) -> list[Line]:
    """Settings that the built-in base needs because it and its context are small."""
    if base != TINY:
        return []
    length = min(context(base), int(KEYS["export.num_ctx"].default))
    return [
        Line("train.learning_rate", TINY_LEARNING_RATE, _("a small model needs a higher learning rate")),
        Line("export.num_ctx", length, _("the context of builtin:tiny")),
    ]


def gguf_lines(base: str) -> list[Line]:
    """export.gguf by the size of the base: q4_k_m where its rows fit the blocks of 256 weights. Those of 0.5B, of 896,
    do not: Q4_K_M is mostly Q5_0 and Q8_0 there and three quarters of Q8_0's size, which is the default and loses
    less."""
    if not any(size in base.lower() for size in WITH_K_QUANTS):
        return []
    why = _("the rows of this base fit the blocks of q4_k_m: 0.6 times q8_0's size")
    return [Line("export.gguf", ["q4_k_m"], why)]


def context(base: str | None) -> int:
    """The context length of a base in tokens: as its config.json says where it is a folder, else that of Qwen2.5."""
    if base is None:
        return CONTEXT
    length = read_config(base).get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else CONTEXT


def probe_line(train: Sequence[Sample], held_out: Sequence[Sample]) -> Line:
    """probe.questions: the first questions of the first different held-out samples, those of at most PROBE_CHARACTERS
    characters where there are any; without held-out samples standard ones in the language of the data. None is a
    question of the training samples, whose answers would be recited."""
    trained = {message.content.strip() for sample in train for message in sample.messages}
    first = [message.content.strip() for sample in held_out for message in sample.messages[:2]
             if message.role == "user"]  # fmt: skip
    questions = [question for question in dict.fromkeys(first) if question and question not in trained]
    short = [question for question in questions if len(question) <= PROBE_CHARACTERS]
    why = _("held-out questions, answered before and after; replace them by your own")
    if not questions:
        text = "".join(trained)
        chinese = any("\u4e00" <= one <= "\u9fff" for one in text)
        short = [question for question in standard_questions(chinese=chinese) if question not in trained]
        why = _("not of the training data, answered before and after; replace them by your own")
    return Line("probe.questions", (short or questions)[:PROBES], why)


def standard_questions(*, chinese: bool) -> list[str]:
    """The questions that `fasttune compare` asks of every model."""
    text = (STANDARD / ("zh.txt" if chinese else "en.txt")).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def held_out_samples(
    files: Sequence[str], val: str | float, samples: Sequence[Sample]
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The samples that a training by this recipe trains on, and those that it holds out; where the file of those can't
    be used, `plan` and `run` say why."""
    if not val:
        return samples, ()
    try:
        read = dataset.load_dataset(DataRecipe(train=tuple(files), val=val), seed=KEYS["train.seed"].default)
    except FasttuneError:
        return samples, ()
    return read.train, read.held_out


# Writing ------------------------------------------------------------------------------------------------------------


def written(
    path: Path, samples: Sequence[Sample], files: Sequence[str], machine: Machine, lines: Iterable[Line]
) -> str:
    """The recipe's text: the command that runs it, what it was chosen from, the settings table by table."""
    if machine.gpu_gib is None:
        where = _("{free:.1f} GiB of free memory, no GPU", free=machine.ram_gib)
    else:
        where = _("a GPU with {free:.1f} GiB free", free=machine.gpu_gib)
    chosen_from = ngettext("Chosen for {n} sample of {files} and {machine}.",
                           "Chosen for {n} samples of {files} and {machine}.", len(samples),
                           files=", ".join(files), machine=where)  # fmt: skip
    rest = _("Every other setting has its default; `{command}` shows them.", command=command("plan", path))
    text = f"# {command('run', path)}\n#\n# {one_line(chosen_from)}\n# {one_line(rest)}\n"
    if not any(message.role == "system" for sample in samples for message in sample.messages):
        hint = _("No sample has a system prompt: data.system adds one to all of them.")
        text += f"# {hint}\n"
    lines = list(lines)
    if not any(line.key == "data.val" for line in lines):
        text += f"# {nothing_held_out()}\n"
    table = None
    for line in lines:
        if KEYS[line.key].table != table:
            table = KEYS[line.key].table
            text += f"\n[{table}]\n" if table else "\n"
        text += setting_text(line)
    return text


def command(verb: str, path: Path) -> str:
    """The command line of a verb with the recipe."""
    return command_line([verb, str(path)])


def setting_text(line: Line) -> str:
    """`epochs = 3.5  # 3 to 4 suit 120 samples`, or the reason in a line above a long value."""
    value = f"{KEYS[line.key].leaf} = {as_toml(line.value)}".replace("\x7f", "\\u007f")
    if not line.why:
        return f"{value}\n"
    why = f"# {one_line(line.why)}"
    return f"{why}\n{value}\n" if len(value) + len(why) > 110 else f"{value}  {why}\n"


def one_line(text: str) -> str:
    """The text as a TOML comment: line breaks and control characters, which a file's name can hold, become `?`."""
    return "".join(character if character.isprintable() else "?" for character in text)
