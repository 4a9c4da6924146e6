"""The Trainer's callbacks: what is written to the history, when to evaluate, save and stop, how long start-up took."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fasttune import files
from fasttune.console import _
from fasttune.runs import documents
from fasttune.runs.documents import StartRecord
from fasttune.runs.history import last_epoch, trim_history
from fasttune.runs.store import Run
from fasttune.training import distributed, prefix_check
from fasttune.training import model as models
from fasttune.training.progress import PhaseTimer

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
from transformers import TrainerCallback, TrainerControl, TrainerState

if TYPE_CHECKING:
    from fasttune.training.trainer import StepTrainer
    from fasttune.training.watch import Watch

SAVE_EVERY = 600.0  # seconds: no more than these are lost where the machine stops


class RunCallback(TrainerCallback):
    """Writes the history and decides when to evaluate, save and stop. It decides from the Trainer's state alone, which
    a resume restores."""

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer, self.plan = trainer, trainer.plan
        self.saved = time.monotonic()  # when the newest checkpoint was written

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.trainer.progress.start(state.global_step)
        state.compute_steps(args, state.max_steps)  # a checkpoint's state holds its run's intervals, which may differ
        self.trainer.has_ended = state.global_step > self.plan.start.step and self.is_over(state)
        if self.trainer.is_rank_zero:
            trim_history(self.trainer.run, state.global_step)
        prefix_check.switch_off_what_differs(self.trainer)
        self.trainer.step_began = self.saved = time.monotonic()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.trainer.steps.epoch = state.global_step // self.plan.steps_per_epoch

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        if self.ends_kept_epoch(state):
            control.should_evaluate = True
        if self.is_result(state, control):
            control.should_log = True
        if distributed.any_rank(self.trainer.interrupted):
            self.trainer.interrupted = True
            control.should_save = control.should_training_stop = True
        if self.is_long_ago(self.saved):
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_more: Any) -> None:
        if not {"loss", "eval_loss"} & set(logs):
            return
        if self.trainer.is_rank_zero:
            files.append_line(self.trainer.run.history, {"step": state.global_step, **logs})
        self.trainer.progress.show(state.global_step, logs)
        if "loss" in logs and self.reached_target(state):
            control.should_evaluate = bool(self.plan.dataset.held_out)
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        losses = self.held_out_losses(state)
        if losses[-1] < min(losses[:-1], default=math.inf):
            state.best_metric, state.best_global_step = losses[-1], state.global_step
            control.should_save = True
        if self.out_of_patience(losses):
            control.should_save = control.should_training_stop = True

    def ends_kept_epoch(self, state: TrainerState) -> bool:
        """Whether an epoch that is kept ends with this step, so that its held-out loss is to be known. With early
        stopping, which counts evaluations, the recipe alone says when to evaluate."""
        settings = self.plan.recipe.train
        if not (self.plan.keeps_epochs and self.plan.dataset.held_out) or settings.early_stopping_patience:
            return False
        return state.global_step % self.plan.steps_per_epoch == 0 or state.global_step == state.max_steps

    def is_result(self, state: TrainerState, control: TrainerControl) -> bool:
        """Whether this step's figures are wanted however rarely lines are logged: at an evaluation, at the end, and
        where the last epoch begins, so that its means are those of its own steps."""
        ends = (state.max_steps, state.max_steps - self.plan.steps_per_epoch)
        return control.should_evaluate or state.global_step in ends

    def is_long_ago(self, saved: float) -> bool:
        """Whether SAVE_EVERY seconds have gone by since the last checkpoint, by the clock of any rank.

        Saving sets the random state of all ranks to that of rank 0. With dropout and several of them the run would
        depend on the clock; it is then saved at its own steps alone.
        """
        if distributed.world_size() > 1 and self.plan.recipe.lora.dropout:
            return False
        return distributed.any_rank(time.monotonic() - saved >= SAVE_EVERY)

    def is_over(self, state: TrainerState) -> bool:
        """Whether the run ended at this state, and only its adapter was not written before the process was killed."""
        done = state.global_step >= state.max_steps or self.out_of_patience(self.held_out_losses(state))
        return done or self.reached_target(state)

    def held_out_losses(self, state: TrainerState) -> list[float]:
        """The losses of this run's evaluations, in order, those of a parent left out."""
        new = [line for line in state.log_history if line["step"] > self.plan.start.step]
        return [line["eval_loss"] for line in new if "eval_loss" in line]

    def out_of_patience(self, losses: Sequence[float]) -> bool:
        """Whether the last `train.early_stopping_patience` evaluations brought no lower loss."""
        patience = self.plan.recipe.train.early_stopping_patience
        return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def reached_target(self, state: TrainerState) -> bool:
        """Whether the mean loss and accuracy over the last epoch are as good as `train.until` asks. Over an epoch, so
        that every sample counts and one easy step does not end a run."""
        until, per_epoch = self.plan.recipe.train.until, self.plan.steps_per_epoch
        means = last_epoch(state.log_history, per_epoch)
        if state.global_step < per_epoch or means is None or (until.loss is None and until.token_accuracy is None):
            return False
        return (until.loss is None or means.loss <= until.loss) and (
            until.token_accuracy is None or means.accuracy >= until.token_accuracy
        )


class WatchCallback(TrainerCallback):
    """Tells whoever watches a run of its start and of each evaluation, and stops it with a checkpoint where they say
    so."""

    def __init__(self, trainer: StepTrainer, watch: Watch) -> None:
        self.trainer, self.watch = trainer, watch

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.watch.began(self.trainer.run)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        plan = self.trainer.plan
        lines = [line for line in state.log_history if "eval_loss" in line and line["step"] > plan.start.step]
        evaluated = [(line["step"] / plan.steps_per_epoch, line["eval_loss"]) for line in lines]
        if state.global_step < state.max_steps and self.watch.is_hopeless(evaluated):
            self.trainer.interrupted = True
            control.should_save = control.should_training_stop = True


class FirstStepCallback(TrainerCallback):
    """Reports the seconds of the first step, kernel compilation included, and records them with those of the start-up
    phases in provenance.json."""

    def __init__(self, run: Run, phases: PhaseTimer, samples: int, rendered: int) -> None:
        self.run, self.phases, self.samples, self.rendered = run, phases, samples, rendered
        self.began = time.monotonic()
        self.over = False

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_more: Any) -> None:
        if self.over:
            return
        self.over = True
        next(p for p in model.parameters() if p.requires_grad).flatten()[0].item()  # waits for the GPU
        self.phases.record("first_step", _("first step"), time.monotonic() - self.began)
        start = StartRecord(state.global_step, self.phases.seconds, self.samples, self.rendered)
        documents.add_start(self.run, start)
