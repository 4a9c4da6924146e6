"""What a plan will take: tokens, memory against what is free, time. No torch, no network, a few seconds at most.

    samples ── PlainTokenizer ──► tokens ── plan_step, as training does ──► rows ── memory.py ──► bytes at the peak
                                                                             └── earlier runs' speed ──► seconds

Where the base is not on this disk yet, tokens are estimated from characters and its size from its name; where neither
is known, that is said.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fasttune import machine
from fasttune.console import FasttuneError
from fasttune.data import batches
from fasttune.data.dataset import Sample
from fasttune.data.plain_tokenizer import plain_examples
from fasttune.data.tokenize import Example, estimate_tokens
from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import documents, store
from fasttune.runs.history import read_history
from fasttune.runs.store import Run
from fasttune.training import hub, memory, packing, space
from fasttune.training.memory import GIB, DeviceKind, LongestRow, Memory, ModelSize
from fasttune.training.packing import Row, Step
from fasttune.training.row_budget import estimated_budget, longest_row, measured_budget, needs_gradient_checkpointing

MOST_SAMPLES = 2000  # that are tokenized; of more, every n-th
MOST_STEPS = 64  # that are laid out
TURN_TOKENS = 5  # that ChatML writes around a message
RUNS_ASKED = 3  # of the newest that trained the same base here
SMALLER = {"7b": "3B", "3b": "1.5B", "1.5b": "0.5B"}


@dataclass(frozen=True)
class Download:
    """A base that has to be downloaded first, and about how many bytes; None where that is not known."""

    base: str
    size: int | None


@dataclass(frozen=True)
class Estimate:
    """What a plan will take. None stands for what is not known.

    `tokens` and `computed_tokens` are of one epoch, by the base's tokenizer for `counted` samples (0: by characters);
    `longest` is the longest row. `memory` is at the peak, `least` with rows of one sample; `free` are the bytes that
    are free now.
    `epoch_bytes` are those of a kept epoch on the disk; `download` is None where the base is on this disk.
    `seconds` are those of loading and training, by the speed of the run `seconds_from`. `change` are the --set values
    that make it fit, none where it fits or none is known.
    """

    device: DeviceKind
    samples: int
    tokens: int
    computed_tokens: int
    counted: int
    steps: int
    longest: int
    checkpointing: bool
    memory: Memory | None
    least: Memory | None
    free: int
    seconds: float | None
    seconds_from: str
    change: tuple[str, ...]
    epoch_bytes: int | None = None
    download: Download | None = None

    @property
    def exact(self) -> bool:
        """Whether the tokens of all samples were counted."""
        return self.counted == self.samples

    @property
    def fits(self) -> bool | None:
        """Whether there is enough free memory; None where it is unknown what is needed."""
        return None if self.least is None else self.least.total <= self.free

    def document(self) -> dict[str, Any]:
        """The estimate as `fasttune plan --json` holds it; memory in bytes."""
        plain = {
            name: getattr(self, name)
            for name in ("device", "samples", "tokens", "computed_tokens", "exact", "steps", "longest", "checkpointing")
        }
        parts = self.memory.parts() | {"total": self.memory.total} if self.memory else None
        return plain | {
            "memory": parts,
            "free": self.free,
            "fits": self.fits,
            "seconds": self.seconds,
            "seconds_from": self.seconds_from,
            "change": list(self.change),
            "epoch_bytes": self.epoch_bytes,
            "download": vars(self.download) if self.download else None,
        }


def estimate(plan: Plan, root: Path) -> Estimate:
    """What a plan will take on this machine, by the speed of earlier runs below `root`."""
    kind, free, shares = this_device(plan)
    base = base_folder(plan.recipe.model)
    size = space.read_size(plan.recipe.model, base)
    examples, share, was_counted = examples_of(plan, base)
    rows = Rows.of(plan, examples, share, size, kind, free, shares)
    here = None if size is None else rows.memory(plan, size, kind)
    least = None if size is None else rows.memory(plan, size, kind, least=True)
    seconds, by = time_for(plan, root, kind, rows)
    drafted = Estimate(
        device=kind,
        samples=len(plan.dataset.trained),
        tokens=rows.tokens,
        computed_tokens=rows.computed_tokens,
        counted=len(examples) if was_counted else 0,
        steps=plan.total_steps - plan.start.step,
        longest=rows.longest.tokens,
        checkpointing=rows.checkpointing,
        memory=here,
        least=least,
        free=free,
        seconds=seconds,
        seconds_from=by,
        change=(),
        epoch_bytes=None if size is None else space.epoch_bytes(plan, size),
        download=None if base else Download(plan.recipe.model.base, space.download_bytes(plan.recipe.model)),
    )
    return drafted if drafted.fits in (True, None) else replace(drafted, change=what_fits(plan, kind, free, rows))


def this_device(plan: Plan) -> tuple[DeviceKind, int, bool]:
    """Where training will compute, the bytes that are free there, and whether it can share prefixes there."""
    settings = plan.recipe.train
    shares = settings.shared_prefix and plan.recipe.lora.dropout == 0
    found = machine.free_memory()
    if found.gpu_gib is None or not machine.torch_cuda():
        return "cpu", int(found.ram_gib * GIB), shares
    return "cuda", int(found.gpu_gib * GIB), shares


def base_folder(model: ModelRecipe) -> Path | None:
    """The base's folder where it is on this disk, else None."""
    try:
        return hub.find_offline(model)
    except FasttuneError:
        return None  # `fasttune run` says what is wrong with it


# Tokens --------------------------------------------------------------------------------------------------------------


def examples_of(plan: Plan, base: Path | None) -> tuple[list[Example], float, bool]:
    """The training samples as examples, of many every n-th; the share of them that these are; and whether the tokens
    were counted by the base's tokenizer."""
    samples = plan.dataset.trained
    every = -(-len(samples) // MOST_SAMPLES)
    chosen = samples[::every]
    share = len(chosen) / len(samples)
    if base is not None:
        counted = plain_examples(base, chosen, plan.recipe.data)
        if counted is not None:
            return counted, share, True
    return [estimated_example(sample) for sample in chosen], share, False


def estimated_example(sample: Sample) -> Example:
    """An example of about as many tokens as a sample has, estimated from its characters. Samples whose first messages
    are the same begin with the same tokens, so that prefixes are shared as they will be."""
    tokens: list[int] = []
    spans: list[tuple[int, int]] = []
    said: tuple[str, ...] = ()
    for message in sample.messages:
        said = (*said, message.role, message.content)
        count, begin = TURN_TOKENS + round(estimate_tokens(message.content)), len(tokens)
        first = zlib.crc32(repr(said).encode())
        tokens += [(first + at) % 2**32 for at in range(count)]
        if message.role == "assistant":
            spans.append((begin + TURN_TOKENS - 2, len(tokens)))
    return Example(sample.id, tuple(tokens), tuple(spans) or ((1, max(2, len(tokens))),))


# Rows ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """How the steps of an epoch are laid out: tokens of all its samples, computed ones, the row that takes most memory
    and the longest sample."""

    tokens: int
    computed_tokens: int
    held_out_tokens: int
    longest: LongestRow
    longest_sample: LongestRow
    checkpointing: bool

    @classmethod
    def of(
        cls, plan: Plan, examples: Sequence[Example], share: float, size: ModelSize | None, kind: DeviceKind,
        free: int, shares: bool,
    ) -> Rows:  # fmt: skip
        """Lay out the first epoch's steps, of many the first MOST_STEPS, under the budget that training will have."""
        settings = plan.recipe.train
        trained = min(MOST_STEPS, plan.total_steps - plan.start.step)
        orders = batches.epoch_batches(len(examples), settings.samples_per_step, settings.seed, 0)[:trained]

        def steps(budget: int) -> Iterator[Step]:
            return (packing.plan_step(examples, order, budget, shared_prefix=shares) for order in orders)

        budget, checkpointing = row_budget(plan, size, kind, free, next(steps(2**16)).rows)
        laid_out = list(steps(budget))
        own = sum(step.tokens for step in laid_out)
        all_tokens = sum(len(example.tokens) for example in examples) / share
        row = max((row for step in laid_out for row in step.rows), key=lambda one: one.tokens)
        longest = max(examples, key=lambda example: len(example.tokens))
        return cls(
            tokens=round(all_tokens),
            computed_tokens=round(all_tokens * sum(step.computed_tokens for step in laid_out) / own),
            held_out_tokens=round(all_tokens * len(plan.dataset.held_out) / max(1, len(plan.dataset.trained))),
            longest=LongestRow(row.tokens, supervised_in(row, examples)),
            longest_sample=LongestRow(len(longest.tokens), batches.supervised_tokens(longest)),
            checkpointing=checkpointing,
        )

    def memory(self, plan: Plan, size: ModelSize, kind: DeviceKind, *, least: bool = False) -> Memory:
        """The memory at the peak; `least`: with rows of one sample and gradient checkpointing, the least there is."""
        recipe = plan.recipe
        allowed = recipe.train.gradient_checkpointing is not False
        row, checkpointing = (self.longest_sample, allowed) if least else (self.longest, self.checkpointing)
        return memory.needed(size, recipe.model, recipe.lora, recipe.train, kind, row, checkpointing=checkpointing)


def supervised_in(row: Row, examples: Sequence[Example]) -> int:
    """The supervised tokens of a row."""
    return sum(batches.supervised_tokens(examples[i]) for group in row.groups for i in group.members)


def row_budget(
    plan: Plan, size: ModelSize | None, kind: DeviceKind, free: int, first: Sequence[Row]
) -> tuple[int, bool]:
    """Tokens of a row from step 2 on, and whether gradient checkpointing is used, as training will choose them:
    `first` are the rows of the first step, uncut."""
    settings = plan.recipe.train
    asked, checkpointing = settings.tokens_per_row, settings.gradient_checkpointing
    if size is None:
        return (2**16 if asked == "auto" else int(asked)), checkpointing is True
    shape = memory.activation_shape(kind, size.hidden, size.intermediate, size.layers)
    one = LongestRow(1, 1)
    recipe = plan.recipe
    fixed = memory.needed(size, recipe.model, recipe.lora, settings, kind, one, checkpointing=False).fixed
    left = max(0, free - fixed)
    budget = estimated_budget(left, shape, checkpointing) if asked == "auto" else int(asked)
    tokens = min(longest_row(first), budget) if budget else longest_row(first)
    if checkpointing == "auto":
        checkpointing = needs_gradient_checkpointing(left, shape, [Row((), tokens)])
    if asked == "auto" and tokens >= 1024:
        token = shape.checkpointed_token_bytes() if checkpointing else shape.token_bytes()
        budget = measured_budget(left, tokens, tokens * token)
    return budget, checkpointing


# Time ----------------------------------------------------------------------------------------------------------------


def time_for(plan: Plan, root: Path, kind: DeviceKind, rows: Rows) -> tuple[float | None, str]:
    """Seconds of loading and training, and the run whose speed that is; (None, "") where no run tells."""
    steps = plan.total_steps - plan.start.step
    computed = rows.computed_tokens * steps / plan.steps_per_epoch
    # A held-out token needs a forward pass alone, a third of the arithmetic.
    evaluations = steps // (plan.recipe.train.eval_steps or plan.steps_per_epoch)
    computed += rows.held_out_tokens * evaluations / 3
    for run in similar_runs(plan, root, kind)[:RUNS_ASKED]:
        rate = seconds_a_token(run)
        if rate is not None:
            starts = documents.read_provenance(run).starts
            return sum(starts[0].seconds.values() if starts else ()) + computed * rate, run.id
    return None, ""


def similar_runs(plan: Plan, root: Path, kind: DeviceKind) -> list[Run]:
    """Runs below the folder that trained the same base in the same way on this kind of device, the newest first."""
    found = []
    for run in (run for series in store.list_series(root) for run in store.list_runs(root, series)):
        try:
            provenance, values = documents.read_provenance(run), documents.read_plan(run).values
        except FasttuneError:
            continue  # a damaged run tells nothing
        model = plan.recipe.model
        same = {"model.load_in_4bit": model.load_in_4bit, "model.dtype": model.dtype}
        is_same = all(values.get(key) == value for key, value in same.items()) and provenance.base.name == model.base
        if is_same and provenance.device.get("kind") == kind:
            found.append((provenance.created, run))
    return [run for _created, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def seconds_a_token(run: Run) -> float | None:
    """Seconds of a computed token in a run's steps after its first, which also fills caches and compiles; None where it
    logged too little."""
    try:
        lines = [line for line in read_history(run) if "step_seconds" in line and line.get("computed_tokens")]
    except FasttuneError:
        return None
    tokens = seconds = 0.0
    for before, line in pairwise(lines):
        tokens += line["computed_tokens"]
        seconds += line["step_seconds"] * max(1, line["step"] - before["step"])
    return seconds / tokens if tokens else None


# What would fit ------------------------------------------------------------------------------------------------------


def what_fits(plan: Plan, kind: DeviceKind, free: int, rows: Rows) -> tuple[str, ...]:
    """The --set values under which the least memory is free: 4-bit weights on a GPU, then the next smaller public
    base, in 16 bits before in 4; none where none is known."""
    model = plan.recipe.model
    names = [model.base]
    while smaller := smaller_base(names[-1]):
        names.append(smaller)
    widths = (False, True) if kind == "cuda" and not model.load_in_4bit else (model.load_in_4bit,)
    for recipe in (replace(model, base=name, load_in_4bit=packed) for name in names for packed in widths):
        size = memory.public_size(recipe.base) or space.read_size(recipe, base_folder(recipe))
        if recipe == model or size is None:
            continue
        changed = replace(plan, recipe=replace(plan.recipe, model=recipe))
        if rows.memory(changed, size, kind, least=True).total <= free:
            smaller_name = (f"model.base={recipe.base}",) * (recipe.base != model.base)
            return (*smaller_name, *("model.load_in_4bit=true",) * (recipe.load_in_4bit and not model.load_in_4bit))
    return ()


def smaller_base(name: str) -> str:
    """The public Qwen2.5 base of the next smaller size; "" where there is none."""
    found = re.search(r"(?<=-)(7b|3b|1\.5b)(?![a-z0-9])", name, re.IGNORECASE)
    if hub.looks_like_path(name) or memory.public_size(name) is None or found is None:
        return ""
    return name[: found.start()] + SMALLER[found[1].lower()] + name[found.end() :]
