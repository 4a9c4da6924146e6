"""`fasttune check`: what is wrong with data before they are trained on, and what they come to.

    FILE or RECIPE ── Source ──► samples ── data.lint ──► findings
                                         ── tokens, exact with a base's tokenizer, else estimated ──► Figures

Nothing is trained and nothing is downloaded: where a recipe's base is not on this machine yet, tokens are estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fasttune.command import command_line
from fasttune.console import FasttuneError, Finding, _, usage_error
from fasttune.data import batches, mend, tokenize
from fasttune.data.chat_template import ChatTemplate
from fasttune.data.dataset import Sample, prompted, read_samples, replayed, split
from fasttune.data.lint import lint
from fasttune.data.lint_persona import QWEN_DEFAULT
from fasttune.data.tokenize import Example, encode_all
from fasttune.machine import without_collector
from fasttune.planning import data_advice
from fasttune.planning.auto_values import batch_size
from fasttune.planning.lengths import steps_in
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import ModelRecipe, Recipe
from fasttune.runs.bands import band, band_epochs
from fasttune.training import hub, packing
from fasttune.training import model as models
from fasttune.training.plan_check import length_beyond_base

MEASURED = 5_000  # samples that are tokenized for the figures; of more an even choice
TEMPLATE_BYTES = 16  # that a chat template adds to a message in tokens, at most
STEPS, ROW_TOKENS = 100, 16_384  # of which the saving by shared prefixes is computed
ESTIMATED_LIMIT = 2_048  # the default of model.max_seq_length


@dataclass(frozen=True)
class Source:
    """What is checked: its samples, the findings about its files, the recipe that names them, if one does, and the
    general conversations that it mixes in. These are no part of what is checked, but must not be too long."""

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    findings: tuple[Finding, ...]
    recipe: Recipe | None = None
    general: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What the data come to. Tokens are exact where `exact`, else estimates; `prefix_tokens` are those of `steps` steps
    of one epoch, `prefix_computed` what training computes of them with shared prefixes. `general` is the number of
    general conversations that are mixed in; no other figure counts them."""

    samples: int
    held_out: int
    exact: bool
    sample_tokens: tuple[int, ...]
    answer_characters: tuple[int, ...]
    steps: int
    prefix_tokens: int
    prefix_computed: int
    system_prompts: int
    repeated_system_prompts: int
    general: int = 0

    def document(self) -> dict[str, Any]:
        """The figures as `--json` has them."""
        return {
            "samples": self.samples,
            "held_out": self.held_out,
            "general": self.general,
            "tokens_exact": self.exact,
            "sample_tokens": spread(self.sample_tokens),
            "answer_characters": spread(self.answer_characters),
            "shared_prefix": {
                "steps": self.steps,
                "tokens": self.prefix_tokens,
                "computed_tokens": self.prefix_computed,
            },
            "system_prompts": self.system_prompts,
            "repeated_system_prompts": self.repeated_system_prompts,
        }


@dataclass(frozen=True)
class Report:
    """All that `fasttune check` says."""

    findings: tuple[Finding, ...]
    figures: Figures


@without_collector()
def check(path: Path, overrides: Sequence[str] = ()) -> Report:
    """The findings and figures of a recipe (.toml) or of a data file. Raises UsageError for a recipe that is wrong."""
    source = of_recipe(load_recipe(path, overrides)) if path.suffix.lower() == ".toml" else of_file(str(path))
    recipe = source.recipe
    template = template_of(recipe.model) if recipe else None
    default = template.default_system(("user", "assistant")) if template else QWEN_DEFAULT
    findings = [*source.findings]
    if recipe:
        findings += length_beyond_base(recipe, hub.local_tokenizer(recipe.model))
        findings += [] if template else [without_tokenizer(recipe, overrides)]
    if source.train:
        findings += lint(source.train, source.held_out, default)
        findings += too_long(source, template)
        findings += few(source)
    return Report(tuple(findings), measure(source, template))


def mended_copy(path: Path, out: Path, overrides: Sequence[str] = ()) -> list[Finding]:
    """Write the mended copy of a data file, or of the one that a recipe trains on, to `out`; returns what was done.

    Raises UsageError where `out` exists or the recipe has several files, FasttuneError for a file that can't be read.
    """
    if path.suffix.lower() != ".toml":
        beside = held_out_beside(str(path))
        return mend.mend(str(path), out, read_samples(beside).samples if beside else ())
    recipe = load_recipe(path, overrides)
    if len(recipe.data.train) > 1:
        what = _("the recipe trains on {n} files; a copy is made of one", n=len(recipe.data.train))
        raise usage_error(
            "several-files", what, where=f"{path}: data.train", fix=_("name the file instead of the recipe")
        )
    held_out = read_samples(recipe.data.val).samples if isinstance(recipe.data.val, str) and recipe.data.val else ()
    return mend.mend(recipe.data.train[0], out, held_out)


# Reading ------------------------------------------------------------------------------------------------------------


def of_recipe(recipe: Recipe) -> Source:
    """The samples of a recipe's [data], split as training would."""
    readings = [read_samples(path) for path in recipe.data.train]
    held_out_readings = [read_samples(recipe.data.val)] if isinstance(recipe.data.val, str) and recipe.data.val else []
    findings = [finding for one in [*readings, *held_out_readings] for finding in one.findings]
    train, held_out = ([sample for one in some for sample in one.samples] for some in (readings, held_out_readings))
    train, held_out = prompted(train, held_out, recipe.data)
    if isinstance(recipe.data.val, float) and recipe.data.val > 0:
        try:
            train, held_out = split(train, recipe.data.val, recipe.train.seed)
        except FasttuneError as problem:
            findings += problem.findings
    general, too_few = replayed(train, recipe.data.replay, recipe.train.seed)
    return Source(tuple(train), tuple(held_out), without_repeats([*findings, *too_few]), recipe, general)


def of_file(path: str) -> Source:
    """The samples of a file; held out is val.jsonl beside train.jsonl, as `fasttune init` takes it."""
    reading = read_samples(path)
    beside = held_out_beside(path)
    if not beside:
        return Source(reading.samples, (), without_repeats(reading.findings))
    held_out = read_samples(beside)
    return Source(reading.samples, held_out.samples, without_repeats([*reading.findings, *held_out.findings]))


def held_out_beside(path: str) -> str:
    """The file val.jsonl beside a file train.jsonl; "" where there is none."""
    name = Path(path).name  # "" of `.` and `/`
    beside = Path(path).with_name(name.replace("train", "val")) if name else Path(path)
    return str(beside) if str(beside) != str(Path(path)) and beside.is_file() else ""


def without_repeats(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, each once."""
    return tuple(dict.fromkeys(findings))


def template_of(recipe: ModelRecipe) -> ChatTemplate | None:
    """The base's chat template and tokenizer; None where the base is not on this machine."""
    folder = hub.local_tokenizer(recipe)
    return ChatTemplate(models.load_tokenizer(folder)) if folder else None


def without_tokenizer(recipe: Recipe, overrides: Sequence[str]) -> Finding:
    """The note that a recipe's base is not on this machine."""
    what = _("{base} is not on this machine: all tokens are estimated", base=recipe.model.base)
    why = _("whether a sample is longer than max_seq_length, its own tokenizer alone can tell")
    words = ["run", str(recipe.path), *(word for override in overrides for word in ("--set", override))]
    fix = _("`{command}` downloads it before it trains", command=command_line(words))
    return Finding("tokens-estimated", "info", f"{recipe.path}: model.base", what, why, fix)


# Findings that need tokens or a recipe --------------------------------------------------------------------------------


def too_long(source: Source, template: ChatTemplate | None) -> list[Finding]:
    """Samples longer than max_seq_length: an error with the base's tokenizer, a warning where tokens are estimated.

    No text has more tokens than bytes, so only samples of so many bytes are tokenized.
    """
    limit = source.recipe.model.max_seq_length if source.recipe else ESTIMATED_LIMIT
    samples = [*source.train, *source.held_out, *source.general]
    long = [one for one in samples if sum(len(m.content.encode()) + TEMPLATE_BYTES for m in one.messages) > limit]
    return [
        tokenize.too_long(sample.id, tokens, limit, estimated=template is None)
        for sample, tokens in zip(long, counted(long, source, template), strict=True)
        if tokens > limit
    ]


def counted(samples: Sequence[Sample], source: Source, template: ChatTemplate | None) -> list[int]:
    """The tokens of each sample, exact with a template; 0 for one that the template refuses."""
    if template is None:
        return [round(tokenize.estimate_sample(sample)) for sample in samples]
    learn = source.recipe.data.learn if source.recipe else "assistant"
    return [len(one.tokens) if isinstance(one, Example) else 0 for one in encode_all(samples, template, learn)]


def few(source: Source) -> list[Finding]:
    """Too few samples to learn from, for the plan's steps, or for its epochs by the usual bands."""
    samples, recipe = len(source.train), source.recipe
    found = data_advice.about_samples(source.train, recipe.data.learn if recipe else "assistant")
    size = batch_size(samples) if recipe is None or recipe.train.batch_size == "auto" else recipe.train.batch_size
    epochs = band_epochs(samples) if recipe is None or recipe.train.epochs == "auto" else recipe.train.epochs
    low, high = band(samples)
    if recipe and recipe.strategy == "fresh" and not recipe.train.max_steps:
        total = steps_in(epochs, batches.steps_per_epoch(samples + len(source.general), size))
        found += data_advice.too_few_steps(total, f"{recipe.path}: train.batch_size")
        if epochs > high + 1 or epochs < low:
            what = _("{epochs:.1f} epochs over {samples} samples; {low:.0f} to {high:.0f} usually suit so many",
                     epochs=epochs, samples=samples, low=low, high=high)  # fmt: skip
            why = _("too few epochs leave the persona vague, too many over-fit")
            found.append(Finding("epochs-for-data", "info", f"{recipe.path}: train.epochs", what, why))
    return [*found, *data_advice.one_held_out(str(recipe.path) if recipe else "data", len(source.held_out))]


# Figures ------------------------------------------------------------------------------------------------------------


def measure(source: Source, template: ChatTemplate | None, most: int = MEASURED) -> Figures:
    """The figures of the training samples, of an even choice of about `most` where there are more."""
    chosen = source.train[:: max(1, len(source.train) // most)]
    examples = [estimated_example(sample) for sample in chosen]
    learn = source.recipe.data.learn if source.recipe else "assistant"
    if template is not None:
        examples = [one for one in encode_all(chosen, template, learn) if isinstance(one, Example)]
        tokens = [len(one.tokens) for one in examples]
    else:
        tokens = counted(chosen, source, None)
    steps, own, computed = shared(examples, source.recipe)
    scale = 1.0 if template else sum(tokens) / max(1, sum(len(one.tokens) for one in examples))
    prompts = [m.content for sample in source.train for m in sample.messages if m.role == "system"]
    return Figures(
        samples=len(source.train),
        held_out=len(source.held_out),
        general=len(source.general),
        exact=template is not None,
        sample_tokens=tuple(tokens),
        answer_characters=tuple(len(m.content) for one in chosen for m in one.messages if m.role == "assistant"),
        steps=steps,
        prefix_tokens=round(own * scale),
        prefix_computed=round(computed * scale),
        system_prompts=len(set(prompts)),
        repeated_system_prompts=len(prompts) - len(set(prompts)),
    )


def estimated_example(sample: Sample) -> Example:
    """A sample with a token for each character: how much of it others share is nearly the same as in tokens."""
    tokens: list[int] = []
    spans: list[tuple[int, int]] = []
    for message in sample.messages:
        tokens += [-len(message.role)]  # stands for the header of the turn
        start = len(tokens)
        tokens += map(ord, message.content)
        if message.role == "assistant":
            spans.append((start, len(tokens)))
    return Example(sample.id, tuple(token % 2**32 for token in tokens), tuple(spans))


def shared(examples: Sequence[Example], recipe: Recipe | None) -> tuple[int, int, int]:
    """(steps, their tokens, those that training computes) of the first epoch, of at most STEPS steps."""
    if not examples:
        return 0, 0, 0
    train = recipe.train if recipe else None
    size = train.batch_size if train and train.batch_size != "auto" else batch_size(len(examples))
    budget = train.tokens_per_row if train and train.tokens_per_row != "auto" else ROW_TOKENS
    shares = train is None or (train.shared_prefix and recipe is not None and recipe.lora.dropout == 0)
    chosen = batches.epoch_batches(len(examples), size, train.seed if train else 0, 0)[:STEPS]
    planned = [packing.plan_step(examples, step, budget, shared_prefix=shares) for step in chosen]
    return len(planned), sum(step.tokens for step in planned), sum(step.computed_tokens for step in planned)


def spread(values: Sequence[int]) -> dict[str, float]:
    """Least, median, the 95th of a hundred, and most of some numbers; empty for none."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": median(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }
