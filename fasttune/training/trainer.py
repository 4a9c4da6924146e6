"""The training loop: transformers' Trainer with whole optimizer steps as items.

A dataset item is the samples of one step; `training_step` lays them out in rows (packing.py), runs all of them and
leaves the gradient of the step's mean loss. Where a row does not fit into memory the step is laid out again in smaller
ones (memory.py). Checkpoints are whole or absent, and every start from one is proven (proof.py).
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fasttune.console import Finding, _, error, say, show_findings
from fasttune.data import batches
from fasttune.data.tokenize import Example
from fasttune.planning.strategy import Plan
from fasttune.runs import checkpoints, documents
from fasttune.runs.documents import PrefixDifference, UnloggedMetrics
from fasttune.runs.store import Run
from fasttune.training import device, distributed, resume_check, row_budget
from fasttune.training import model as models
from fasttune.training.metrics import MetricsSinceLog
from fasttune.training.oom import FailedRow, RowOutOfMemory, raise_on_oom
from fasttune.training.packing import Row, Step
from fasttune.training.progress import LiveLine
from fasttune.training.row_budget import GIB, RowBudget
from fasttune.training.step_dataset import StepDataset

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
import torch
from transformers import PrinterCallback, Trainer, TrainerControl, TrainingArguments

from fasttune.training import engine, prefix_check
from fasttune.training.callbacks import RunCallback

Loss = TypeVar("Loss")
Hits = TypeVar("Hits")
FIRST_SAMPLES = 64  # among these a prefix to check is looked for


class StepTrainer(Trainer):
    """transformers' Trainer with whole steps as items, packed evaluation and checkpoints that are whole or absent."""

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
        self.writes = distributed.rank() == 0
        rows = documents.read_provenance(run).rows
        self.row_budget = RowBudget.read(rows)
        self.rows_asked, self.checkpoints_activations = rows.rows_asked, rows.gradient_checkpointing
        self.last_step: Step | None = None  # as it was laid out in the end
        self.interrupted = False
        self.has_ended = False  # before it began: all that is left to do is to write the adapter
        self.metrics = MetricsSinceLog.zero(args.device)
        self.tokens_seen = 0
        self.clock = 0.0
        self.live = LiveLine(plan.total_steps)
        self.remove_callback(PrinterCallback)
        self.add_callback(RunCallback(self))

    @property
    def complete(self) -> bool:
        """Whether training came to its end: by its steps, by `until` or by early stopping, not by Ctrl-C."""
        return not self.interrupted or self.state.global_step >= self.state.max_steps

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[tuple[int, ...]]:
        """In order, one step an item: order and contents are the plan's, no sampler has a say."""
        return torch.utils.data.DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=only)

    def get_batch_samples(
        self, epoch_iterator: Iterator[tuple[int, ...]], num_batches: int, device: Any
    ) -> tuple[list[tuple[int, ...]], None]:
        """The samples of the next step; its supervised tokens are counted when it is planned."""
        return [next(epoch_iterator) for _batch in range(num_batches)], None

    def training_step(self, model: Any, inputs: tuple[int, ...], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run all rows of a step, leaving the gradient of its mean loss; returns that mean, detached."""
        self.model.train()
        first = self.state.global_step == 0
        free, before = (device.free_memory(), device.reset_peak()) if first else (0, 0)
        step, loss, hits = self.run_with_oom_retry(
            self.state.global_step + 1, lambda budget: self.steps.plan(inputs, budget), self.train_rows
        )
        if first:
            self.settle_budget(row_budget.longest(step.rows), free, device.peak_memory() - before)
        loss, hits = self.all_reduce_step(loss, hits)
        now = time.monotonic()
        self.metrics.add(step, loss, hits, now - self.clock)
        self.tokens_seen += step.tokens
        self.clock, self.last_step = now, step
        return loss / step.supervised

    def train_rows(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a step's mean loss; returns the summed loss and the top-1 hits."""
        total, hits = self.metrics.loss.new_zeros(()), self.metrics.hits.new_zeros(())
        for row in step.rows:
            with raise_on_oom(row, self.examples):
                loss, right = self.row_loss(self.examples, row)
                self.accelerator.backward(loss / step.supervised)
            total += loss.detach()
            hits += right
        return total, hits

    def settle_budget(self, tokens: int, free: int, taken: int) -> None:
        """What "auto" gives a row from a run's second step on: by its first one, whose longest row of `tokens` tokens
        took so many of the free bytes."""
        measured = row_budget.measured_budget(free, tokens, taken) if tokens >= row_budget.MEASURED_ROW else math.inf
        measured = distributed.all_reduce_min(measured)
        known = self.row_budget.cuts or self.row_budget.measured or self.plan.recipe.train.tokens_per_row != "auto"
        if known or measured == math.inf:
            return
        self.row_budget.measured = 2, int(measured)
        self.record_rows()
        say(
            _(
                "rows of at most {budget} tokens from here on: one of {tokens} took {taken:.2f} of {free:.1f} GiB",
                budget=self.row_budget.now,
                tokens=tokens,
                taken=taken / GIB,
                free=free / GIB,
            )
        )

    def check_shared_prefixes(self) -> None:
        """Before the first step on a card: shared prefixes are switched off where they change loss or gradients."""
        if not (self.steps.shares and device.checks_sharing()):
            return
        found = self.prefix_difference()
        tolerance = prefix_check.TOLERANCE[device.compute_dtype(self.plan.recipe.model)]
        if self.writes:
            record = PrefixDifference(found.loss, found.gradient) if found else None
            documents.update_provenance(self.run, sharing_check=record)
        if not distributed.any_rank(found is not None and not found.within(tolerance)):
            return
        self.steps.can_share = False
        what = _("shared prefixes give another loss or gradient than plain attention here; they are switched off")
        figures = found and _(
            "relative difference: loss {loss:.1e}, gradient {gradient:.1e}", loss=found.loss, gradient=found.gradient
        )
        show_findings([Finding("sharing-differs", "warning", "train.shared_prefix", what, figures or "")])

    def prefix_difference(self) -> prefix_check.Difference | None:
        """Some samples with their prefix shared and without; None where nothing is shared or memory is short."""
        first = range(min(len(self.examples), FIRST_SAMPLES))
        pair = prefix_check.pair(self.examples, self.steps.plan(first, row_budget.LONGEST_ROW).rows)
        if pair is None:
            return None
        try:
            shared, plain = (self.loss_and_gradients(rows) for rows in pair)
        except (RuntimeError, MemoryError) as problem:
            if not device.is_out_of_memory(problem):
                raise
            return None  # the first step will say so
        finally:
            self.model.zero_grad(set_to_none=True)
        return prefix_check.difference(shared, plain)

    def loss_and_gradients(self, rows: Sequence[Row]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Mean loss of some rows' samples, and its LoRA gradients."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        supervised = sum(
            batches.supervised_tokens(self.examples[i]) for row in rows for i in row_budget.row_samples(row)
        )
        total = self.metrics.loss.new_zeros(())
        for row in rows:
            loss = self.row_loss(self.examples, row)[0] / supervised
            loss.backward()
            total += loss.detach()
        return total, [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def all_reduce_step(self, loss: torch.Tensor, hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, hits and gradients of a step summed over the processes: one message a step."""
        if distributed.world_size() == 1:
            return loss, hits
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # this process had none of the step's samples
                parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce_sum([loss, hits, *(parameter.grad for parameter in trained)])
        return loss, hits

    def row_loss(self, examples: Sequence[Example], row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and top-1 hits of one row."""
        batch = engine.collate(row, examples).to(self.args.device)
        with self.accelerator.autocast():
            hidden = models.hidden_states(self.model, batch)
            return engine.loss(hidden, models.head(self.model), batch)

    def score(
        self, examples: Sequence[Example], plan: Callable[[int], Step], *, all_ranks: bool = False
    ) -> tuple[float, float]:
        """Mean loss and top-1 accuracy over the supervised tokens of some samples, without gradient.

        `plan` lays them out in rows of at most so many tokens: all of them, or with `all_ranks` the part of this rank.
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
        work: Callable[[Step], tuple[Loss, Hits]],
        *,
        all_ranks: bool = True,
    ) -> tuple[Step, Loss, Hits]:
        """Plan a step and work on it; where memory runs out, make room and do both again from the same state (E3).

        `all_ranks`: every rank works on it, and where memory runs out in one of them all do it again.
        """
        state = device.random_state()
        while True:
            step, failed = plan(self.row_budget.at(moment)), None
            try:
                done = work(step)
            except RowOutOfMemory as problem:
                failed = problem.failed
            failed = distributed.first_from_ranks(failed) if all_ranks else failed
            if failed is None:
                return step, *done
            self.model.zero_grad(set_to_none=True)  # all of the attempt: gradients are cleared after every step
            device.release_memory()
            device.set_random_state(state)
            self.reduce_memory(moment, failed)

    def reduce_memory(self, moment: float, failed: FailedRow) -> None:
        """Memory ran out in a row: smaller rows or recomputation for the rest of the run, remembered for a resume."""
        row, auto = failed.row, self.plan.recipe.train.gradient_checkpointing == "auto"
        # Scoring keeps no activations: nothing to recompute there.
        way = row_budget.recourse(
            row, may_recompute=auto and not self.checkpoints_activations and torch.is_grad_enabled()
        )
        if way == "none":
            raise self.sample_too_large(failed)
        what = _("out of memory in a row of {tokens} tokens", tokens=row.tokens)
        if way == "recompute":
            models.recompute_activations(self.model)
            self.checkpoints_activations = True
            fix = _("activations are recomputed from here on (gradient_checkpointing); the result is the same")
        else:
            self.row_budget.cut(moment, row_budget.half(row))
            fix = _(
                "the step is planned again with at most {tokens} tokens a row from here on; the result is the same",
                tokens=row_budget.half(row),
            )
        self.record_rows()
        where = _("step {step}", step=math.ceil(moment - 0.5))
        show_findings([Finding("out-of-memory", "warning", where, _("{problem}; {remedy}", problem=what, remedy=fix))])

    def record_rows(self) -> None:
        """Put the row budget into provenance.json, so that a resumed run lays its steps out as they were (E2)."""
        if self.writes:
            rows = self.row_budget.record(self.rows_asked, checkpointing=self.checkpoints_activations)
            documents.update_provenance(self.run, rows=rows)

    def sample_too_large(self, failed: FailedRow) -> Exception:
        """A single sample does not fit: nothing to do about it here."""
        recipe = self.plan.recipe
        kept = checkpoints.list_checkpoints(self.run)
        ways = [
            _("a shorter sample"),
            *([] if self.checkpoints_activations else ["train.gradient_checkpointing = true"]),
            *([] if recipe.model.load_in_4bit or self.args.device.type == "cpu" else ["model.load_in_4bit = true"]),
            _("a smaller lora.r"),
            _("fewer other programs in that memory"),
        ]
        return error(
            "sample-too-large",
            _(
                "a single sample of {tokens} tokens does not fit into memory ({free:.1f} GiB are free without it)",
                tokens=failed.row.tokens,
                free=device.free_memory() / GIB,
            ),
            where=failed.sample,
            why=_("the newest checkpoint is kept; the same command goes on from it") if kept else "",
            fix=_("what helps: {ways}", ways=", ".join(ways)),
        )

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Loss and accuracy on the held-out samples, packed; logits are never kept."""
        held_out = self.held_out
        loss, accuracy = self.score(held_out, lambda budget: self.steps.plan_held_out(held_out, budget), all_ranks=True)
        metrics = {"eval_loss": loss, "eval_mean_token_accuracy": accuracy}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock = time.monotonic()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log with the loss and the rates of the steps since the last one; without its closing summary,
        which knows only what this process has trained."""
        if "train_loss" in logs:
            return
        if "loss" in logs:
            logs |= self.metrics.figures() | {"num_tokens": self.tokens_seen}
            self.metrics = MetricsSinceLog.zero(self.args.device)
        super().log(logs)

    def floating_point_ops(self, inputs: tuple[int, ...]) -> int:
        """2 FLOPs a parameter and token forward, 4 backward; the head only for supervised tokens. Of the step that has
        just been trained."""
        if self.last_step is None:
            return 0
        head = models.head(self.model).numel()
        body = self.model.num_parameters() - head
        return 6 * (body * self.last_step.computed_tokens + head * self.last_step.supervised)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Hugging Face's files in a folder that gets its name when all are there; then the oldest go."""
        self.store_flos()
        # A resume gives every process the first one's state: so does a checkpoint, or E2 would not hold with dropout.
        device.set_random_state(distributed.broadcast_from_rank0(device.random_state()))
        if not self.writes:
            return
        with checkpoints.writing_checkpoint(self.run, self.state.global_step) as folder:
            models.save_adapter(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            documents.write(folder / documents.UNLOGGED_METRICS, self.metrics.document(self.tokens_seen))
            resume_check.record(self, folder)
        keep, step = self.plan.recipe.train.save_total_limit, self.state.global_step
        checkpoints.rotate(self.run, keep, self.state.best_global_step, step)
        self.clock = time.monotonic()

    def _run_epoch(self, **epoch: Any) -> None:
        """As the Trainer does, which would train a step beyond the end of a run that has ended within an epoch."""
        if not self.has_ended:
            super()._run_epoch(**epoch)

    def random_state(self) -> str:
        """A digest of the generators that dropout and the libraries draw from."""
        states = [repr(random.getstate()).encode(), torch.get_rng_state().numpy().tobytes()]
        if self.args.device.type == "cuda":
            states.append(torch.cuda.get_rng_state().numpy().tobytes())
        return hashlib.sha256(b"".join(states)).hexdigest()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer does, but with this run's learning rate at this step: a stored one would be a step stale,
        and an extended schedule's first step would run at the old one's end."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
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
        if self.writes:
            continuation = resume_check.check_checkpoint(self, Path(checkpoint), learning_rates[0])
            documents.add_continuation(self.run, continuation)


def only(items: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The one item of a batch of one."""
    (item,) = items
    return item
