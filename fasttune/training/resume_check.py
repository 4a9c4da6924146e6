"""The resume check: the check batch is scored before the first new step and compared with what was recorded.

With every checkpoint and adapter there is proof.json: the loss and the tokens of the check batch (the first samples of
the training data), the step, the optimizer's own step count, the learning rate, the random state and the package
versions. A run that starts from it scores the same batch again. Where both losses are equal within rounding they are
shown: "check batch loss 0.5123 (saved: 0.5123)". Otherwise nothing is trained: weights, chat template, data or
arithmetic have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fasttune import machine
from fasttune.console import FasttuneError, Finding, _, error, say, show_findings
from fasttune.data.tokenize import Example
from fasttune.planning.strategy import Plan
from fasttune.runs import documents, epochs
from fasttune.runs.documents import CheckBatch, Continuation
from fasttune.runs.store import Run
from fasttune.training import device, divergence, packing
from fasttune.training.packing import Step

SAMPLES = 4
# Relative difference of the loss that rounding can make: in float32 on a CPU, else in 16 bit, where another processor
# or GPU adds in another order.
FLOAT32_TOLERANCE, SHORT_TOLERANCE = 1e-4, 2e-2


class Scorer(Protocol):
    """What the check needs of a trainer (trainer.StepTrainer)."""

    state: Any
    plan: Plan
    run: Run
    optimizer: Any
    examples: Sequence[Example]
    check_batch_scored: tuple[str, float] | None

    def score(self, examples: Sequence[Example], plan: Callable[[int], Step]) -> tuple[float, float]: ...


def record(trainer: Scorer, folder: Path) -> None:
    """Write proof.json into a checkpoint or adapter folder that is being filled and has its weights.

    Raises FasttuneError where the loss is not finite: then a weight is not.
    """
    loss = loss_of_weights(trainer, epochs.weights_digest(folder))
    divergence.require_finite({"loss": loss}, trainer.plan, trainer.run, trainer.state.global_step)
    check_batch = CheckBatch(
        step=trainer.state.global_step,
        optimizer_step=optimizer_step(trainer.optimizer),
        learning_rate=last_learning_rate(trainer),
        loss=loss,
        samples=tuple(example.sample_id for example in trainer.examples[:SAMPLES]),
        tokens=tokens_digest(trainer),
        random_state=device.random_state_digest(),
        device=device.device_type(),
        dtype=number_type(trainer),
        packages=machine.package_versions(),
    )
    documents.write(folder / documents.CHECK_BATCH, check_batch)


def read(folder: Path) -> CheckBatch:
    """The check batch of a checkpoint or an adapter. Raises FasttuneError where its proof.json can't be read."""
    return documents.read(folder / documents.CHECK_BATCH, CheckBatch)


def check_checkpoint(trainer: Scorer, checkpoint: Path, learning_rate: float) -> Continuation:
    """Compare the loaded state with a checkpoint's check batch, show both losses and return them.

    `learning_rate` is that of the first new step. Raises FasttuneError where anything differs by more than rounding.
    """
    saved = read(checkpoint)
    show_findings(changed_versions(saved, checkpoint))
    if saved.tokens != tokens_digest(trainer):
        raise mismatch(checkpoint, _("the check batch has other tokens than when the checkpoint was saved"))
    loss = require_same_loss(trainer, saved, checkpoint)
    for name, then, now in (
        (_("step"), saved.step, trainer.state.global_step),
        (_("optimizer step"), saved.optimizer_step, optimizer_step(trainer.optimizer)),
    ):
        if then != now:
            raise mismatch(checkpoint, _("its {name} was {then}, now it is {now}", name=name, then=then, now=now))
    if saved.device == device.device_type() and saved.random_state != device.random_state_digest():
        raise mismatch(checkpoint, _("the state of the random generators is not the saved one"))
    say(
        _(
            "resuming at step {step}: check batch loss {loss:.4f} (saved: {saved:.4f}); "
            "learning rate {old:.3g} -> {new:.3g}",
            step=saved.step,
            loss=loss,
            saved=saved.loss,
            old=saved.learning_rate,
            new=learning_rate,
        )
    )
    return Continuation(str(checkpoint), saved.loss, loss, saved.step, saved.learning_rate, learning_rate)


def check_adapter(trainer: Scorer, adapter: Path) -> Continuation:
    """The same for a start from an adapter alone, whose optimizer and steps begin anew.

    Raises FasttuneError where the data is the same and the loss differs by more than rounding.
    """
    saved = read(adapter)
    show_findings(changed_versions(saved, adapter))
    if saved.tokens != tokens_digest(trainer):
        text = _("starting from the weights of {adapter}; its data was different, so the losses can't be compared",
                 adapter=adapter)  # fmt: skip
        say(text)
        return Continuation(str(adapter), None, None)
    loss = require_same_loss(trainer, saved, adapter)
    say(
        _(
            "starting from the weights of {adapter}: check batch loss {loss:.4f} (saved: {saved:.4f})",
            adapter=adapter,
            loss=loss,
            saved=saved.loss,
        )
    )
    return Continuation(str(adapter), saved.loss, loss)


def require_same_loss(trainer: Scorer, saved: CheckBatch, where: Path) -> float:
    """The check batch's loss now; raises FasttuneError where it is not the saved one."""
    loss = check_batch_loss(trainer)
    now = tolerance(device.device_type(), number_type(trainer))
    allowed = max(now, tolerance(saved.device, saved.dtype))
    if not abs(loss - saved.loss) <= allowed * max(saved.loss, 0.1):
        raise mismatch(where, _("check batch loss {now:.4f} (saved: {saved:.4f})", now=loss, saved=saved.loss))
    return loss


def tolerance(device_type: str, dtype: str) -> float:
    """The relative difference of two losses that is rounding, where one of them was computed on such a device in such a
    type; "" is that of a file from before the type was recorded: float32 on a CPU."""
    return FLOAT32_TOLERANCE if device_type == "cpu" and dtype in ("", "float32") else SHORT_TOLERANCE


def number_type(trainer: Scorer) -> str:
    """The type that the model computes in, as torch names it."""
    return str(device.compute_dtype(trainer.plan.recipe.model)).removeprefix("torch.")


def mismatch(where: Path, what: str) -> FasttuneError:
    """A start whose state is not what was recorded."""
    return error(
        "continuation-not-proven",
        what,
        where=str(where),
        why=_("weights, base, chat template, data or packages have changed; nothing was trained"),
        fix=_("undo what changed since, or start a new run from the base"),
    )


def loss_of_weights(trainer: Scorer, digest: str) -> float:
    """The check batch's loss by the weights of this digest, which the model has now; computed once for the checkpoint,
    the kept epoch and the adapter of the same step."""
    if trainer.check_batch_scored is None or trainer.check_batch_scored[0] != digest:
        trainer.check_batch_scored = digest, check_batch_loss(trainer)
    return trainer.check_batch_scored[1]


def check_batch_loss(trainer: Scorer) -> float:
    """Mean loss of the first training samples, one a row, without gradient."""
    examples = trainer.examples[:SAMPLES]
    return trainer.score(examples, lambda _budget: packing.plan_step(examples, range(len(examples)), 0))[0]


def tokens_digest(trainer: Scorer) -> str:
    """sha256 over the tokens of the check batch and which are supervised: data, template and tokenizer in one."""
    batch = [(example.tokens, example.supervised) for example in trainer.examples[:SAMPLES]]
    return hashlib.sha256(json.dumps(batch).encode()).hexdigest()


def optimizer_step(optimizer: Any) -> int:
    """How many steps the optimizer has counted itself; 0 for one without state (sgd)."""
    for state in optimizer.state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def last_learning_rate(trainer: Scorer) -> float:
    """The learning rate of the last trained step."""
    logged = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    return float(logged[-1]) if logged else 0.0


def changed_versions(saved: CheckBatch, where: Path) -> list[Finding]:
    """A warning that names packages of another version than when the checkpoint was written."""
    now = machine.package_versions()
    changed = [f"{name} {old} -> {now.get(name)}" for name, old in saved.packages.items() if now.get(name) != old]
    if not changed:
        return []
    what = _("packages changed since it was saved: {changes}", changes=", ".join(changed))
    why = _("losses may differ slightly from an uninterrupted run")
    return [Finding("versions-changed", "warning", str(where), what, why)]
