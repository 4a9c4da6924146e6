"""Is it faster, and is it still the same training? Arms of an experiment on the same samples, timed one after another.

    round 1   plain  stock  fasttune  limit        each arm trains warmup + steps optimizer steps, alone on the machine,
    round 2   fasttune  stock  plain  limit        in a process of its own (worker.py); the order alternates
    ...

`measure` runs the rounds and returns one JSON document: for each arm its rates (median and spread over rounds), memory,
start-up, losses and gradient norm, and its share of the machine's matrix-multiply limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fasttune
from fasttune import files, machine
from fasttune.bench import comparison, flops, jobs
from fasttune.bench.arms import LIMIT, Arm
from fasttune.bench.comparison import TOLERANCES, Outcome
from fasttune.bench.jobs import Job, KeptResult, MatmulRates, Measured
from fasttune.bench.workload import read_recipe
from fasttune.console import _
from fasttune.recipe.schema import Recipe
from fasttune.training import device, hub, provenance
from fasttune.training import model as models

Say = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """What to compare: arms on a recipe's data and base, each for `warmup` + `steps` steps, `repeats` times.

    `warmup_samples` shortens the first step; `micro_batch` is what TRL's trainers take at a time (both 0: whole steps).
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


def run(experiment: Experiment, out: Path | None, say: Say) -> dict[str, Any]:
    """`measure`, with result.json and the logs kept in the folder `out`; None keeps nothing."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as folder:
            return measure(experiment, Path(folder), say)
    result = measure(experiment, out / "logs", say)
    files.write_json(out / "result.json", result)
    return result


def measure(experiment: Experiment, folder: Path, say: Say) -> dict[str, Any]:
    """Run all rounds in `folder`, which keeps each process's result and log; returns the document.

    Raises FasttuneError for mistakes in the recipe or its data; an arm that fails is part of the document.
    """
    recipe, dataset = read_recipe(job(experiment, LIMIT, ""))
    base = hub.locate(recipe.model)
    outcomes = {arm.name: Outcome(arm, skipped=why_skipped(arm)) for arm in experiment.arms}
    rates: MatmulRates = {}
    order: list[list[str]] = []
    for number in range(experiment.repeats):
        running = [arm for arm in experiment.arms if not (outcomes[arm.name].skipped or outcomes[arm.name].failed)]
        turn = alternating(running, number)
        order.append([arm.name for arm in turn])
        for arm in turn:
            stem = folder / f"round{number + 1}-{arm.name}"
            outcomes[arm.name] = run_arm(experiment, outcomes[arm.name], base, stem, say)
        if any(outcomes[arm.name].rounds for arm in turn):
            rates = higher(rates, run_limit(experiment, base, folder / f"round{number + 1}-limit", say))
    return result_document(experiment, recipe, base, list(outcomes.values()), rates) | {
        "order": order,
        "samples": len(dataset.trained),
        "data_fingerprint": dataset.fingerprint,
    }


def alternating(arms: Sequence[Arm], number: int) -> list[Arm]:
    """The order of round `number`, counted from 0: every other one is reversed, so that no arm always comes first."""
    return list(arms[::-1] if number % 2 else arms)


def why_skipped(arm: Arm) -> str:
    """Why an arm can't run on this machine or with this version, as a message; "" where it can."""
    if arm.gpu_only and device.device_type() == "cpu":
        return _("needs a CUDA GPU")
    missing = [name for name in arm.without if not hasattr(models, name)]
    return _("this version has no {what} to leave out", what=", ".join(missing)) if missing else ""


# Processes ----------------------------------------------------------------------------------------------------------


def job(experiment: Experiment, arm: Arm, base: str) -> Job:
    """What one process is to do, to be started now."""
    return Job(
        engine=arm.engine,
        recipe=str(experiment.recipe),
        overrides=(*experiment.overrides, *arm.overrides),
        base=base,
        steps=experiment.warmup + experiment.steps,
        started=time.monotonic(),
        warmup_samples=experiment.warmup_samples if experiment.warmup else 0,
        micro_batch=experiment.micro_batch,
        without=arm.without,
    )


def run_arm(experiment: Experiment, before: Outcome, base: Path, stem: Path, say: Say) -> Outcome:
    """One more round of an arm: its outcome with what it measured, or with the last line of its log where it failed."""
    arm = before.arm
    result = run_process(experiment, arm, base, stem)
    if isinstance(result, str):
        say(_("{arm} failed: {reason}", arm=arm.name, reason=result))
        return replace(before, failed=result)
    assert isinstance(result.measured, Measured)
    speed = experiment.steps / sum(result.measured.step_seconds[experiment.warmup :])
    loss = result.measured.losses[0]
    say(_("{name}: {speed:.3f} steps/s, first loss {loss:.6f}", name=stem.name, speed=speed, loss=loss))
    return replace(before, rounds=(*before.rounds, result.measured), commits=(*before.commits, result.commit))


def run_limit(experiment: Experiment, base: Path, stem: Path, say: Say) -> MatmulRates:
    """The machine's matrix-multiply rates now, in GFLOP/s; {} where they could not be measured."""
    result = run_process(experiment, LIMIT, base, stem)
    if isinstance(result, str):
        say(f"{stem.name}: {result}")
        return {}
    assert not isinstance(result.measured, Measured)
    say(f"{stem.name}: {max(result.measured.values()):.0f} GFLOP/s")
    return result.measured


def run_process(experiment: Experiment, arm: Arm, base: Path, stem: Path) -> KeptResult | str:
    """What `python -m fasttune.bench.worker` measured for an arm, or the last line of its log where it failed.

    `stem` is the path of its files without their endings.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    job_file, answer_file, kept_file, log = (
        stem.with_name(stem.name + end) for end in (".job.json", ".part", ".json", ".log")
    )
    requested = job(experiment, arm, str(base))
    digest = jobs.job_digest(requested, arm.environment)
    if experiment.resume and (kept := jobs.read_kept(kept_file, arm.engine)) and kept.job == digest:
        return kept
    jobs.write_job(job_file, requested)
    kept_file.unlink(missing_ok=True)
    code = start_worker(job_file, answer_file, log, dict(arm.environment))
    job_file.unlink()
    if code or not answer_file.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else _("the process ended with code {code}", code=code)
    measured = jobs.read_answer(answer_file, arm.engine)
    result = KeptResult(digest, now(), provenance.commit() or "unknown", measured)
    jobs.write_kept(kept_file, result)
    answer_file.unlink()
    return result


def start_worker(job_file: Path, answer_file: Path, log: Path, variables: dict[str, str]) -> int:
    """Run a worker to its end with all that it prints in `log`; returns its exit code."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **variables, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fasttune.bench.worker", str(job_file), str(answer_file)]
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def higher(one: MatmulRates, other: MatmulRates) -> MatmulRates:
    """The higher of two rates for each product."""
    return {product: max(one.get(product, 0.0), other.get(product, 0.0)) for product in {**one, **other}}


# The document -------------------------------------------------------------------------------------------------------


def result_document(
    experiment: Experiment, recipe: Recipe, base: Path, outcomes: Sequence[Outcome], rates: MatmulRates
) -> dict[str, Any]:
    """All that was measured, with what it was measured on."""
    dtype = str(device.compute_dtype(recipe.model)).removeprefix("torch.")
    reference = comparison.choose_reference(outcomes)
    return {
        "format": 1,
        "created": now(),
        "fasttune": fasttune.__version__,
        "commit": provenance.commit(),
        "packages": machine.package_versions(),
        "device": provenance.device_name(device.device_type()),
        "base": recipe.model.base,
        "load_in_4bit": recipe.model.load_in_4bit,
        "dtype": dtype,
        "batch_size": recipe.train.batch_size,
        "learning_rate": recipe.train.peak_learning_rate,
        "optim": recipe.train.optim,
        "lora_r": recipe.lora.r,
        "warmup": experiment.warmup,
        "steps": experiment.steps,
        "repeats": experiment.repeats,
        "warmup_samples": experiment.warmup_samples,
        "micro_batch": experiment.micro_batch,
        "limit_gflops": rates,
        "reference": reference.arm.name if reference else None,
        "tolerance": asdict(TOLERANCES[dtype]),
        "arms": arm_entries(experiment, recipe, base, outcomes, rates),
    }


def arm_entries(
    experiment: Experiment, recipe: Recipe, base: Path, outcomes: Sequence[Outcome], rates: MatmulRates
) -> list[dict[str, Any]]:
    """Every arm's entry, with its share of the machine's limit and its speed against stock's."""
    allowed = TOLERANCES[str(device.compute_dtype(recipe.model)).removeprefix("torch.")]
    reference, timed = comparison.choose_reference(outcomes), slice(experiment.warmup, None)
    entries = [comparison.arm_entry(outcome, timed, reference, allowed) for outcome in outcomes]
    for entry, outcome in zip(entries, outcomes, strict=True):
        if rates and entry["status"] in ("ok", "invalid"):
            useful = flops.useful_flops(base, recipe.lora, flops.useful_work(outcome.rounds[0], timed))
            entry["gflops"] = useful / entry["seconds"] / 1e9
            entry["limit_share"] = entry["gflops"] / max(rates.values())
    comparison.add_speedups(entries)
    return entries
