"""THE MAIN PATH: from a plan to a trained adapter. `train` reads from top to bottom.

The loop is transformers' own Trainer. A dataset item is one optimizer step, already laid out in rows (packing.py);
`StepTrainer.training_step` runs all of its rows and leaves the gradient of the step's mean loss. trl's SFTTrainer is
not used, docs/design-notes.md says why.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune import model as models
from fasttune import packing, provenance, runs
from fasttune.console import _, error, show_findings, talk
from fasttune.packing import Row, Step
from fasttune.render import Example, prompt_tokens, render_all
from fasttune.runs import Run
from fasttune.strategy import Plan

models.import_unsloth()  # before transformers' Trainer, which it patches

# isort: split
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fasttune import engine
from fasttune.live import LiveLine, Phases

GIB = 1024**3


@dataclass(frozen=True)
class RunRecord:
    """A training that has come to its end, or was stopped before it (`finished` is false): its figures and where it
    lies.

    `first` and `last` are lines of history.jsonl; `seconds` is the time in the training loop.
    """

    run: Run
    finished: bool
    steps: int
    first: dict[str, float]
    last: dict[str, float]
    best_eval_loss: float | None
    seconds: float


def train(plan: Plan, base: Path, root: Path, resume: Run | None = None) -> RunRecord:
    """Train what the plan says on the base in a local folder; `resume` goes on with a run that was stopped.

    Raises FasttuneError for what the user can mend; whatever the data and the model can be checked for is checked
    before a run folder exists.
    """
    recipe, phases = plan.recipe, Phases()
    with phases(_("tokenizing")):
        tokenizer = models.load_tokenizer(base)
        train_set = render_all(plan.dataset.train, tokenizer, recipe.data, recipe.model.max_seq_length)
        val_set = render_all(plan.dataset.val, tokenizer, recipe.data, recipe.model.max_seq_length)
    show_findings([*plan.dataset.findings, *train_set.findings])

    with phases(_("loading the model")):
        net = models.load(base, recipe.model)
        budget = remembered_budget(resume) or models.tokens_per_row(net, recipe.train.tokens_per_row)
        steps = Steps(train_set.examples, plan, budget)
        net = models.add_lora(net, recipe.lora, recipe.train.seed, checkpointing=wants_checkpointing(net, plan, steps))
        net.peft_config["default"].base_model_name_or_path = recipe.model.base

    run = resume or runs.create(root, recipe.name, recipe.strategy)
    with runs.locked(run.lock, _("another process is training {run}", run=run.id)):
        if resume is None:
            open_run(run, plan, base, budget)
            with phases(_("answering the probe questions with the base")):
                record_base_answers(run, plan, net, tokenizer)
        trainer = StepTrainer(net, arguments(plan, run), steps, eval_rows(val_set.examples, budget), plan, run)
        started = time.monotonic()
        with stoppable(trainer):
            trainer.train(resume_from_checkpoint=newest_checkpoint(run) if resume else None)
        return finish(trainer, time.monotonic() - started)


# Before the first step ----------------------------------------------------------------------------------------------


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


def eval_rows(examples: Sequence[Example], budget: int) -> tuple[Sequence[Example], list[Row]]:
    """The held-out samples and their rows, packed like the training ones."""
    if not examples:
        return examples, []
    return examples, list(packing.plan_step(examples, range(len(examples)), budget).rows)


def remembered_budget(resume: Run | None) -> int:
    """The tokens a row that a stopped run began with, so that going on cuts its steps alike (E2, bit for bit); else
    0."""
    return int(runs.read_json(resume.provenance)["tokens_per_row"]) if resume else 0


def wants_checkpointing(net: Any, plan: Plan, steps: Steps) -> bool:
    """The recipe's word on gradient checkpointing; "auto" decides by the first step's largest row and the free
    memory."""
    chosen = plan.recipe.train.gradient_checkpointing
    return models.needs_checkpointing(net, steps[0].rows) if chosen == "auto" else bool(chosen)


def open_run(run: Run, plan: Plan, base: Path, budget: int) -> None:
    """What a run folder holds before its first step."""
    shutil.copyfile(plan.recipe.path, run.recipe)
    runs.write_json(run.plan, plan.document())
    runs.write_json(run.provenance, provenance.collect(plan, base, models.device()) | {"tokens_per_row": budget})
    talk.print(_("run {run} in {folder}", run=run.id, folder=run.folder))


def record_base_answers(run: Run, plan: Plan, net: Any, tokenizer: Any) -> None:
    """The untrained base's answers to the probe questions: LoRA's B is zero now, so this network is the base."""
    answers = []
    for question in plan.recipe.probe.questions:
        prompt = prompt_tokens(question, plan.system, tokenizer)
        answers.append(
            {"question": question, "base": models.generate(net, tokenizer, prompt, plan.recipe.probe.max_new_tokens)}
        )
    runs.write_json(run.scores, {"probes": answers})


def arguments(plan: Plan, run: Run) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    settings = plan.recipe.train
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)  # the callback's only way to be told
    evaluates = bool(plan.dataset.val)
    return TrainingArguments(
        output_dir=str(run.folder),
        max_steps=plan.total_steps,
        per_device_train_batch_size=1,  # of steps: one item is a whole optimizer step
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optim,
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a diverged loss and wait for the device every step
        eval_strategy="steps" if evaluates else "no",
        eval_steps=(settings.eval_steps or plan.steps_per_epoch) if evaluates else None,
        save_strategy="steps",
        save_steps=settings.save_steps or plan.steps_per_epoch,
        report_to=[name for name in settings.report_to if name != "none"] or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        average_tokens_across_devices=False,  # a step is normalised by its own count of supervised tokens
        use_cpu=models.device() == "cpu",
        **models.precision(),
    )


def newest_checkpoint(run: Run) -> str | None:
    """The newest whole checkpoint of a stopped run; damaged ones are named and passed over."""
    for checkpoint in reversed(runs.list_checkpoints(run)):
        flaw = runs.damage(checkpoint)
        if not flaw:
            return str(checkpoint)
        talk.print(_("{checkpoint} is damaged and is not used: {flaw}", checkpoint=checkpoint, flaw=flaw))
    return None


# The loop -----------------------------------------------------------------------------------------------------------


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
        self.plan, self.run, self.held_out = plan, run, held_out
        self.interrupted = False
        self.window = Window.empty(args.device)
        self.tokens_seen = 0
        self.clock = 0.0
        self.remove_callback(PrinterCallback)
        self.add_callback(Director(self))
        self.add_callback(LiveLine(plan.total_steps))

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Step]:
        """In order, one step an item, on every process: a step is split over processes by its rows, not by items."""
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=only)

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
            loss, hits = self.row_loss(self.train_dataset.examples, row)
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

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Loss and accuracy on the held-out samples, packed; logits are never kept."""
        examples, rows = self.held_out
        supervised = sum(packing.supervised_tokens(example) for example in examples)
        self.model.eval()
        with torch.no_grad():
            sums = [self.row_loss(examples, row) for row in rows]
        self.model.train()
        metrics = {
            "eval_loss": sum(loss.item() for loss, _hits in sums) / supervised,
            "eval_mean_token_accuracy": sum(hits.item() for _loss, hits in sums) / supervised,
        }
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock = time.monotonic()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log with the loss and the rates of the steps since the last one."""
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
        with runs.writing_checkpoint(self.run, self.state.global_step) as folder:
            save_adapter(self.model, folder)
            self._save_optimizer_and_scheduler(folder)
            self._save_scaler(folder)
            self._save_rng_state(folder)
            self.state.save_to_json(folder / "trainer_state.json")
        runs.rotate(self.run, self.plan.recipe.train.save_total_limit, self.state.best_global_step)
        self.clock = time.monotonic()


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
        done = [line for line in state.log_history if "num_tokens" in line]
        self.trainer.tokens_seen = int(done[-1]["num_tokens"]) if done else 0
        runs.trim_history(self.trainer.run, state.global_step)
        self.trainer.clock = time.monotonic()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        self.trainer.train_dataset.epoch = state.global_step // self.plan.steps_per_epoch

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        if self.trainer.interrupted:
            control.should_log = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_more: Any) -> None:
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & set(logs):
            return
        runs.append_line(self.trainer.run.history, {"step": state.global_step, **logs})
        if "loss" in logs and self.reached_target(state):
            control.should_evaluate = bool(self.plan.dataset.val)
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_more: Any) -> None:
        losses = [line["eval_loss"] for line in state.log_history if "eval_loss" in line]
        best = losses.index(min(losses))
        if best == len(losses) - 1:
            state.best_metric, state.best_global_step = losses[-1], state.global_step
            control.should_save = True
        patience = self.plan.recipe.train.early_stopping_patience
        if patience and len(losses) - 1 - best >= patience:
            control.should_save = control.should_training_stop = True

    def reached_target(self, state: TrainerState) -> bool:
        """Whether the last epoch's mean loss and accuracy are as good as `until` asks; the last epoch, so that every
        sample has its say and one easy step does not end a run."""
        until = self.plan.recipe.train.until
        since = state.global_step - self.plan.steps_per_epoch
        lines = [line for line in state.log_history if "loss" in line and line["step"] > since]
        if since < 0 or (until.loss is None and until.token_accuracy is None):
            return False
        loss = sum(line["loss"] for line in lines) / len(lines)
        accuracy = sum(line["mean_token_accuracy"] for line in lines) / len(lines)
        return (until.loss is None or loss <= until.loss) and (
            until.token_accuracy is None or accuracy >= until.token_accuracy
        )


@contextlib.contextmanager
def stoppable(trainer: StepTrainer) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends training after the current step with a checkpoint; a second one at once."""

    def stop(_signal: int, _frame: Any) -> None:
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True
        talk.print(_("stopping after this step; press Ctrl-C again to stop at once"))

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# After the last step ------------------------------------------------------------------------------------------------


def finish(trainer: StepTrainer, seconds: float) -> RunRecord:
    """Write what a finished run has: its adapter and state; a stopped run has its checkpoint and nothing else."""
    run, state = trainer.run, trainer.state
    lines = [line for line in state.log_history if "loss" in line]
    if not lines:
        raise error("nothing-trained", _("no step was trained"), where=run.id)
    finished = not trainer.interrupted or state.global_step >= state.max_steps
    if finished and trainer.args.should_save:
        state.save_to_json(run.trainer_state)
        write_adapter(trainer)
        runs.set_current(run)
    best = state.best_metric
    return RunRecord(run, finished, state.global_step, lines[0], lines[-1], best, seconds)


def write_adapter(trainer: StepTrainer) -> None:
    """The run's adapter: the last weights, or the best checkpoint's where early stopping was asked for."""
    best = trainer.run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
    with runs.whole_folder(trainer.run.adapter) as folder:
        if trainer.plan.recipe.train.early_stopping_patience and best.is_dir():
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(best / name, folder / name)
        else:
            save_adapter(trainer.model, folder)


def save_adapter(net: Any, folder: Path) -> None:
    """LoRA weights in PEFT's layout, safetensors."""
    net.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
