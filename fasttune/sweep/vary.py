"""What a sweep varies: `--vary KEY=…` as it is typed.

    train.learning_rate=1e-4,2e-4,4e-4      values, each of which is trained
    lora.r=8..64                            a range, from which values are chosen by what came of those before

Only settings that reach the weights may vary, and none that changes what the held-out loss is taken of: losses on other
samples, or on other tokens of them, can't be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.console import N_, Finding, UsageError, _
from fasttune.planning.parents import typed_value
from fasttune.recipe.load import check_entry, override_value
from fasttune.recipe.schema import KEYS, Key
from fasttune.recipe.toml_file import REFUSED, toml_value
from fasttune.recipe.values import Entry, convert, is_within, setting_value

# The users' own rule: epochs first, then the learning rate, then the rank; what else there is comes after them.
RULE = ("train.epochs", "train.learning_rate", "lora.r")
MAY_VARY = (
    "lora.r", "lora.alpha", "lora.dropout", "lora.target_modules",
    "train.epochs", "train.max_steps", "train.learning_rate", "train.batch_size", "train.lr_scheduler_type",
    "train.warmup_steps", "train.weight_decay", "train.max_grad_norm", "train.optim",
    "model.load_in_4bit", "model.dtype",
)  # fmt: skip
# Why another setting may not: by its name, or the beginning of it.
WHY_NOT = {
    "name": N_("all trials are runs of one series"),
    "strategy": N_("all trials begin alike; name the strategy in the recipe or by --continue"),
    "continue.": N_("all trials begin alike"),
    "data.": N_("held-out losses on other samples, or on other tokens of them, can't be compared"),
    "model.": N_("held-out losses of other bases are other questions: sweep each base by itself"),
    "train.seed": N_("the best of several seeds is luck, which the next training doesn't have; and the seed chooses "
                     "the held-out samples where data.val is a share"),
    "train.early_stopping_patience": N_("it says when a training ends, and every epoch is compared anyway"),
    "train.until.": N_("it says when a training ends, and every epoch is compared anyway"),
    "train.": N_("it never changes the weights"),
    "export.": N_("it comes after the training"),
    "probe.": N_("it comes after the training"),
    "facts.": N_("it comes after the training"),
}  # fmt: skip
RANGE = re.compile(r"\s*([^\s,\[\]]+?)\s*\.\.\s*([^\s,\[\]]+)\s*")
LOG = 10  # a range whose ends are so many times apart is searched by orders of magnitude


@dataclass(frozen=True)
class Values:
    """A setting with its values as they are typed after `--set KEY=`."""

    key: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included. `is_whole`: only whole ones; `is_log`: by orders of magnitude."""

    key: str
    low: float
    high: float
    is_whole: bool

    @property
    def is_log(self) -> bool:
        return self.low > 0 and self.high >= LOG * self.low

    def text(self, value: float) -> str:
        """A number of the range as it is typed: with three digits, as nobody tells more of them apart."""
        if self.is_whole:
            return str(round(value))
        short = f"{value:.3g}"
        return short if self.low <= float(short) <= self.high else repr(value)


Variation = Values | Range


def read_variations(texts: Sequence[str]) -> tuple[Variation, ...]:
    """What `--vary` says, in the order of RULE, else as typed.

    Raises UsageError with one finding for each fault of it.
    """
    found: list[Variation] = []
    problems: list[Finding] = []
    for text in texts:
        key, sign, values = text.partition("=")
        entry = Entry(key.strip(), values.strip(), f"--vary {text[:100]}", "vary")
        problem = refused_key(entry) if sign and entry.key else is_no_variation(entry)
        if problem is None and any(one.key == entry.key for one in found):
            problem = entry.refuse("repeated-value", _("{key} is varied twice", key=entry.key), _("keep one of them"))
        read = [problem] if problem else read_one(entry)
        problems += read if isinstance(read, list) else []
        found += [] if isinstance(read, list) else [read]
    if problems:
        raise UsageError(*problems)
    return tuple(sorted(found, key=lambda one: RULE.index(one.key) if one.key in RULE else len(RULE)))


def read_one(entry: Entry) -> Variation | list[Finding]:
    """What varies of a setting, or what is wrong with it."""
    ends = RANGE.fullmatch(entry.value)
    return read_range(entry, ends[1], ends[2]) if ends else read_values(entry)


def is_no_variation(entry: Entry) -> Finding:
    """The finding about a text without `=`."""
    fix = _("for example `--vary train.learning_rate=1e-4,2e-4,4e-4` or `--vary lora.r=4..32`")
    return entry.refuse("bad-variation", _("what varies is written KEY=VALUE,VALUE or KEY=LOW..HIGH"), fix)


def refused_key(entry: Entry) -> Finding | None:
    """The finding about a key that is no setting, or may not vary."""
    if entry.key not in KEYS:
        return check_entry(entry)[0] or is_no_variation(entry)
    if entry.key in MAY_VARY:
        return None
    why = next(reason for name, reason in WHY_NOT.items() if entry.key == name or entry.key.startswith(name))
    what = _("{key} may not vary in a sweep", key=entry.key)
    return entry.refuse("may-not-vary", what, _("what may vary: {keys}", keys=", ".join(MAY_VARY)), _(why))


# Values -------------------------------------------------------------------------------------------------------------


def read_values(entry: Entry) -> Values | list[Finding]:
    """The values of a list, or what is wrong with them."""
    key = KEYS[entry.key]
    texts = split(entry.value)
    example = _("for example `--vary {key}=…,…`", key=entry.key)
    if not texts or "" in texts:
        return [entry.refuse("no-values", _("a value of {key} is missing", key=entry.key), example)]
    entries = [Entry(key.name, override_value(key.name, text), f"--vary {key.name}={text}", "vary") for text in texts]
    if problems := [problem for one in entries if (problem := check_entry(one)[0])]:
        return problems
    if len(texts) == 1:
        what = _("{key} has one value, and there is nothing to choose from", key=entry.key)
        fix = _("name several, or set it by `--set {line}`", line=f"{entry.key}={texts[0]}")
        return [entry.refuse("one-value", what, fix)]
    if twice := repeated(setting_value(key, one.value) for one in entries):
        what = _("{key} has the value {value} twice", key=entry.key, value=typed_value(twice[0]))
        return [entry.refuse("repeated-value", what, _("keep one of them"))]
    return Values(entry.key, tuple(texts))


def split(text: str) -> list[str]:
    """The values of `1e-4,2e-4` or `["q_proj"],["q_proj", "v_proj"]`, each as it is typed after `--set KEY=`."""
    parts = [part.strip() for part in text.split(",")]
    listed = toml_value(f"[{text}]")
    if listed is REFUSED or len(listed) == len(parts):
        return parts if text.strip() else []
    return [typed_value(value) for value in listed]


def repeated(values: Iterable[Any]) -> list[Any]:
    """The values that stand there more than once."""
    every = list(values)
    return [one for number, one in enumerate(every) if one in every[:number]]


# Ranges -------------------------------------------------------------------------------------------------------------


def read_range(entry: Entry, low: str, high: str) -> Range | list[Finding]:
    """The range between two numbers, or what is wrong with it."""
    key = KEYS[entry.key]
    if not (is_whole := takes(key, int)) and not takes(key, float):
        what = _("{key} is no number, so that there is no range of it", key=entry.key)
        return [entry.refuse("range-of-text", what, _("name its values: `--vary {key}=…,…`", key=entry.key))]
    ends = [Entry(key.name, toml_value(text), f"--vary {key.name}={low}..{high}", "vary") for text in (low, high)]
    for one, text in zip(ends, (low, high), strict=True):
        if one.value is REFUSED:
            one = Entry(one.key, text, one.where, one.source)
        if problem := check_entry(one)[0]:
            return [problem]
        if convert(float, one.value) is REFUSED or not is_within(key, one.value):
            what = _("{value} is no number", value=text)
            return [one.refuse("range-of-text", what, _("for example `--vary {key}=LOW..HIGH`", key=entry.key))]
    first, last = (float(one.value) for one in ends)
    if first >= last:
        what = _("a range goes from the lower to the higher number, not from {low} to {high}", low=low, high=high)
        return [entry.refuse("empty-range", what, f"--vary {entry.key}={high}..{low}")]
    return Range(entry.key, first, last, is_whole)


def takes(key: Key, kind: type) -> bool:
    """Whether a setting takes whole numbers (int), or any (float)."""
    return convert(key.hint, 1 if kind is int else 1.5) is not REFUSED and (
        kind is not int or convert(key.hint, 1.5) is REFUSED
    )
