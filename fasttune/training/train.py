"""THE MAIN PATH: from a plan to a trained adapter. `train` reads from top to bottom.

The loop is transformers' own Trainer (trainer.py); docs/design-notes.md says why it is not TRL's SFTTrainer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune import files
from fasttune.console import FasttuneError, Finding, _, error, say, show_findings, silence
from fasttune.data import token_cache
from fasttune.data.tokenize import Example, tokenize_samples
from fasttune.planning.strategy import Plan
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.checkpoints import damage_findings
from fasttune.runs.documents import RowRecord
from fasttune.runs.history import last_epoch, read_log_history
from fasttune.runs.store import Run
from fasttune.training import (
    device,
    distributed,
    finished_adapter,
    forgetting,
    hub,
    oom,
    probe_answers,
    provenance,
    resume_check,
)
from fasttune.training import model as models
from fasttune.training.callbacks import FirstStepCallback, WatchCallback
from fasttune.training.gradient_checkpointing import pays_to_offload
from fasttune.training.kept_epochs import EpochCallback
from fasttune.training.progress import PhaseTimer
from fasttune.training.row_budget import RowBudget, estimated_budget, longest_row, needs_gradient_checkpointing
from fasttune.training.step_dataset import StepDataset
from fasttune.training.stop import stop_on_signal
from fasttune.training.trainer import StepTrainer
from fasttune.training.watch import Watch

# isort: split
from transformers import TrainingArguments  # after trainer.py, which has imported Unsloth


@dataclass(frozen=True)
class RunRecord:
    """What a training came to, whether it reached its end (`finished`) or was stopped before.

    `first` and `last` are lines of history.jsonl, a parent's included; `final_loss` (nats a supervised token) and
    `final_accuracy` are means over the last epoch; `seconds` is the time in the training loop.
    """

    run: Run
    finished: bool
    steps: int
    first: dict[str, float]
    last: dict[str, float]
    final_loss: float
    final_accuracy: float
    best_eval_loss: float | None
    seconds: float


def train(
    plan: Plan,
    base: Path,
    root: Path,
    resume: Run | None = None,
    phases: PhaseTimer | None = None,
    replaced: Run | None = None,
    watch: Watch | None = None,
) -> RunRecord:
    """Train what the plan says on the base in a local folder, in a new run below `root` or in the stopped run `resume`.

    `phases` holds the start-up phases that were timed before; a new run notes that it is in place of `replaced`;
    `watch` is told of it. Raises FasttuneError for what the user can mend; what can be checked of data and model is
    checked before a run folder exists.
    """
    phases, load_base = phases or PhaseTimer(), watch.base.load if watch else models.load_base
    with phases("render", _("tokenizing")):
        data = tokenize(plan, base)
    show_findings([*plan.dataset.findings, *data.findings, *plan.findings])
    before = resume or (None if plan.start.kind == "base" else plan.start.parent)
    if before is not None:
        provenance.require_same_base(before, base)

    distributed.broadcast_from_rank0((plan, base, data.training, data.held_out))  # the workers load the base meanwhile
    device.refuse_spilling()
    is_there = watch is not None and watch.base.make_room(base, plan.recipe.model)
    with phases("load", _("loading the model")), oom.base_too_large(base, plan.recipe.model, in_memory=is_there):
        model = load_base(base, plan.recipe.model)
        steps = StepDataset(data.training, plan)
        rows = choose_rows(plan, model, steps, resume, before)
        model = with_adapter(model, plan, rows, steps)

    with files.disk_full_as_error(root, models.checkpoint_bytes(model)):
        run = resume or create_run(root, plan, base, rows, replaced)
        with exclusive(run):
            checkpoint = prepare(run, plan, rows, longest_answer(data.training))
            distributed.broadcast_from_rank0((run, rows, checkpoint))
            trainer = StepTrainer(model, training_arguments(plan, run), steps, data.held_out, plan, run)
            add_callbacks(trainer, phases, data, watch)
            seconds = run_training_loop(trainer, checkpoint)
            distributed.finalize()
            if trainer.complete:
                with phases("probe", _("answering the probe questions")) as show:
                    probe_answers.record(trainer, data.tokenizer, show)
                    forgetting.record(trainer, data.tokenizer)
            return finish(trainer, seconds)


def add_callbacks(trainer: StepTrainer, phases: PhaseTimer, data: TokenizedData, watch: Watch | None) -> None:
    """Give rank 0's trainer its callbacks besides RunCallback, which goes first."""
    trainer.add_callback(FirstStepCallback(trainer.run, phases, data.samples, data.cache_misses))
    if watch:
        trainer.add_callback(WatchCallback(trainer, watch))
    if trainer.plan.keeps_epochs:
        trainer.add_callback(EpochCallback(trainer, data.tokenizer))


def train_as_worker() -> None:
    """What a process of another rank than 0 does: its part of every step (distributed.py). It writes and prints
    nothing, and ends the process."""
    try:
        plan, base, training, held_out = distributed.broadcast_from_rank0(None)
    except FasttuneError:  # rank 0 has ended without training; its message and its exit code say why
        return
    with silence():
        device.refuse_spilling()
        model = models.load_base(base, plan.recipe.model)
        run, rows, checkpoint = distributed.broadcast_from_rank0(None)
        steps = StepDataset(training, plan)
        model = with_adapter(model, plan, rows, steps)
        trainer = StepTrainer(model, training_arguments(plan, run), steps, held_out, plan, run)
        run_training_loop(trainer, checkpoint)
    distributed.exit_worker()


def load_record(run: Run) -> RunRecord:
    """The record of a run whose training is complete and whose export is not."""
    say(_("{run}: training is complete; exporting", run=run.id))
    store.set_current(run)  # the process may have been killed just before it did
    state = read_log_history(run)
    return make_record(run, True, state.global_step, state.log_history, state.best_metric, 0.0)


def make_record(
    run: Run,
    finished: bool,
    steps: int,
    history: Sequence[dict[str, float]],
    best_eval_loss: float | None,
    seconds: float,
) -> RunRecord:
    """The record of a run with at least one trained step, from the Trainer's log history."""
    lines = [line for line in history if "loss" in line]
    epoch = last_epoch(lines, documents.read_plan(run).steps_per_epoch)
    assert epoch is not None  # a run without a trained step is an error before this
    return RunRecord(run, finished, steps, lines[0], lines[-1], epoch.loss, epoch.accuracy, best_eval_loss, seconds)


# Before the first step ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedData:
    """The samples of a plan, tokenized. `cache_misses` of `samples` were not in the token cache."""

    tokenizer: Any
    training: Sequence[Example]
    held_out: Sequence[Example]
    findings: Sequence[Finding]
    samples: int
    cache_misses: int


def tokenize(plan: Plan, base: Path) -> TokenizedData:
    """Tokenize training and held-out samples together, so that all their problems are reported at once.

    Raises FasttuneError for samples that cannot be trained on.
    """
    recipe, cache, tokenizer = plan.recipe, token_cache.Cache(), models.load_tokenizer(base)
    count, samples = len(plan.dataset.trained), (*plan.dataset.trained, *plan.dataset.held_out)
    tokenized = tokenize_samples(samples, tokenizer, recipe.data, recipe.model.max_seq_length, cache)
    training, held_out = tokenized.examples[:count], tokenized.examples[count:]
    findings = [*tokenized.findings, *hub.no_instruct_model(tokenizer, recipe.model.base)]
    return TokenizedData(tokenizer, training, held_out, findings, len(samples), cache.rendered)


def longest_answer(examples: Sequence[Example]) -> int:
    """The tokens of the longest supervised span of the samples; its end token counts."""
    return max((end - start for example in examples for start, end in example.supervised), default=0)


def with_adapter(model: Any, plan: Plan, rows: RowRecord, steps: StepDataset) -> Any:
    """The base with LoRA weights, fresh or those of the parent's adapter that the plan starts from."""
    recipe, checkpointing = plan.recipe, rows.gradient_checkpointing
    longest = longest_row(steps.plan(steps[0], rows.tokens_per_row).rows)
    offload = pays_to_offload(models.memory_shape(model), longest, device.gpu_memory())
    model = models.add_lora(model, recipe.lora, recipe.train.seed, checkpointing=checkpointing, offload=offload)
    model.peft_config["default"].base_model_name_or_path = recipe.model.base
    if plan.start.adapter is not None:
        models.load_adapter(model, plan.start.adapter)
    return model


def choose_rows(plan: Plan, model: Any, steps: StepDataset, resume: Run | None, before: Run | None) -> RowRecord:
    """How many tokens a row may hold, and whether to use gradient checkpointing: as the recipe says, or for "auto" as
    in the run `before` or by an estimate from the free memory."""
    requested, checkpointing = plan.recipe.train.tokens_per_row, plan.recipe.train.gradient_checkpointing
    known = documents.read_provenance(before).rows if before else None
    budget = known_row_budget(requested, known, resumes=resume is not None) if known else None
    free, shape = device.free_memory(), models.memory_shape(model)
    if budget is None:
        budget = RowBudget(estimated_budget(free, shape, checkpointing) if requested == "auto" else int(requested))
    if checkpointing == "auto":
        was_on = resume is not None and known is not None and known.gradient_checkpointing
        was_measured = resume is not None and budget.measured is not None  # then it is what that step said
        checkpointing = was_on or (
            not was_measured and needs_gradient_checkpointing(free, shape, steps.plan(steps[0], budget.now).rows)
        )
    return budget.record(requested, checkpointing=checkpointing)


def known_row_budget(requested: int | str, known: RowRecord, *, resumes: bool) -> RowBudget | None:
    """For a resumed run its own budget with all changes, so that its steps are laid out as before (E2); for a continued
    one what its parent ended with. None where the recipe requests another number now."""
    if requested not in ("auto", known.rows_asked):
        return None
    return RowBudget.read(known) if resumes else RowBudget(known.tokens_per_row)


def create_run(root: Path, plan: Plan, base: Path, rows: RowRecord, replaced: Run | None) -> Run:
    """A new run folder with recipe, plan and provenance."""

    def fill(run: Run) -> None:
        shutil.copyfile(plan.recipe.path, run.recipe)
        documents.write(run.plan, plan.document())
        documents.write(run.provenance, provenance.collect(plan, base, device.device_type(), rows))
        if replaced:
            store.replace_by(replaced, run)

    return store.create(root, plan.recipe.name, plan.recipe.strategy, fill)


@contextlib.contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Hold a run's lock; a run whose training never begins in the block is removed again.

    Raises FasttuneError where another process holds the lock, or has trained the run before the lock was free.
    """
    with files.locked(run.lock, _("another process is training {run}", run=run.id)), checkpoints.unless_begun(run):
        if run.adapter.is_dir():
            raise error("run-is-locked", _("another process has trained {run} meanwhile", run=run.id))
        yield


def prepare(run: Run, plan: Plan, rows: RowRecord, longest: int) -> Path | None:
    """Clear what a stopped process left in the run's folder and record its rows; returns the checkpoint to start from,
    the run's newest whole one or the plan's. Damaged ones are named and skipped."""
    say(_("run {run} in {folder}", run=run.id, folder=run.folder))
    say(_("packing budget {tokens:,} tokens a row", tokens=rows.tokens_per_row))
    files.remove_partial(run.folder)
    files.remove_partial(run.checkpoints)
    files.remove_partial(run.epochs)
    documents.update_provenance(run, rows=rows, longest_answer=longest)
    checkpoint, flaws = checkpoints.newest_whole_checkpoint(run)
    show_findings(damage_findings(run, checkpoint, flaws))
    return checkpoint or plan.start.checkpoint


# The loop -----------------------------------------------------------------------------------------------------------


def training_arguments(plan: Plan, run: Run) -> TrainingArguments:
    """The recipe's settings as TrainingArguments."""
    settings = plan.recipe.train
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)  # the only way to tell the callback
    evaluates = bool(plan.dataset.held_out)
    return TrainingArguments(
        output_dir=str(run.folder),
        max_steps=plan.total_steps,
        per_device_train_batch_size=1,  # one item is a whole optimizer step
        gradient_accumulation_steps=1,
        learning_rate=settings.peak_learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optim,
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # the filter hides a diverged loss and waits for the device every step
        eval_strategy="steps" if evaluates else "no",
        eval_steps=(settings.eval_steps or plan.steps_per_epoch) if evaluates else None,
        save_strategy="steps",
        save_steps=settings.save_steps or plan.steps_per_epoch,
        report_to=[name for name in settings.report_to if name != "none" and distributed.rank() == 0] or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        average_tokens_across_devices=False,  # a step's loss is divided by its own number of supervised tokens
        use_cpu=device.device_type() == "cpu",
        **device.precision(plan.recipe.model),
    )


def run_training_loop(trainer: StepTrainer, checkpoint: Path | None) -> float:
    """Train from a checkpoint, or from where the plan starts; returns the seconds it took.

    Raises FasttuneError where the check batch does not score as it did.
    """
    start = trainer.plan.start
    if trainer.is_rank_zero and checkpoint is None and start.adapter is not None:
        documents.add_continuation(trainer.run, resume_check.check_adapter(trainer, start.adapter))
    began = time.monotonic()
    with stop_on_signal(trainer), contextlib.redirect_stdout(sys.stderr):  # Unsloth prints, and stdout is for data
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return time.monotonic() - began


# After the last step ------------------------------------------------------------------------------------------------


def finish(trainer: StepTrainer, seconds: float) -> RunRecord:
    """Write the adapter and the state of a complete run; a stopped run has its checkpoint. Returns the record.

    Raises FasttuneError where no step was trained.
    """
    run, state = trainer.run, trainer.state
    lines = [line for line in state.log_history if "loss" in line]
    if not lines or (state.global_step <= trainer.plan.start.step and not trainer.interrupted):
        raise error("nothing-trained", _("no step was trained"), where=run.id)
    if trainer.complete and trainer.args.should_save:
        files.write_json(run.trainer_state, dataclasses.asdict(state))
        finished_adapter.write(trainer)
        store.set_current(run)
    return make_record(run, trainer.complete, state.global_step, state.log_history, state.best_metric, seconds)
