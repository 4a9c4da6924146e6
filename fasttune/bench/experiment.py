"""Is it faster, and is it still the same training? Arms of an experiment on the same samples, timed in one run.

    round 1   plain  stock  fasttune  limit        each arm trains warmup + steps optimizer steps, alone,
    round 2   fasttune  stock  plain  limit        in a process of its own (arms.py); the order alternates
    ...

`measure` runs the rounds and returns one JSON document: for each arm its rates (median and spread over rounds), memory,
start-up, losses and gradient norm, and its share of the machine's matrix-multiply limit. An arm whose losses, gradient
norm or tokens are not the reference's is marked invalid: a faster wrong number is a bug.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fasttune
from fasttune import files, machine
from fasttune.bench.engines import Engine, Job, Measured, layer_shapes, read_recipe
from fasttune.console import _, usage_error
from fasttune.recipe.schema import Recipe
from fasttune.training import device, hub, provenance
from fasttune.training import model as models

REFERENCES = ("plain", "stock", "fasttune-no-packing")  # whose losses are right, the first of them that ran


@dataclass(frozen=True)
class Arm:
    """A way to train: an engine of arms.py, with recipe values and environment variables of its own, and without some
    of the functions of model.py that make fasttune fast."""

    name: str
    engine: Engine
    overrides: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    card_only: bool = False
    without: tuple[str, ...] = ()


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain"),
        Arm("stock", "stock"),
        Arm("stock-no-checkpointing", "stock", ("train.gradient_checkpointing=false",)),
        Arm("stock-padding-free", "stock-padding-free", card_only=True),
        Arm("fasttune", "fasttune"),
        Arm("fasttune-no-sharing", "fasttune", ("train.shared_prefix=false",)),
        Arm("fasttune-no-packing", "fasttune", ("train.tokens_per_row=0",)),
        Arm("fasttune-neither", "fasttune", ("train.shared_prefix=false", "train.tokens_per_row=0")),
        Arm("fasttune-checkpointing", "fasttune", ("train.gradient_checkpointing=true",)),
        Arm("fasttune-stock-layers", "fasttune", without=("use_cpu_layers",)),
    )
}


@dataclass(frozen=True)
class Tolerance:
    """How far an arm may be from the reference, relative: rounding, and nothing that a wrong step would stay below."""

    first_loss: float
    grad_norm: float
    later_losses: float


# Later losses come after optimizer steps: Adam divides by the gradient's size, so a last bit of a tiny gradient counts
# as much as a large one's. 16-bit products round at 2^-8, each engine in an order of its own.
TOLERANCES = {
    "float32": Tolerance(first_loss=1e-4, grad_norm=1e-3, later_losses=2e-3),
    "bfloat16": Tolerance(first_loss=5e-3, grad_norm=3e-2, later_losses=1e-2),
    "float16": Tolerance(first_loss=5e-3, grad_norm=3e-2, later_losses=1e-2),
}


@dataclass(frozen=True)
class Experiment:
    """What to compare: arms on a recipe's data and base, each for `warmup` + `steps` steps, `repeats` times.

    `warmup_samples` shortens the first step, `micro_batch` is what trl's trainers take at a time (both 0: whole steps).
    With `resume`, what a process of the same job has left in the folder is taken instead of measuring again.
    """

    recipe: Path
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    steps: int = 3
    warmup: int = 1
    repeats: int = 2
    warmup_samples: int = 0
    micro_batch: int = 0
    resume: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an arm: what it measured in each round and on which commits, or why it has nothing to show."""

    arm: Arm
    rounds: tuple[Measured, ...] = ()
    commits: tuple[str, ...] = ()
    skipped: str = ""
    failed: str = ""


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Arms from "stock,fasttune,fasttune+train.optim=sgd+FASTTUNE_X=1"."""
    return tuple(parse_arm(name.strip()) for name in text.split(",") if name.strip())


def parse_arm(name: str) -> Arm:
    """A known arm, with each +KEY=VALUE added: a recipe value, or where KEY is in capitals an environment variable."""
    base, *changes = name.split("+")
    if base not in ARMS or not all("=" in change for change in changes):
        raise usage_error(
            "unknown-arm",
            _("there is no arm {name}", name=name),
            where="--arms",
            fix=_(
                "the arms are {names}; NAME+KEY=VALUE changes a recipe value, or an environment variable in capitals",
                names=", ".join(ARMS),
            ),
        )
    known = ARMS[base]
    variables = tuple((key, value) for key, _sign, value in (c.partition("=") for c in changes) if key.isupper())
    values = tuple(change for change in changes if not change.partition("=")[0].isupper())
    return Arm(
        name, known.engine, known.overrides + values, known.environment + variables, known.card_only, known.without
    )


def kept(wish: Experiment, out: Path | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """`measure` with its document and logs in a folder, or in one that is gone afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as folder:
            return measure(wish, Path(folder), tell)
    result = measure(wish, out / "logs", tell)
    files.write_json(out / "result.json", result)
    return result


def measure(wish: Experiment, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run all rounds in `folder`, which keeps each process's result and log; returns the document.

    Raises FasttuneError for mistakes in the recipe or its data; an arm that fails is part of the document.
    """
    wanted, dataset = read_recipe(job(wish, Arm("limit", "limit"), ""))
    base, found, order = hub.locate(wanted.model), dict[str, Outcome](), list[list[str]]()
    limit: dict[str, float] = {}
    for arm in wish.arms:
        found[arm.name] = Outcome(arm, skipped=obstacle(arm))
    for number in range(wish.repeats):
        running = [arm for arm in wish.arms if not (found[arm.name].skipped or found[arm.name].failed)]
        turn = alternating(running, number)
        order.append([arm.name for arm in turn])
        for arm in turn:
            found[arm.name] = run_arm(wish, found[arm.name], base, folder / f"round{number + 1}-{arm.name}", tell)
        if any(found[arm.name].rounds for arm in turn):
            limit = best(limit, run_limit(wish, base, folder / f"round{number + 1}-limit", tell))
    return document(wish, wanted, base, list(found.values()), limit, order) | {
        "samples": len(dataset.train),
        "data_fingerprint": dataset.fingerprint,
    }


def alternating(arms: Sequence[Arm], number: int) -> list[Arm]:
    """The order of a round, counted from 0: every other one is reversed, so that no arm always has a warm machine."""
    return list(arms[::-1] if number % 2 else arms)


def obstacle(arm: Arm) -> str:
    """Why an arm can't run here; "" where it can."""
    if arm.card_only and device.device_type() == "cpu":
        return _("needs a CUDA card")
    missing = [name for name in arm.without if not hasattr(models, name)]
    return _("this version has no {what} to go without", what=", ".join(missing)) if missing else ""


# Processes ----------------------------------------------------------------------------------------------------------


def job(wish: Experiment, arm: Arm, base: str) -> Job:
    """What one process is asked to do, as of now."""
    return Job(
        engine=arm.engine,
        recipe=str(wish.recipe),
        overrides=(*wish.overrides, *arm.overrides),
        base=base,
        steps=wish.warmup + wish.steps,
        started=time.monotonic(),
        warmup_samples=wish.warmup_samples if wish.warmup else 0,
        micro_batch=wish.micro_batch,
        without=arm.without,
    )


def run_arm(wish: Experiment, before: Outcome, base: Path, place: Path, tell: Callable[[str], None]) -> Outcome:
    """One more round of an arm: its outcome with what it measured, or with the end of its log where it failed."""
    arm = before.arm
    result = run_process(wish, arm, base, place)
    if isinstance(result, str):
        tell(_("{arm} failed: {reason}", arm=arm.name, reason=result))
        return Outcome(arm, before.rounds, before.commits, failed=result)
    measured = Measured(**result["measured"])
    rate, unit = wish.steps / sum(measured.step_seconds[wish.warmup :]), _("steps/s")
    first_loss = _("first loss")
    tell(f"{place.name}: {rate:.3f} {unit}, {first_loss} {measured.losses[0]:.6f}")
    return Outcome(arm, (*before.rounds, measured), (*before.commits, result["commit"]))


def run_limit(wish: Experiment, base: Path, place: Path, tell: Callable[[str], None]) -> dict[str, float]:
    """The machine's matrix-multiply rates now, in GFLOP/s; {} where they could not be measured."""
    result = run_process(wish, Arm("limit", "limit"), base, place)
    rates: dict[str, float] = {} if isinstance(result, str) else result["measured"]
    tell(f"{place.name}: " + (f"{max(rates.values()):.0f} GFLOP/s" if isinstance(result, dict) else result))
    return rates


def run_process(wish: Experiment, arm: Arm, base: Path, place: Path) -> dict[str, Any] | str:
    """What `python -m fasttune.arms` measured for an arm, when and on which commit; or the last line of its log."""
    place.parent.mkdir(parents=True, exist_ok=True)
    asked, answer, kept, log = (place.with_name(place.name + end) for end in (".job.json", ".part", ".json", ".log"))
    todo = job(wish, arm, str(base))
    if wish.resume and kept.is_file() and files.read_json(kept)["job"] == digest(todo, arm):
        return dict(files.read_json(kept))
    files.write_json(asked, asdict(todo))
    kept.unlink(missing_ok=True)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **dict(arm.environment), "HF_HUB_OFFLINE": "1"}
    with open(log, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "fasttune.arms", str(asked), str(answer)]
        code = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode
    asked.unlink()
    if code == 0 and answer.is_file():
        result = {
            "job": digest(todo, arm),
            "at": now(),
            "commit": provenance.commit() or "unknown",
            "measured": files.read_json(answer),
        }
        files.write_json(kept, result)
        answer.unlink()
        return result
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else _("the process ended with code {code}", code=code)


def digest(todo: Job, arm: Arm) -> str:
    """What a job asks for, whenever it is started; its paths, which are this machine's, can't be read from it."""
    asked = {**asdict(todo), "started": 0, "environment": arm.environment}
    asked["text"] = Path(todo.recipe).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def best(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """The higher of two rates for each way."""
    return {way: max(one.get(way, 0.0), other.get(way, 0.0)) for way in {**one, **other}}


# Judging ------------------------------------------------------------------------------------------------------------


def flaws(measured: Measured, reference: Measured, allowed: Tolerance) -> list[str]:
    """What of an arm is not the reference's training; [] where all is."""
    found = []
    for name in ("samples", "tokens", "supervised_tokens"):
        if getattr(measured, name) != getattr(reference, name):
            found.append(_("other {what} in its steps", what=name))
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
        if not off <= getattr(allowed, name):  # a NaN is off
            limit = getattr(allowed, name)
            found.append(_("{what} off by {off:.1e}, allowed {limit:.0e}", what=name, off=off, limit=limit))
    return found


def distance(values: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest relative difference."""
    return max((abs(a - b) / abs(b) for a, b in zip(values, wanted, strict=True)), default=0.0)


def choose_reference(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The arm whose losses the others are held to: the plainest that ran, else the first."""
    ran = {outcome.arm.name: outcome for outcome in outcomes if outcome.rounds and not outcome.failed}
    return next((ran[name] for name in REFERENCES if name in ran), next(iter(ran.values()), None))


# The document -------------------------------------------------------------------------------------------------------


def document(
    wish: Experiment,
    wanted: Recipe,
    base: Path,
    outcomes: Sequence[Outcome],
    limit: dict[str, float],
    order: list[list[str]],
) -> dict[str, Any]:
    """All that was measured, with what it was measured on."""
    dtype = str(device.compute_dtype(wanted.model)).removeprefix("torch.")
    reference, allowed = choose_reference(outcomes), TOLERANCES[dtype]
    arms = [summary(wish, outcome, reference, allowed) for outcome in outcomes]
    for arm in arms:
        if limit and arm["status"] in ("ok", "invalid"):
            useful = useful_flops(base, wanted, **useful_work(arm))
            arm["gflops"] = useful / arm["seconds"] / 1e9
            arm["limit_share"] = arm["gflops"] / max(limit.values())
    compare(arms)
    return {
        "format": 1,
        "created": now(),
        "fasttune": fasttune.__version__,
        "commit": provenance.commit(),
        "packages": machine.package_versions(),
        "device": provenance.device_name(device.device_type()),
        "base": wanted.model.base,
        "load_in_4bit": wanted.model.load_in_4bit,
        "dtype": dtype,
        "batch_size": wanted.train.batch_size,
        "learning_rate": wanted.train.learning_rate,
        "optim": wanted.train.optim,
        "lora_r": wanted.lora.r,
        "warmup": wish.warmup,
        "steps": wish.steps,
        "repeats": wish.repeats,
        "warmup_samples": wish.warmup_samples,
        "micro_batch": wish.micro_batch,
        "order": order,
        "limit_gflops": limit,
        "reference": reference.arm.name if reference else None,
        "tolerance": asdict(allowed),
        "arms": arms,
    }


def summary(wish: Experiment, outcome: Outcome, reference: Outcome | None, allowed: Tolerance) -> dict[str, Any]:
    """One arm's entry; `status` is ok, invalid, failed or skipped, `why` says why it is not ok."""
    arm, rounds = outcome.arm, outcome.rounds
    entry = {"name": arm.name, "overrides": list(arm.overrides), "environment": dict(arm.environment)}
    if outcome.failed or outcome.skipped or reference is None:
        return entry | {
            "status": "skipped" if outcome.skipped else "failed",
            "why": outcome.skipped or outcome.failed,
        }
    wrong = [flaw for measured in rounds for flaw in flaws(measured, reference.rounds[0], allowed)]
    timed = slice(wish.warmup, None)
    seconds = [second for measured in rounds for second in measured.step_seconds[timed]]
    work = {name: sum(getattr(rounds[0], name)[timed]) for name in ("samples", "tokens", "supervised_tokens")}
    elapsed = [sum(measured.step_seconds[timed]) for measured in rounds]
    return entry | {
        "status": "invalid" if wrong else "ok",
        "why": "; ".join(dict.fromkeys(wrong)),
        "commits": sorted(set(outcome.commits)),
        "work": work,
        "computed_tokens": sum(rounds[0].computed_tokens[timed]),
        "attention_pairs": sum(rounds[0].attention_pairs[timed]),
        "seconds": statistics.median(elapsed),  # of a round's timed steps
        "rounds_seconds": elapsed,
        "step_seconds": spread(seconds),
        "steps_per_second": rate(wish.steps, elapsed),
        "samples_per_second": rate(work["samples"], elapsed),
        "tokens_per_second": rate(work["tokens"], elapsed),
        "supervised_tokens_per_second": rate(work["supervised_tokens"], elapsed),
        "start_up_seconds": spread([measured.start_up_seconds for measured in rounds]),
        "memory": {name: max(measured.memory[name] for measured in rounds) for name in rounds[0].memory},
        "losses": rounds[0].losses,
        "first_loss": rounds[0].losses[0],
        "last_loss": rounds[0].losses[-1],
        "grad_norm": rounds[0].grad_norms[0],
        "precision": rounds[0].precision,
        "unsloth": rounds[0].unsloth,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rate(work: int, rounds: Sequence[float]) -> dict[str, float]:
    """Work a second, of the median round and of the slowest and fastest: then rates compare as the rounds' times do."""
    return {"median": work / statistics.median(rounds), "min": work / max(rounds), "max": work / min(rounds)}


def compare(arms: Sequence[dict[str, Any]]) -> None:
    """Against the stock arm where it ran: how much faster in samples/s, and how many fewer tokens were computed (what
    a machine whose time goes by tokens would gain)."""
    stock = next((arm for arm in arms if arm["name"] == "stock" and arm["status"] == "ok"), None)
    for arm in arms:
        if stock and arm["status"] == "ok":
            arm["speedup"] = stock["seconds"] / arm["seconds"]
            arm["arithmetic_ratio"] = stock["computed_tokens"] / arm["computed_tokens"]


def useful_work(arm: dict[str, Any]) -> dict[str, int]:
    """What an arm could not do without: padding is no use, a token that is computed for several samples counts once."""
    return {
        "tokens": min(arm["work"]["tokens"], arm["computed_tokens"]),
        "supervised": arm["work"]["supervised_tokens"],
        "pairs": arm["attention_pairs"],
    }


def useful_flops(base: Path, wanted: Recipe, tokens: int, supervised: int, pairs: int) -> float:
    """FLOPs that training needs for so many tokens.

    A multiplication and an addition for each weight of the layers' matrices and token, forward, and again backward for
    the token's gradient (4); for each LoRA weight also for its own (6). The head, frozen, for supervised tokens only
    (4). Attention: 2 products forward and 4 backward for each pair of tokens, head and dimension (12).

    Not counted: recomputation, padding and a frozen weight's gradient, which nobody needs; norms, softmax, rotations.
    """
    config, shapes = json.loads((base / "config.json").read_text(encoding="utf-8")), layer_shapes(base)
    layers = config["num_hidden_layers"]
    frozen = layers * sum(inputs * outputs for inputs, outputs in shapes.values())
    lora = layers * wanted.lora.r * sum(sum(shapes[name]) for name in wanted.lora.target_modules)
    head, width = config["hidden_size"] * config["vocab_size"], layers * shapes["q_proj"][1]
    return 4.0 * (tokens * frozen + supervised * head) + 6.0 * tokens * lora + 12.0 * pairs * width
