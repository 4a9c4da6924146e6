"""The training loop: transformers' Trainer with whole optimizer steps as items.

A dataset item is the samples of one step; `training_step` lays them out in rows (packing.py), runs all of them and
leaves the gradient of the step's mean loss. Where a row does not fit into memory the step is laid out again in smaller
ones (memory.py). Checkpoints are whole or absent, and every start from one is proven (proof.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fasttune import memory, packing, processes, proof, runs
from fasttune import model as models
from fasttune.console import Finding, _, error, say, show_findings
from fasttune.live import LiveLine
from fasttune.memory import GIB, Budgets
from fasttune.packing import Row, Step
from fasttune.render import Example
from fasttune.runs import Run
from fasttune.strategy import Plan

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fasttune import engine, sharing

Loss = TypeVar("Loss")
Hits = TypeVar("Hits")
FIRST_SAMPLES = 64  # among these a prefix to check is looked for
WINDOW = "window.json"  # in a checkpoint: what is summed up for the next logged line


class Steps(torch.utils.data.Dataset[tuple[int, ...]]):
    """The samples of each optimizer step of an epoch; `epoch` is set at its beginning."""

    def __init__(self, examples: Sequence[Example], plan: Plan) -> None:
        self.examples = examples
        self.settings = plan.recipe.train
        self.can_share = self.settings.shared_prefix and models.shares_prefixes()
        self.drops = plan.recipe.lora.dropout > 0  # a prefix would be dropped alike for all who share it
        self.epoch = 0

    def __len__(self) -> int:
        return packing.steps_per_epoch(len(self.examples), self.settings.batch_size)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return packing.epoch_batches(len(self.examples), self.settings.batch_size, self.settings.seed, self.epoch)[
            index
        ]

    @property
    def shares(self) -> bool:
        """Whether training rows share prefixes."""
        return self.can_share and not self.drops

    def plan(self, samples: Sequence[int], budget: int) -> Step:
        """Lay a step's samples out in rows."""
        return self.part(self.examples, samples, budget, self.shares)

    def plan_held_out(self, examples: Sequence[Example], budget: int) -> Step:
        """Lay held-out samples out in rows; nothing is dropped there."""
        return self.part(examples, range(len(examples)), budget, self.can_share)

    def part(self, examples: Sequence[Example], samples: Sequence[int], budget: int, shares: bool) -> Step:
        """A step with the rows of this process."""
        process, count = processes.rank(), processes.count()
        return packing.plan_step(examples, samples, budget, shared_prefix=shares, process=process, processes=count)


@dataclass(frozen=True)
class Shortage:
    """A row that memory ran out in; `sample` is the id of its first sample."""

    row: Row
    sample: str


class DoesNotFit(Exception):
    """Memory ran out while a row was computed."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage.sample)
        self.shortage = shortage


@contextlib.contextmanager
def fitting(row: Row, examples: Sequence[Example]) -> Iterator[None]:
    """Raises DoesNotFit where memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not models.is_out_of_memory(problem):
            raise
        raise DoesNotFit(Shortage(row, examples[memory.row_samples(row)[0]].sample_id)) from None


@dataclass
class Window:
    """What happened since the last logged step. Sums stay on the device, so that no step waits for it."""

    loss: torch.Tensor
    hits: torch.Tensor
    supervised: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    samples: int = 0
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, device: torch.device) -> Window:
        return cls(torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device))

    def add(self, step: Step, loss: torch.Tensor, hits: torch.Tensor, seconds: float) -> None:
        """Count one step; loss and hits are sums over its supervised tokens."""
        self.loss, self.hits = self.loss + loss, self.hits + hits
        self.supervised += step.supervised
        self.tokens += step.tokens
        self.computed_tokens += step.computed_tokens
        self.samples += len(step.samples)
        self.steps += 1
        self.seconds += seconds

    def document(self) -> dict[str, float]:
        """The sums as JSON, exact: a float32 is a Python float."""
        return asdict(self) | {"loss": self.loss.item(), "hits": self.hits.item()}

    @classmethod
    def read(cls, document: dict[str, Any], device: torch.device) -> Window:
        """The sums of an earlier `document`."""
        loss = torch.tensor(document["loss"], device=device)
        return cls(**document | {"loss": loss, "hits": torch.tensor(document["hits"], device=device)})

    def figures(self) -> dict[str, float]:
        """The fields of a history line; waits for the device."""
        loss, hits = self.loss.item(), self.hits.item()
        return {
            "loss": loss / self.supervised,
            "mean_token_accuracy": hits / self.supervised,
            "tokens_per_second": self.tokens / self.seconds,
            "supervised_tokens_per_second": self.supervised / self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "step_seconds": self.seconds / self.steps,
            "computed_tokens": self.computed_tokens,
            "memory_gib": models.used_memory() / GIB,
        }


class StepTrainer(Trainer):
    """transformers' Trainer with whole steps as items, packed evaluation and checkpoints that are whole or absent."""

    def __init__(
        self,
        net: Any,
        args: TrainingArguments,
        steps: Steps,
        held_out: Sequence[Example],
        plan: Plan,
        run: Run,
    ) -> None:
        super().__init__(net, args, train_dataset=steps, eval_dataset=held_out or None)
        self.plan, self.run, self.steps, self.held_out = plan, run, steps, held_out
        self.examples = steps.examples
        self.writes = processes.rank() == 0
        limits = runs.read_json(run.provenance)
        self.budgets = Budgets.read(limits)
        self.recomputes: bool = limits["gradient_checkpointing"]
        self.last_step: Step | None = None  # as it was laid out in the end
        self.interrupted = False
        self.ended = False  # before it began: all that is left to do is to write the adapter
        self.window = Window.empty(args.device)
        self.tokens_seen = 0
        self.clock = 0.0
        self.live = LiveLine(plan.total_steps)
        self.remove_callback(PrinterCallback)
        self.add_callback(Director(self))

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
        free, before = (models.free_memory(), models.reset_peak()) if first else (0, 0)
        step, loss, hits = self.cut_to_fit(
            self.state.global_step + 1, lambda budget: self.steps.plan(inputs, budget), self.train_rows
        )
        if first:
            self.settle_budget(memory.longest(step.rows), free, models.peak_memory() - before)
        loss, hits = self.add_up(loss, hits)
        now = time.monotonic()
        self.window.add(step, loss, hits, now - self.clock)
        self.tokens_seen += step.tokens
        self.clock, self.last_step = now, step
        return loss / step.supervised

    def train_rows(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a step's mean loss; returns the summed loss and the top-1 hits."""
        total, hits = self.window.loss.new_zeros(()), self.window.hits.new_zeros(())
        for row in step.rows:
            with fitting(row, self.examples):
                loss, right = self.row_loss(self.examples, row)
                self.accelerator.backward(loss / step.supervised)
            total += loss.detach()
            hits += right
        return total, hits

    def settle_budget(self, tokens: int, free: int, taken: int) -> None:
        """What "auto" gives a row from a run's second step on: by its first one, whose longest row of `tokens` tokens
        took so many of the free bytes."""
        measured = memory.measured_budget(free, tokens, taken) if tokens >= memory.MEASURED_ROW else math.inf
        measured = processes.smallest(measured)
        known = self.budgets.cuts or self.budgets.measured or self.plan.recipe.train.tokens_per_row != "auto"
        if known or measured == math.inf:
            return
        self.budgets.measured = 2, int(measured)
        self.note(self.budgets.document())
        say(
            _(
                "rows of at most {budget} tokens from here on: one of {tokens} took {taken:.2f} of {free:.1f} GiB",
                budget=self.budgets.now,
                tokens=tokens,
                taken=taken / GIB,
                free=free / GIB,
            )
        )

    def check_sharing(self) -> None:
        """Before the first step on a card: shared prefixes are switched off where they change loss or gradients."""
        if not (self.steps.shares and models.checks_sharing()):
            return
        found = self.sharing_difference()
        tolerance = sharing.TOLERANCE[models.compute_dtype(self.plan.recipe.model)]
        self.note({"sharing_check": found and asdict(found)})
        if not processes.any_of(found is not None and not found.within(tolerance)):
            return
        self.steps.can_share = False
        what = _("shared prefixes give another loss or gradient than plain attention here; they are switched off")
        figures = found and _(
            "relative difference: loss {loss:.1e}, gradient {gradient:.1e}", loss=found.loss, gradient=found.gradient
        )
        show_findings([Finding("sharing-differs", "warning", "train.shared_prefix", what, figures or "")])

    def sharing_difference(self) -> sharing.Difference | None:
        """Some samples with their prefix shared and without; None where nothing is shared or memory is short."""
        first = range(min(len(self.examples), FIRST_SAMPLES))
        pair = sharing.pair(self.examples, self.steps.plan(first, memory.LONGEST_ROW).rows)
        if pair is None:
            return None
        try:
            shared, plain = (self.loss_and_gradients(rows) for rows in pair)
        except (RuntimeError, MemoryError) as problem:
            if not models.is_out_of_memory(problem):
                raise
            return None  # the first step will say so
        finally:
            self.model.zero_grad(set_to_none=True)
        return sharing.difference(shared, plain)

    def loss_and_gradients(self, rows: Sequence[Row]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Mean loss of some rows' samples, and its LoRA gradients."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        supervised = sum(packing.supervised_tokens(self.examples[i]) for row in rows for i in memory.row_samples(row))
        total = self.window.loss.new_zeros(())
        for row in rows:
            loss = self.row_loss(self.examples, row)[0] / supervised
            loss.backward()
            total += loss.detach()
        return total, [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def add_up(self, loss: torch.Tensor, hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, hits and gradients of a step summed over the processes: one message a step."""
        if processes.count() == 1:
            return loss, hits
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # this process had none of the step's samples
                parameter.grad = torch.zeros_like(parameter)
        processes.add_up([loss, hits, *(parameter.grad for parameter in trained)])
        return loss, hits

    def row_loss(self, examples: Sequence[Example], row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and top-1 hits of one row."""
        batch = engine.collate(row, examples).to(self.args.device)
        with self.accelerator.autocast():
            hidden = models.hidden_states(self.model, batch)
            return engine.loss(hidden, models.head(self.model), batch)

    def score(
        self, examples: Sequence[Example], plan: Callable[[int], Step], *, together: bool = False
    ) -> tuple[float, float]:
        """Mean loss and top-1 accuracy over the supervised tokens of some samples, without gradient.

        `plan` lays them out in rows of at most so many tokens: all of them, or `together` the part of this process.
        """

        def score_rows(step: Step) -> tuple[float, float]:
            sums = []
            for row in step.rows:
                with fitting(row, examples):
                    sums.append(self.row_loss(examples, row))
            return sum(loss.item() for loss, _hits in sums), sum(hits.item() for _loss, hits in sums)

        self.model.eval()
        with torch.no_grad():
            step, loss, hits = self.cut_to_fit(self.state.global_step + 0.5, plan, score_rows, together=together)
        self.model.train()
        if together:
            loss, hits = processes.total([loss, hits])
        return loss / step.supervised, hits / step.supervised

    def cut_to_fit(
        self,
        moment: float,
        plan: Callable[[int], Step],
        work: Callable[[Step], tuple[Loss, Hits]],
        *,
        together: bool = True,
    ) -> tuple[Step, Loss, Hits]:
        """Plan a step and work on it; where memory runs out, make room and do both again from the same state (E3).

        `together`: all processes work on it, and where one has no room all do it again.
        """
        state = models.random_state()
        while True:
            step, shortage = plan(self.budgets.at(moment)), None
            try:
                done = work(step)
            except DoesNotFit as problem:
                shortage = problem.shortage
            shortage = processes.first_of(shortage) if together else shortage
            if shortage is None:
                return step, *done
            self.model.zero_grad(set_to_none=True)  # all of the attempt: gradients are cleared after every step
            models.release_memory()
            models.set_random_state(state)
            self.make_room(moment, shortage)

    def make_room(self, moment: float, shortage: Shortage) -> None:
        """Memory ran out in a row: smaller rows or recomputation for the rest of the run, remembered for a resume."""
        row, auto = shortage.row, self.plan.recipe.train.gradient_checkpointing == "auto"
        # Scoring keeps no activations: nothing to recompute there.
        way = memory.recourse(row, may_recompute=auto and not self.recomputes and torch.is_grad_enabled())
        if way == "none":
            raise self.sample_too_large(shortage)
        what = _("out of memory in a row of {tokens} tokens", tokens=row.tokens)
        if way == "recompute":
            models.recompute_activations(self.model)
            self.recomputes = True
            fix = _("activations are recomputed from here on (gradient_checkpointing); the result is the same")
        else:
            self.budgets.cut(moment, memory.half(row))
            fix = _(
                "the step is planned again with at most {tokens} tokens a row from here on; the result is the same",
                tokens=memory.half(row),
            )
        self.note(self.budgets.document() | {"gradient_checkpointing": self.recomputes})
        where = _("step {step}", step=math.ceil(moment - 0.5))
        show_findings([Finding("out-of-memory", "warning", where, _("{problem}; {remedy}", problem=what, remedy=fix))])

    def note(self, fields: dict[str, Any]) -> None:
        """Put fields into provenance.json; the first process does."""
        if self.writes:
            runs.note(self.run, fields)

    def sample_too_large(self, shortage: Shortage) -> Exception:
        """A single sample does not fit: nothing to do about it here."""
        recipe = self.plan.recipe
        kept = runs.list_checkpoints(self.run)
        ways = [
            _("a shorter sample"),
            *([] if self.recomputes else ["train.gradient_checkpointing = true"]),
            *([] if recipe.model.load_in_4bit or self.args.device.type == "cpu" else ["model.load_in_4bit = true"]),
            _("a smaller lora.r"),
            _("fewer other programs in that memory"),
        ]
        return error(
            "sample-too-large",
            _(
                "a single sample of {tokens} tokens does not fit into memory ({free:.1f} GiB are free without it)",
                tokens=shortage.row.tokens,
                free=models.free_memory() / GIB,
            ),
            where=shortage.sample,
            why=_("the newest checkpoint is kept; the same command goes on from it") if kept else "",
            fix=_("what helps: {ways}", ways=", ".join(ways)),
        )

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Loss and accuracy on the held-out samples, packed; logits are never kept."""
        held_out = self.held_out
        loss, accuracy = self.score(held_out, lambda budget: self.steps.plan_held_out(held_out, budget), together=True)
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
            logs |= self.window.figures() | {"num_tokens": self.tokens_seen}
            self.window = Window.empty(self.args.device)
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
        models.set_random_state(processes.from_first(models.random_state()))
        if not self.writes:
            return
        with runs.writing_checkpoint(self.run, self.state.global_step) as folder:
            models.save_adapter(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            runs.write_json(folder / WINDOW, self.window.document() | {"tokens_seen": self.tokens_seen})
            proof.record(self, folder)
        keep, step = self.plan.recipe.train.save_total_limit, self.state.global_step
        runs.rotate(self.run, keep, self.state.best_global_step, step)
        self.clock = time.monotonic()

    def _run_epoch(self, **epoch: Any) -> None:
        """As the Trainer does, which would train a step beyond the end of a run that has ended within an epoch."""
        if not self.ended:
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
        rates = [self.args.learning_rate * rule(schedule.last_epoch) for rule in schedule.lr_lambdas]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"], group["initial_lr"] = rate, self.args.learning_rate
        schedule._last_lr = rates
        window = runs.read_json(Path(checkpoint) / WINDOW)
        self.tokens_seen = window.pop("tokens_seen")
        self.window = Window.read(window, self.args.device)
        if self.writes:
            runs.note_continuation(self.run, proof.check(self, Path(checkpoint), rates[0]))


def only(items: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The one item of a batch of one."""
    (item,) = items
    return item


class Director(TrainerCallback):
    """Writes the history, and decides when to evaluate, save and stop. Keeps no state of its own that a resume would
    lose."""

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer, self.plan = trainer, trainer.plan

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.trainer.live.start(state.global_step)
        state.compute_steps(args, state.max_steps)  # a checkpoint's state brings its old run's intervals
        self.trainer.ended = state.global_step > self.plan.start.step and self.has_ended(state)
        if self.trainer.writes:
            runs.trim_history(self.trainer.run, state.global_step)
        self.trainer.check_sharing()
        self.trainer.clock = time.monotonic()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.trainer.steps.epoch = state.global_step // self.plan.steps_per_epoch

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        if processes.any_of(self.trainer.interrupted):
            self.trainer.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_more: Any) -> None:
        if not {"loss", "eval_loss"} & set(logs):
            return
        if self.trainer.writes:
            runs.append_line(self.trainer.run.history, {"step": state.global_step, **logs})
        self.trainer.live.show(state.global_step, logs)
        if "loss" in logs and self.reached_target(state):
            control.should_evaluate = bool(self.plan.dataset.val)
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        losses = self.held_out_losses(state)
        if losses[-1] < min(losses[:-1], default=math.inf):
            state.best_metric, state.best_global_step = losses[-1], state.global_step
            control.should_save = True
        if self.out_of_patience(losses):
            control.should_save = control.should_training_stop = True

    def has_ended(self, state: TrainerState) -> bool:
        """Whether a checkpoint was its run's last: its process was killed before it wrote the adapter."""
        done = state.global_step >= state.max_steps or self.out_of_patience(self.held_out_losses(state))
        return done or self.reached_target(state)

    def held_out_losses(self, state: TrainerState) -> list[float]:
        """The losses of this run's evaluations."""
        new = [line for line in state.log_history if line["step"] > self.plan.start.step]
        return [line["eval_loss"] for line in new if "eval_loss" in line]

    def out_of_patience(self, losses: Sequence[float]) -> bool:
        """Whether so many evaluations went by without a better loss that early stopping ends the run."""
        patience = self.plan.recipe.train.early_stopping_patience
        return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def reached_target(self, state: TrainerState) -> bool:
        """Whether the last epoch's mean loss and accuracy are as good as `until` asks; the last epoch, so that every
        sample has its say and one easy step does not end a run."""
        until = self.plan.recipe.train.until
        since = state.global_step - self.plan.steps_per_epoch
        lines = [line for line in state.log_history if "loss" in line and line["step"] > since]
        if since < 0 or not lines or (until.loss is None and until.token_accuracy is None):
            return False
        loss, accuracy = runs.mean(lines, "loss"), runs.mean(lines, "mean_token_accuracy")
        return (until.loss is None or loss <= until.loss) and (
            until.token_accuracy is None or accuracy >= until.token_accuracy
        )
