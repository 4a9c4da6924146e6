"""The training loop: transformers' Trainer with whole optimizer steps as items.

A dataset item is one step, already laid out in rows (packing.py); `training_step` runs all of its rows and leaves the
gradient of the step's mean loss. Checkpoints are whole or absent, and every start from one is proven (proof.py).
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fasttune import model as models
from fasttune import packing, proof, runs
from fasttune.live import LiveLine
from fasttune.packing import Row, Step
from fasttune.render import Example
from fasttune.runs import Run
from fasttune.strategy import Plan

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fasttune import engine

GIB = 1024**3
WINDOW = "window.json"  # in a checkpoint: what is summed up for the next logged line


class Steps(torch.utils.data.Dataset[Step]):
    """The optimizer steps of an epoch; `epoch` is set at its beginning. Rows are planned when a step is asked for."""

    def __init__(self, examples: Sequence[Example], plan: Plan, budget: int) -> None:
        self.examples = examples
        self.settings = plan.recipe.train
        self.budget = budget
        self.shares = self.settings.shared_prefix and plan.recipe.lora.dropout == 0 and models.shares_prefixes()
        self.epoch = 0

    def __len__(self) -> int:
        return packing.steps_per_epoch(len(self.examples), self.settings.batch_size)

    def __getitem__(self, index: int) -> Step:
        batches = packing.epoch_batches(len(self.examples), self.settings.batch_size, self.settings.seed, self.epoch)
        return packing.plan_step(self.examples, batches[index], self.budget, shared_prefix=self.shares)


def eval_rows(examples: Sequence[Example], steps: Steps) -> tuple[Sequence[Example], list[Row]]:
    """The held-out samples and their rows: under the budget of the training ones, and sharing only where those do."""
    step = packing.plan_step(examples, range(len(examples)), steps.budget, shared_prefix=steps.shares)
    return examples, list(step.rows)


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
        held_out: tuple[Sequence[Example], list[Row]],
        plan: Plan,
        run: Run,
    ) -> None:
        super().__init__(net, args, train_dataset=steps, eval_dataset=held_out[1] or None)
        self.plan, self.run, self.steps, self.held_out = plan, run, steps, held_out
        self.examples = steps.examples
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

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Step]:
        """In order, one step an item: order and contents are the plan's, no sampler has a say."""
        return torch.utils.data.DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=only)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: Any
    ) -> tuple[list[Step], None]:
        """The next step; its supervised tokens are counted when it is planned."""
        return [next(epoch_iterator) for _batch in range(num_batches)], None

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run all rows of a step, leaving the gradient of its mean loss; returns that mean, detached."""
        self.model.train()
        window_loss, window_hits = self.window.loss.new_zeros(()), self.window.hits.new_zeros(())
        for row in inputs.rows:
            loss, hits = self.row_loss(self.examples, row)
            self.accelerator.backward(loss / inputs.supervised)
            window_loss += loss.detach()
            window_hits += hits
        now = time.monotonic()
        self.window.add(inputs, window_loss, window_hits, now - self.clock)
        self.tokens_seen += inputs.tokens
        self.clock = now
        return window_loss / inputs.supervised

    def row_loss(self, examples: Sequence[Example], row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and top-1 hits of one row."""
        batch = engine.collate(row, examples).to(self.args.device)
        with self.accelerator.autocast():
            hidden = models.hidden_states(self.model, batch)
            return engine.loss(hidden, models.head(self.model), batch)

    def score(self, examples: Sequence[Example], rows: Sequence[Row]) -> tuple[float, float]:
        """Mean loss and top-1 accuracy over the supervised tokens of some rows, without gradient."""
        supervised = sum(packing.supervised_tokens(example) for example in examples)
        self.model.eval()
        with torch.no_grad():
            sums = [self.row_loss(examples, row) for row in rows]
        self.model.train()
        return sum(loss.item() for loss, _h in sums) / supervised, sum(hits.item() for _l, hits in sums) / supervised

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Loss and accuracy on the held-out samples, packed; logits are never kept."""
        loss, accuracy = self.score(*self.held_out)
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

    def floating_point_ops(self, inputs: Step) -> int:
        """2 FLOPs a parameter and token forward, 4 backward; the head only for supervised tokens."""
        head = models.head(self.model).numel()
        body = self.model.num_parameters() - head
        return 6 * (body * inputs.computed_tokens + head * inputs.supervised)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Hugging Face's files in a folder that gets its name when all are there; then the oldest go."""
        if not self.args.should_save:
            return
        self.store_flos()
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
        runs.note_continuation(self.run, proof.check(self, Path(checkpoint), rates[0]))


def only(items: list[Step]) -> Step:
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
        runs.trim_history(self.trainer.run, state.global_step)
        self.trainer.clock = time.monotonic()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.trainer.steps.epoch = state.global_step // self.plan.steps_per_epoch

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        if self.trainer.interrupted:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_more: Any) -> None:
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & set(logs):
            return
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
