"""Is it still the same training, and how fast: the arms of an experiment compared, as the document that is kept.

An arm whose losses, gradient norm, tokens or number type are not the reference's is `invalid`: a faster wrong number is
a bug. Fields of the document never change; docs/benchmarks.md says what they mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.bench.arms import Arm
from fasttune.bench.jobs import Measured
from fasttune.console import _

REFERENCES = ("plain", "stock", "fasttune-no-packing")  # arms whose losses are right; the first of them that ran counts


@dataclass(frozen=True)
class Tolerance:
    """How far an arm may be from the reference, relative: rounding passes, the result of a wrong step does not."""

    first_loss: float
    grad_norm: float
    later_losses: float


# Later losses come after optimizer steps: Adam divides by the gradient's size, so the last bit of a tiny gradient
# counts as much as that of a large one. 16-bit products round at 2^-8, each engine in an order of its own.
TOLERANCES = {
    "float32": Tolerance(first_loss=1e-4, grad_norm=1e-3, later_losses=2e-3),
    "bfloat16": Tolerance(first_loss=5e-3, grad_norm=3e-2, later_losses=1e-2),
    "float16": Tolerance(first_loss=5e-3, grad_norm=3e-2, later_losses=1e-2),
}


@dataclass(frozen=True)
class Outcome:
    """What became of an arm: what it measured in each round and on which commits, or why it was skipped or failed."""

    arm: Arm
    rounds: tuple[Measured, ...] = ()
    commits: tuple[str, ...] = ()
    skipped: str = ""
    failed: str = ""


def choose_reference(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The arm that the others are compared with: the first of REFERENCES that ran, else the first arm that ran."""
    ran = {outcome.arm.name: outcome for outcome in outcomes if outcome.rounds and not outcome.failed}
    return next((ran[name] for name in REFERENCES if name in ran), next(iter(ran.values()), None))


def differences(measured: Measured, reference: Measured, allowed: Tolerance) -> list[str]:
    """In what an arm is not the reference's training, as messages; [] where it is the same."""
    found = []
    for name in ("samples", "tokens", "supervised_tokens"):
        if getattr(measured, name) != getattr(reference, name):
            found.append(_("{what} a step differ from the reference", what=name))
    if measured.precision != reference.precision:
        found.append(
            _("computes in {this}, the reference in {that}", this=measured.precision, that=reference.precision)
        )
    if not all(math.isfinite(loss) for loss in measured.losses) or not all(norm > 0 for norm in measured.grad_norms):
        found.append(_("a loss is not finite or a gradient is zero"))
    distances = {
        "first_loss": distance(measured.losses[:1], reference.losses[:1]),
        "grad_norm": distance(measured.grad_norms[:1], reference.grad_norms[:1]),
        "later_losses": distance(measured.losses[1:], reference.losses[1:]),
    }
    for name, off in distances.items():
        limit = getattr(allowed, name)
        if not off <= limit:  # a NaN is not within it
            found.append(_("{what} off by {off:.1e}, allowed {limit:.0e}", what=name, off=off, limit=limit))
    return found


def distance(values: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference; 0 for no values."""
    return max((abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True)), default=0.0)


def arm_entry(outcome: Outcome, timed: slice, reference: Outcome | None, allowed: Tolerance) -> dict[str, Any]:
    """An arm's entry of the document; `timed` are the steps after warmup.

    `status` is ok, invalid, failed or skipped, and `why` says why it is not ok.
    """
    arm = outcome.arm
    entry = {"name": arm.name, "overrides": list(arm.overrides), "environment": dict(arm.environment)}
    if outcome.failed or outcome.skipped or reference is None:
        return entry | {
            "status": "skipped" if outcome.skipped else "failed",
            "why": outcome.skipped or outcome.failed,
        }
    found = [text for measured in outcome.rounds for text in differences(measured, reference.rounds[0], allowed)]
    return entry | {
        "status": "invalid" if found else "ok",
        "why": "; ".join(dict.fromkeys(found)),
        "commits": sorted(set(outcome.commits)),
        **work_fields(outcome.rounds[0], timed),
        **speed_fields(outcome.rounds, timed),
        **training_fields(outcome.rounds),
    }


def work_fields(measured: Measured, timed: slice) -> dict[str, Any]:
    """What the timed steps of a round hold and what was computed for them."""
    return {
        "work": {name: sum(getattr(measured, name)[timed]) for name in ("samples", "tokens", "supervised_tokens")},
        "computed_tokens": sum(measured.computed_tokens[timed]),
        "attention_pairs": sum(measured.attention_pairs[timed]),
    }


def speed_fields(rounds: Sequence[Measured], timed: slice) -> dict[str, Any]:
    """Seconds of the timed steps: the median round's and every round's, and what they come to in rates."""
    seconds = [sum(measured.step_seconds[timed]) for measured in rounds]
    first = rounds[0]
    return {
        "seconds": statistics.median(seconds),
        "rounds_seconds": seconds,
        "step_seconds": spread([step for measured in rounds for step in measured.step_seconds[timed]]),
        "steps_per_second": rate(len(first.step_seconds[timed]), seconds),
        "samples_per_second": rate(sum(first.samples[timed]), seconds),
        "tokens_per_second": rate(sum(first.tokens[timed]), seconds),
        "supervised_tokens_per_second": rate(sum(first.supervised_tokens[timed]), seconds),
        "start_up_seconds": spread([measured.start_up_seconds for measured in rounds]),
    }


def training_fields(rounds: Sequence[Measured]) -> dict[str, Any]:
    """The peak memory over rounds, and losses and gradient norm of the first."""
    first = rounds[0]
    return {
        "memory": {name: max(measured.memory[name] for measured in rounds) for name in first.memory},
        "losses": first.losses,
        "first_loss": first.losses[0],
        "last_loss": first.losses[-1],
        "grad_norm": first.grad_norms[0],
        "precision": first.precision,
        "unsloth": first.unsloth,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rate(work: int, seconds: Sequence[float]) -> dict[str, float]:
    """Work a second of the median round, the slowest and the fastest, so that rates compare as the rounds' times do."""
    return {"median": work / statistics.median(seconds), "min": work / max(seconds), "max": work / min(seconds)}


def add_speedups(entries: Sequence[dict[str, Any]]) -> None:
    """Compare valid arms with stock where it ran: how many times its samples a second, and how many fewer tokens were
    computed, which is what a machine gains whose time grows with the tokens alone."""
    stock = next((entry for entry in entries if entry["name"] == "stock" and entry["status"] == "ok"), None)
    for entry in entries:
        if stock and entry["status"] == "ok":
            entry["speedup"] = stock["seconds"] / entry["seconds"]
            entry["arithmetic_ratio"] = stock["computed_tokens"] / entry["computed_tokens"]
