"""The adapter after each epoch, with the held-out loss and the answers to the probe questions at that step.

Nothing of it reaches the training: the random state and the modes of the model are put back, so that a run that keeps
its epochs trains what one that keeps none does, bit for bit (E2). After a resume an epoch whose step is reached again
is written again, and its answers are taken from scores.json where the weights are the same.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune import files
from fasttune.console import Finding, _, say, show_findings
from fasttune.data.tokenize import prompt_tokens
from fasttune.runs import checkpoints, epochs
from fasttune.runs.outcomes import EpochScores
from fasttune.training import device, generation, resume_check
from fasttune.training import model as models

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
from transformers import TrainerCallback, TrainerState

if TYPE_CHECKING:
    import torch

    from fasttune.training.trainer import StepTrainer

LONG = 1.0  # seconds: what answering takes beyond that is said


class Stopped(Exception):
    """The person has stopped the training while the probe questions were answered."""


class EpochCallback(TrainerCallback):
    """Keeps the adapter after each epoch and where the run ends between two; on rank 0 alone."""

    def __init__(self, trainer: StepTrainer, tokenizer: Any) -> None:
        self.trainer, self.tokenizer, self.plan = trainer, tokenizer, trainer.plan

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_more: Any) -> None:
        self.keep_if_over(state, has_ended=self.trainer.has_ended)  # killed after the checkpoint and before the epoch

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_more: Any) -> None:
        self.keep_if_over(state, has_ended=self.trainer.complete)

    def keep_if_over(self, state: TrainerState, *, has_ended: bool) -> None:
        """Keep the epoch that is over at this step, where one is."""
        step = state.global_step
        if step <= self.plan.start.step or not (has_ended or step % self.plan.steps_per_epoch == 0):
            return
        random_state = device.random_state()
        folder = epochs.folder_of(self.trainer.run, epochs.epoch_of(step, self.plan.steps_per_epoch))
        write_adapter(self.trainer, folder)
        digest, loss = epochs.weights_digest(folder), held_out_loss(state)
        questions, longest = self.plan.recipe.probe.questions, self.plan.recipe.probe.max_new_tokens
        answers = self.known_answers(digest)
        if answers is None:
            epochs.keep_scores(self.trainer.run, EpochScores(step, digest, loss))
            answers = self.answer(step)
        asked = questions if answers else ()
        epochs.keep_scores(self.trainer.run, EpochScores(step, digest, loss, asked, answers, longest))
        device.set_random_state(random_state)
        self.trainer.step_began = time.monotonic()

    def known_answers(self, digest: str) -> tuple[str, ...] | None:
        """The answers that these weights have given to the questions before; None where they were not asked."""
        probe = self.plan.recipe.probe
        for one in epochs.epoch_scores(self.trainer.run):
            if (one.sha256, one.questions, one.max_new_tokens) == (digest, probe.questions, probe.max_new_tokens):
                return one.answers
        return None

    def answer(self, step: int) -> tuple[str, ...]:
        """The adapter's greedy answers to the probe questions; none where there are no questions, where the training
        is being stopped, and where there is no memory for them."""
        probe, trainer = self.plan.recipe.probe, self.trainer
        if not probe.questions or trainer.interrupted:
            return ()
        epoch = epochs.epoch_word(epochs.epoch_of(step, self.plan.steps_per_epoch))
        total = epochs.epoch_word(epochs.epoch_of(self.plan.total_steps, self.plan.steps_per_epoch))
        prompts = [prompt_tokens(question, self.plan.served_system, self.tokenizer) for question in probe.questions]
        began = time.monotonic()
        text = _("answering the probe questions, epoch {epoch} of {total}", epoch=epoch, total=total)
        trainer.progress.describe(text)
        try:
            with modes_kept(trainer.model):
                answers = generation.generate_batch(
                    trainer.model, self.tokenizer, prompts, probe.max_new_tokens, self.choose
                )
        except Stopped:
            return ()
        except (RuntimeError, MemoryError) as problem:
            if not device.is_out_of_memory(problem):
                raise
            show_not_answered(epoch)
            return ()
        if (seconds := time.monotonic() - began) > LONG:
            say(_("epoch {epoch}: the probe questions answered in {seconds:.1f} s", epoch=epoch, seconds=seconds))
        return tuple(answers)

    def choose(self, _prompt: int, logits: torch.Tensor) -> int:
        """The likeliest token. Raises Stopped where the person stops the training meanwhile."""
        if self.trainer.interrupted:
            raise Stopped
        return int(logits.argmax())


def write_adapter(trainer: StepTrainer, folder: Path) -> None:
    """Write the adapter as it is now, with the check batch and the manifest; the folder appears whole or not at all."""
    with files.whole_folder(folder) as partial:
        models.save_adapter(trainer.model, partial)
        resume_check.record(trainer, partial)
        checkpoints.write_manifest(partial, trainer.state.global_step, checkpoints.ADAPTER_FILES)


def held_out_loss(state: TrainerState) -> float | None:
    """The held-out loss that was logged at this step; None where there was none."""
    here = [line for line in state.log_history if line["step"] == state.global_step]
    losses = [line["eval_loss"] for line in here if "eval_loss" in line]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


@contextlib.contextmanager
def modes_kept(model: Any) -> Iterator[None]:
    """Put back after the block what generation switches in each module: training mode, and gradient checkpointing."""
    before = [(module, module.training, getattr(module, "gradient_checkpointing", None)) for module in model.modules()]
    try:
        yield
    finally:
        for module, training, checkpointing in before:
            module.training = training
            if checkpointing is not None:
                module.gradient_checkpointing = checkpointing


def show_not_answered(epoch: str) -> None:
    """The warning that there was no memory for the answers; the training continues."""
    device.release_memory()
    what = _("epoch {epoch}: out of memory while the probe questions were answered", epoch=epoch)
    why = _("the training continues, and this epoch has no answers")
    fix = _("what helps: {ways}", ways=_("fewer probe questions, or a smaller probe.max_new_tokens"))
    show_findings([Finding("epoch-not-answered", "warning", "probe.questions", what, why, fix)])
