"""The training loop: transformers' Trainer with whole optimizer steps as items.

An item of the data set is the samples of one step; `training_step` lays them out in rows (packing.py), computes all of
them and leaves the gradient of the step's mean loss. Where memory runs out in a row, the step is laid out again in
smaller ones (row_budget.py, oom.py). A checkpoint is complete or absent, and every start from one is checked
(resume_check.py).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fasttune.console import show_findings
from fasttune.data.tokenize import Example
from fasttune.planning.strategy import Plan
from fasttune.runs import checkpoints, documents
from fasttune.runs.documents import UnloggedMetrics
from fasttune.runs.store import Run
from fasttune.training import device, distributed, divergence, resume_check, row_budget
from fasttune.training import model as models
from fasttune.training.metrics import MetricsSinceLog
from fasttune.training.oom import RowOutOfMemory, raise_on_oom
from fasttune.training.packing import Row, Step
from fasttune.training.progress import ProgressLine
from fasttune.training.row_budget import RowBudget
from fasttune.training.schedule import warm_up_from_step_one
from fasttune.training.step_dataset import StepDataset, single_item
from fasttune.training.step_watch import StepWatch

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
import torch
from transformers import PrinterCallback, Trainer, TrainerControl, TrainingArguments

from fasttune.training import cuda_graphs, engine, loss_scale, row_memory
from fasttune.training.callbacks import RunCallback
from fasttune.training.checkpoint_state import require_trainer_state, unloadable_as_error

Loss = TypeVar("Loss")
Hits = TypeVar("Hits")


class StepTrainer(Trainer):
    """transformers' Trainer with whole steps as items, packed evaluation and checkpoints that are complete or
    absent."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        steps: StepDataset,
        held_out: Sequence[Example],
        plan: Plan,
        run: Run,
    ) -> None:
        super().__init__(model, args, train_dataset=steps, eval_dataset=held_out or None)
        self.plan, self.run, self.steps, self.held_out = plan, run, steps, held_out
        self.examples = steps.examples
        self.is_rank_zero = distributed.rank() == 0
        rows = documents.read_provenance(run).rows
        self.row_budget = RowBudget.read(rows)
        self.rows_requested, self.gradient_checkpointing = rows.rows_asked, rows.gradient_checkpointing
        self.last_step: Step | None = None  # with the rows it was trained in
        self.check_batch_scored: tuple[str, float] | None = None  # its loss, and the digest of the weights that gave it
        self.interrupted = False  # by Ctrl-C, SIGTERM or SIGHUP
        self.has_ended = False  # the checkpoint was the run's last: only the adapter is missing
        self.metrics = MetricsSinceLog.zero(args.device)
        self.tokens_seen = 0
        self.step_began = 0.0  # time.monotonic() when the step before this one ended
        self.step_watch, self.graphs = StepWatch(), cuda_graphs.RowGraphs(self)
        loss_scale.set_first_scale(self.accelerator.scaler, self.args.device)
        self.progress = ProgressLine(steps.tokens_of_steps(plan.total_steps))
        self.remove_callback(PrinterCallback)
        self.add_callback(RunCallback(self))

    @property
    def complete(self) -> bool:
        """Whether training reached its end: all steps, `until` or early stopping. False after Ctrl-C."""
        return not self.interrupted or self.state.global_step >= self.state.max_steps

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[tuple[int, ...]]:
        """One step an item, in the order of the data set: seed and epoch alone decide it (E1)."""
        return torch.utils.data.DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=single_item)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedule, with a warmup whose first step trains too."""
        created = super().create_scheduler(num_training_steps, optimizer)
        warm_up_from_step_one(created, self.args.get_warmup_steps(num_training_steps))
        return created

    def get_batch_samples(
        self, epoch_iterator: Iterator[tuple[int, ...]], num_batches: int, device: Any
    ) -> tuple[list[tuple[int, ...]], None]:
        """The samples of the next `num_batches` steps (one). The number of supervised tokens, which the Trainer would
        count here, is the plan's."""
        return [next(epoch_iterator) for _batch in range(num_batches)], None

    def training_step(self, model: Any, inputs: tuple[int, ...], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute all rows of a step, leaving the gradient of its mean loss (nats a supervised token) in the model;
        returns that mean, detached."""
        if not self.model.training:
            self.model.train()
        first = self.state.global_step == 0
        free, before = (device.free_memory(), device.reset_peak()) if first else (0, 0)
        again = functools.partial(self.train_again, device.random_state())
        step, loss, hits = loss_scale.compute_without_overflow(
            self.accelerator.scaler, self.trained_parameters, lambda: self.compute_step(inputs), again
        )
        if first:
            longest = row_budget.longest_row(step.rows)
            row_memory.set_measured_budget(self, longest, free, device.peak_memory() - before)
        seconds = time.monotonic() - self.step_began
        self.metrics.add(step, loss, hits, seconds)
        if self.graphs.end_step() and device.device_type() == "cuda":
            show_findings(self.step_watch.add(self.state.global_step + 1, step.computed_tokens, seconds))
        self.tokens_seen += step.tokens
        self.step_began, self.last_step = self.step_began + seconds, step
        return loss / step.supervised

    def compute_step(self, inputs: tuple[int, ...]) -> tuple[Step, torch.Tensor, torch.Tensor]:
        """Leave a step's gradients, over all ranks; returns the step as it was laid out, its summed loss and hits."""
        step, loss, hits = self.run_with_oom_retry(
            self.state.global_step + 1, lambda budget: self.steps.plan(inputs, budget), self.train_rows
        )
        return step, *self.all_reduce_step(loss, hits)

    def train_again(self, random_state: Sequence[torch.Tensor], scale: float) -> None:
        """After a gradient overflowed in float16: say that the step is trained again, from the same random state.
        Raises FasttuneError where it overflows without a scale too: the training diverges."""
        if scale < loss_scale.SMALLEST_SCALE:
            divergence.require_finite({"grad_norm": math.inf}, self.plan, self.run, self.state.global_step + 1)
        device.set_random_state(random_state)
        show_findings([loss_scale.overflow(self.state.global_step + 1, scale)])

    def train_rows(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a step's mean loss over this rank's rows; returns their summed loss and top-1 hits.

        Raises RowOutOfMemory.
        """
        total, hits = self.metrics.loss.new_zeros(()), self.metrics.hits.new_zeros(())
        for row in step.rows:
            with raise_on_oom(row, self.examples):
                loss, right = self.graphs.train_row(row, step.supervised)
            total, hits = total + loss, hits + right
        return total, hits

    def all_reduce_step(self, loss: torch.Tensor, hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum a step's loss, hits and gradients over all ranks, in one collective call (E4)."""
        if distributed.world_size() == 1:
            return loss, hits
        for parameter in self.trained_parameters:
            if parameter.grad is None:  # this rank had none of the step's samples
                parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce_sum([loss, hits, *(parameter.grad for parameter in self.trained_parameters)])
        return loss, hits

    def row_loss(self, examples: Sequence[Example], row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss (nats) and top-1 hits of one row's supervised tokens, as scalars on the device."""
        return self.batch_loss(engine.collate(row, examples))

    def batch_loss(self, batch: engine.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of a row as tensors of the host."""
        batch = batch.to(self.args.device)
        with self.accelerator.autocast():
            return engine.loss(models.hidden_states(self.model, batch), models.lm_head_weight(self.model), batch)

    def score(
        self, examples: Sequence[Example], plan: Callable[[int], Step], *, all_ranks: bool = False
    ) -> tuple[float, float]:
        """Mean loss (nats) and top-1 accuracy over the supervised tokens of some samples, without gradient.

        `plan` lays them out in rows of at most so many tokens: all samples, or with `all_ranks` this rank's part.
        """

        def score_rows(step: Step) -> tuple[float, float]:
            sums = []
            for row in step.rows:
                with raise_on_oom(row, examples):
                    sums.append(self.row_loss(examples, row))
            return sum(loss.item() for loss, _hits in sums), sum(hits.item() for _loss, hits in sums)

        self.model.eval()
        with torch.no_grad():
            step, loss, hits = self.run_with_oom_retry(
                self.state.global_step + 0.5, plan, score_rows, all_ranks=all_ranks
            )
        self.model.train()
        if all_ranks:
            loss, hits = distributed.all_reduce_scalars([loss, hits])
        return loss / step.supervised, hits / step.supervised

    def run_with_oom_retry(
        self,
        moment: float,
        plan: Callable[[int], Step],
        compute: Callable[[Step], tuple[Loss, Hits]],
        *,
        all_ranks: bool = True,
    ) -> tuple[Step, Loss, Hits]:
        """Plan a step and compute it; where memory runs out, reduce what it takes and do both again from the same
        random state (E3). Returns the step as it was laid out in the end, and its loss and hits.

        `moment` as in row_budget.py. With `all_ranks` every rank computes its part, and where memory runs out in one
        of them all try again. Raises FasttuneError where a single sample is too large.
        """
        random_state = device.random_state()
        while True:
            step, failed = plan(self.row_budget.at(moment)), None
            try:
                result = compute(step)
            except RowOutOfMemory as problem:
                failed = problem.failed
            failed = distributed.first_from_ranks(failed) if all_ranks else failed
            if failed is None:
                return step, *result
            models.drop_gradients(self.model)  # drops the attempt's gradients only: each step begins without any
            device.release_memory()
            device.set_random_state(random_state)
            row_memory.reduce_memory(self, moment, failed)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Loss and token accuracy on the held-out samples, packed; the full logits never exist."""
        held_out = self.held_out
        loss, accuracy = self.score(held_out, lambda budget: self.steps.plan_held_out(held_out, budget), all_ranks=True)
        metrics = {"eval_loss": loss, "eval_mean_token_accuracy": accuracy}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.step_began = time.monotonic()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log with the figures of the steps since the last one; without the Trainer's closing summary,
        which counts only the steps since the last resume."""
        if "train_loss" in logs:
            return
        if "loss" in logs:
            logs |= self.metrics.figures() | {"num_tokens": self.tokens_seen}
            self.metrics = MetricsSinceLog.zero(self.args.device)
        divergence.require_finite(logs, self.plan, self.run, self.state.global_step)
        super().log(logs)

    def floating_point_ops(self, inputs: tuple[int, ...]) -> int:
        """FLOPs of the step that has just been trained: 6 (P T + V C N), 2 forward and 4 backward, for P parameters
        outside the head, T computed tokens, a head of V C weights and N supervised tokens."""
        if self.last_step is None:
            return 0
        head = models.lm_head_weight(self.model).numel()
        body = self.parameter_count - head
        return 6 * (body * self.last_step.computed_tokens + head * self.last_step.supervised)

    # A model of 24 layers has 1,500 modules: walking through them takes longer than some of the work that a step does.

    @functools.cached_property
    def parameter_count(self) -> int:
        """The parameters of base and adapter."""
        return int(self.model.num_parameters())

    @functools.cached_property
    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that have a gradient: the adapter's."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """As the Trainer does, of the trained parameters alone; returns the norm before clipping."""
        return self.accelerator.clip_grad_norm_(self.trained_parameters, self.args.max_grad_norm)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write Hugging Face's files into a partial folder that is renamed when it is complete; then delete the oldest
        checkpoints beyond `save_total_limit`."""
        self.store_flos()
        # A resume gives every rank the random state of rank 0; so must a checkpoint, or E2 would not hold with dropout.
        device.set_random_state(distributed.broadcast_from_rank0(device.random_state()))
        if not self.is_rank_zero:
            return
        with checkpoints.writing_checkpoint(self.run, self.state.global_step) as folder:
            models.save_adapter(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            unlogged = self.metrics.document(self.tokens_seen)
            divergence.require_finite({"loss": unlogged.loss}, self.plan, self.run, self.state.global_step)
            documents.write(folder / documents.UNLOGGED_METRICS, unlogged)
            resume_check.record(self, folder)
        keep, step = self.plan.recipe.train.save_total_limit, self.state.global_step
        checkpoints.rotate(self.run, keep, self.state.best_global_step, step)
        self.step_began = time.monotonic()

    def _run_epoch(self, **epoch: Any) -> None:
        """As the Trainer does, except where the checkpoint was the run's last by `until` or early stopping: the Trainer
        would train one step beyond it."""
        if not self.has_ended:
            super()._run_epoch(**epoch)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer does: the weights. Raises FasttuneError where they, or the Trainer's state beside them, can't
        be loaded."""
        require_trainer_state(Path(resume_from_checkpoint))
        with unloadable_as_error(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer does, then set the learning rate that this run's schedule has at this step: the stored one is
        a step old, and of the parent's schedule where a run continues with more steps.

        Raises FasttuneError where a state can't be loaded, or the check batch does not score as it did.
        """
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(None)
            return
        with unloadable_as_error(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            self._load_rng_state(checkpoint)  # the Trainer does so again right before the first step
        schedule = self.lr_scheduler
        schedule.base_lrs = [self.args.learning_rate] * len(schedule.base_lrs)
        learning_rates = [self.args.learning_rate * rule(schedule.last_epoch) for rule in schedule.lr_lambdas]
        for group, learning_rate in zip(self.optimizer.param_groups, learning_rates, strict=True):
            group["lr"], group["initial_lr"] = learning_rate, self.args.learning_rate
        schedule._last_lr = learning_rates
        unlogged = documents.read(Path(checkpoint) / documents.UNLOGGED_METRICS, UnloggedMetrics)
        self.tokens_seen = unlogged.tokens_seen
        self.metrics = MetricsSinceLog.read(unlogged, self.args.device)
        if self.is_rank_zero:
            continuation = resume_check.check_checkpoint(self, Path(checkpoint), learning_rates[0])
            documents.add_continuation(self.run, continuation)
