"""Made trainings: curves by formula with seeded noise, one function an illness, as rows of a trainer's log history; and the
files in which Hugging Face, LLaMA-Factory and ms-swift keep such rows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
STEPS, PER_EPOCH, PEAK = 300, 100, 2e-4


def linear(step: int, steps: int = STEPS, peak: float = PEAK, warmup: int = 15) -> float:
    """The learning rate of a step: linear, with a warmup."""
    return peak * min(1.0, step / warmup) * max(0.0, 1 - step / steps)


def constant(step: int, peak: float = PEAK) -> float:
    """The learning rate of a step: always the same."""
    return peak


def rows(
    loss: Callable[[float], float],
    seed: int,
    *,
    held_out: Callable[[float], float] | None = None,
    steps: int = STEPS,
    rate: Callable[[int], float] = linear,
    grad: Callable[[int], float] = lambda step: 1.0,
    accuracy: Callable[[float], float] | None = None,
    evaluate: int = 50,
    noise: float = 0.03,
    first: int = 1,
) -> Rows:
    """A row a step, and an evaluation every `evaluate` steps; `loss`, `held_out` and `accuracy` are functions of the
    epoch."""
    chance, made = random.Random(seed), []
    for step in range(first, steps + 1):
        epoch = step / PER_EPOCH
        line: dict[str, Any] = {"step": step, "epoch": epoch, "loss": loss(epoch) * (1 + noise * chance.gauss(0, 1))}
        line |= {"learning_rate": rate(step), "grad_norm": grad(step) * math.exp(0.3 * chance.gauss(0, 1))}
        if accuracy:
            line["mean_token_accuracy"] = accuracy(epoch)
        made.append(line)
        if held_out and step % evaluate == 0:
            level = held_out(epoch) * (1 + 0.0005 * chance.gauss(0, 1))
            made.append({"step": step, "epoch": epoch, "eval_loss": level})
    return made


def decay(start: float, floor: float, epochs: float) -> Callable[[float], float]:
    """An exponential fall from `start` to `floor` with this time constant."""
    return lambda epoch: floor + (start - floor) * math.exp(-epoch / epochs)


# Healthy ------------------------------------------------------------------------------------------------------------


def good(seed: int) -> Rows:
    """Loss and held-out loss fall together and settle as the schedule ends."""
    return rows(decay(3.7, 0.9, 0.5), seed, held_out=decay(3.6, 1.0, 0.4))


def good_above_the_bands(seed: int) -> Rows:
    """The same at a level that the users' bands call not enough."""
    return rows(decay(5.0, 2.2, 0.5), seed, held_out=decay(4.9, 2.3, 0.35), noise=0.08)


def good_cosine(seed: int) -> Rows:
    """Another schedule, a rougher gradient, evaluated rarely."""
    return rows(
        decay(2.0, 0.6, 0.4), seed, held_out=decay(1.9, 0.7, 0.35), evaluate=100, noise=0.06,
        rate=lambda step: PEAK * 0.5 * (1 + math.cos(math.pi * step / STEPS)), grad=lambda step: 3 if step % 40 == 0 else 1,
    )  # fmt: skip


def good_with_cycles(seed: int) -> Rows:
    """A schedule that restarts by plan, three times to the same peak."""
    made = rows(
        decay(3.0, 1.0, 0.5), seed, held_out=decay(3.0, 1.1, 0.4), rate=lambda step: PEAK * (1 - (step - 1) % 100 / 100)
    )
    return made


HEALTHY = (good, good_above_the_bands, good_cosine, good_with_cycles)


# Ill ----------------------------------------------------------------------------------------------------------------


def over_fitting(seed: int) -> Rows:
    """The loss falls to very little, the held-out loss turns after epoch 1."""
    return rows(
        decay(3.0, 0.2, 0.7), seed, held_out=lambda epoch: 1.5 + 0.4 * (epoch - 1) ** 2 + (0.1 if epoch < 1 else 0)
    )


def memorised(seed: int) -> Rows:
    """Five epochs to a loss of 0.04, nothing held out."""
    return rows(decay(3.0, 0.03, 0.8), seed, steps=500, rate=constant)


def under_trained(seed: int) -> Rows:
    """Stopped while the held-out loss falls by 10 % an epoch."""
    return rows(lambda epoch: 3.5 - 0.35 * epoch, seed, held_out=lambda epoch: 3.6 - 0.35 * epoch)


def under_trained_by_bands(seed: int) -> Rows:
    """Nothing held out, and a loss of about 1."""
    return rows(decay(3.5, 0.9, 0.6), seed)


def diverged(seed: int) -> Rows:
    """Falls to 1, climbs to 8 and stays there."""
    return rows(lambda epoch: 3.5 - 2.0 * epoch if epoch < 1.2 else min(8.0, 1.1 + 9 * (epoch - 1.2)), seed)


def not_a_number(seed: int) -> Rows:
    """From step 120 on."""
    made = rows(decay(3.0, 1.0, 0.5), seed)
    return [line | ({"loss": math.nan, "grad_norm": math.nan} if line["step"] >= 120 else {}) for line in made]


def zero_gradient(seed: int) -> Rows:
    """Nothing supervised."""
    return [line | {"loss": 0.0, "grad_norm": 0.0} for line in rows(decay(1, 1, 1), seed)]


def spikes(seed: int) -> Rows:
    """Three gradients of forty times the usual norm, after which the loss is as before."""
    made = rows(decay(3.7, 0.9, 0.5), seed, held_out=decay(3.6, 1.0, 0.4))
    return [line | ({"grad_norm": 40.0} if line["step"] in (90, 170, 240) and "loss" in line else {}) for line in made]


def plateau(seed: int) -> Rows:
    """Falls for a third of the training, then stands still at 2.4 at a constant learning rate."""
    return rows(lambda epoch: max(2.4, 3.6 - 1.5 * epoch), seed, held_out=lambda epoch: max(2.5, 3.6 - 1.5 * epoch), rate=constant,
                noise=0.005, evaluate=25)  # fmt: skip


def too_low(seed: int) -> Rows:
    """At 1e-6 nothing moves."""
    return rows(lambda epoch: 3.69 - 0.03 * epoch, seed, rate=lambda step: linear(step, peak=1e-6), noise=0.01)


def too_high(seed: int) -> Rows:
    """At 2e-2 the loss rises from the start."""
    return rows(lambda epoch: 3.0 + 3.0 * epoch, seed, rate=lambda step: linear(step, peak=2e-2), noise=0.1)


def lengthened(seed: int) -> Rows:
    """Two epochs to a learning rate of 0, then one more on a longer schedule; the loss goes unharmed through the seam."""
    made = rows(decay(3.0, 0.4, 0.4), seed, rate=lambda step: linear(step, 200) if step <= 200 else linear(step, 300))
    return made


def continued(seed: int) -> Rows:
    """Broke off at step 180, taken up at step 151 by the same schedule."""
    begun = rows(decay(3.0, 0.3, 0.4), seed, steps=180, rate=lambda step: linear(step, STEPS))
    return begun + rows(decay(3.0, 0.3, 0.4), seed + 1, first=151)


def restarted(seed: int, *, step_counter_falls: bool = True) -> Rows:
    """The users' story: three times from 3.69 down to 0.5, accuracy 0.73."""
    made: Rows = []
    for attempt in range(3):
        part = rows(decay(3.6947, 0.5, 0.15), seed + attempt, steps=84, accuracy=lambda epoch: 0.73,
                    rate=lambda step: linear(step, 84, 5e-5, 4))  # fmt: skip
        shift = 0 if step_counter_falls else 84 * attempt
        made += [line | {"step": line["step"] + shift} for line in part]
    return made


# Files --------------------------------------------------------------------------------------------------------------


def write_state(folder: Path, history: Sequence[dict[str, Any]], **fields: Any) -> Path:
    """Hugging Face's trainer_state.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    last = history[-1]["step"]
    document = {"global_step": last, "max_steps": last, "num_train_epochs": 3, "log_history": list(history)} | fields
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_factory(folder: Path, history: Sequence[dict[str, Any]], total: int = STEPS) -> Path:
    """LLaMA-Factory's trainer_log.jsonl, with its nulls and its closing row."""
    return write_lines(folder / "trainer_log.jsonl", [factory_line(line, total) for line in history])


def factory_line(line: dict[str, Any], total: int = STEPS) -> dict[str, Any]:
    """A row as LLaMA-Factory writes it."""
    return {
        "current_steps": line["step"], "total_steps": total, "loss": line.get("loss"), "eval_loss": line.get("eval_loss"),
        "accuracy": None, "lr": line.get("learning_rate"), "epoch": line["epoch"],
    }  # fmt: skip


def write_swift(folder: Path, history: Sequence[dict[str, Any]], total: int = STEPS) -> Path:
    """ms-swift's logging.jsonl, with its closing rows."""
    lines = [{key: value for key, value in line.items() if key != "step"} | {"global_step/max_steps": f"{line['step']}/{total}"}
             for line in history]  # fmt: skip
    return write_lines(folder / "logging.jsonl", [*lines, {"train_loss": 0.3, "global_step/max_steps": f"{total}/{total}"},
                                                  {"best_metric": 0.1, "global_step": total}])  # fmt: skip


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """A JSONL file, NaN as Python writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
