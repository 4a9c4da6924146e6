"""Proof of continuation: what a checkpoint knew is what goes on, shown before the first new step.

With every checkpoint and adapter lies proof.json: the loss and the tokens of a fixed batch (the first samples of the
training data), the step, the optimizer's own step count, the learning rate, the random state and the versions.
Whoever starts from it scores the same batch again. Equal within rounding, and the numbers are shown: "loss goes on from
0.512, not from 3.690". Else nothing is trained: weights, template, data or arithmetic are not what they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fasttune import model as models
from fasttune import packing, provenance, runs
from fasttune.console import Finding, _, error, say, show_findings
from fasttune.packing import Step
from fasttune.render import Example

NAME = "proof.json"
SAMPLES = 4
# Relative difference of the loss that rounding can make: float32 on a CPU, 16 bit on a card.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}


class Trained(Protocol):
    """What the proof asks of a trainer (trainer.StepTrainer)."""

    state: Any
    optimizer: Any
    examples: Sequence[Example]

    def random_state(self) -> str: ...

    def score(self, examples: Sequence[Example], plan: Callable[[int], Step]) -> tuple[float, float]: ...


def record(trainer: Trained, folder: Path) -> None:
    """Write proof.json into a checkpoint or adapter folder that is being filled."""
    runs.write_json(
        folder / NAME,
        {
            "step": trainer.state.global_step,
            "optimizer_step": optimizer_step(trainer.optimizer),
            "learning_rate": last_rate(trainer),
            "loss": fixed_loss(trainer),
            "samples": [example.sample_id for example in trainer.examples[:SAMPLES]],
            "tokens": tokens_digest(trainer),
            "random_state": trainer.random_state(),
            "device": models.device(),
            "packages": provenance.versions(),
        },
    )


def check(trainer: Trained, checkpoint: Path, rate: float) -> dict[str, Any]:
    """Compare the loaded state with a checkpoint's proof, show both and return them; FasttuneError where they differ.

    `rate` is the learning rate of the first new step.
    """
    before = runs.read_json(checkpoint / NAME)
    show_findings(changed_versions(before, checkpoint))
    if before["tokens"] != tokens_digest(trainer):
        raise mismatch(checkpoint, _("the fixed batch has other tokens than when it was saved"))
    loss = require_same_loss(trainer, before, checkpoint)
    for name, then, now in (
        (_("step"), before["step"], trainer.state.global_step),
        (_("optimizer step"), before["optimizer_step"], optimizer_step(trainer.optimizer)),
    ):
        if then != now:
            raise mismatch(checkpoint, _("its {name} was {then}, now it is {now}", name=name, then=then, now=now))
    if before["device"] == models.device() and before["random_state"] != trainer.random_state():
        raise mismatch(checkpoint, _("the random numbers are not where they were when it was saved"))
    say(
        _(
            "goes on from step {step}: the fixed batch scores {loss:.4f}, {then:.4f} when it was saved; "
            "learning rate {old:.3g} before, {new:.3g} now",
            step=before["step"],
            loss=loss,
            then=before["loss"],
            old=before["learning_rate"],
            new=rate,
        )
    )
    return {
        "from": str(checkpoint),
        "step": before["step"],
        "loss_when_saved": before["loss"],
        "loss": loss,
        "learning_rate_before": before["learning_rate"],
        "learning_rate": rate,
    }


def check_weights(trainer: Trained, adapter: Path) -> dict[str, Any]:
    """The same for a start from an adapter alone, whose optimizer and steps begin anew."""
    before = runs.read_json(adapter / NAME)
    show_findings(changed_versions(before, adapter))
    if before["tokens"] != tokens_digest(trainer):
        say(
            _(
                "goes on from the weights of {adapter}; its data was another, so losses can't be compared",
                adapter=adapter,
            )
        )
        return {"from": str(adapter), "loss_when_saved": None, "loss": None}
    loss = require_same_loss(trainer, before, adapter)
    say(
        _(
            "goes on from the weights of {adapter}: the fixed batch scores {loss:.4f}, {then:.4f} when it was saved",
            adapter=adapter,
            loss=loss,
            then=before["loss"],
        )
    )
    return {"from": str(adapter), "loss_when_saved": before["loss"], "loss": loss}


def require_same_loss(trainer: Trained, before: dict[str, Any], where: Path) -> float:
    """The fixed batch's loss now; raises FasttuneError where it is not what it was."""
    loss = fixed_loss(trainer)
    tolerance = max(TOLERANCE[models.device()], TOLERANCE[before["device"]])
    if not abs(loss - before["loss"]) <= tolerance * max(before["loss"], 0.1):
        raise mismatch(
            where,
            _("the fixed batch scored {then:.4f} when it was saved, now {now:.4f}", then=before["loss"], now=loss),
        )
    return loss


def mismatch(where: Path, what: str) -> Exception:
    """A start that is not the state it claims to be."""
    return error(
        "continuation-not-proven",
        what,
        where=str(where),
        why=_("weights, base, chat template, data or packages are not what they were; nothing was trained"),
        fix=_("undo what changed since, or start a new run from the base"),
    )


def fixed_loss(trainer: Trained) -> float:
    """Mean loss of the first training samples, one a row, without gradient."""
    examples = trainer.examples[:SAMPLES]
    return trainer.score(examples, lambda _budget: packing.plan_step(examples, range(len(examples)), 0))[0]


def tokens_digest(trainer: Trained) -> str:
    """sha256 over the tokens of the fixed batch and which of them are learned: data, template and tokenizer in one."""
    batch = [(example.tokens, example.learn) for example in trainer.examples[:SAMPLES]]
    return hashlib.sha256(json.dumps(batch).encode()).hexdigest()


def optimizer_step(optimizer: Any) -> int:
    """How many steps the optimizer has counted itself; 0 for one without state (sgd)."""
    for state in optimizer.state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def last_rate(trainer: Trained) -> float:
    """The learning rate of the last trained step."""
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    return float(rates[-1]) if rates else 0.0


def changed_versions(before: dict[str, Any], where: Path) -> list[Finding]:
    """A warning that names packages of another version than when the checkpoint was written."""
    now = provenance.versions()
    changed = [f"{name} {old} -> {now.get(name)}" for name, old in before["packages"].items() if now.get(name) != old]
    if not changed:
        return []
    what = _("packages changed since it was saved: {changes}", changes=", ".join(changed))
    return [
        Finding(
            "versions-changed", "warning", str(where), what, _("losses may differ slightly from an uninterrupted run")
        )
    ]
