"""THE MAIN PATH: from a plan to a trained adapter. `train` reads from top to bottom.

The loop is transformers' own Trainer (trainer.py). trl's SFTTrainer is not used, docs/design-notes.md says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune import files
from fasttune.console import _, error, say, show_findings, silence
from fasttune.data import token_cache
from fasttune.data.tokenize import prompt_tokens, tokenize_samples
from fasttune.planning.strategy import Plan
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.checkpoints import damage_findings
from fasttune.runs.documents import Probe, RowRecord, Scores
from fasttune.runs.history import last_epoch
from fasttune.runs.store import Run
from fasttune.training import device, distributed, provenance, resume_check
from fasttune.training import model as models
from fasttune.training.callbacks import FirstStepCallback
from fasttune.training.progress import Phases
from fasttune.training.row_budget import RowBudget, estimated_budget, needs_recomputation
from fasttune.training.step_dataset import StepDataset
from fasttune.training.trainer import StepTrainer

# isort: split
from transformers import TrainingArguments  # after trainer.py, which has imported Unsloth


@dataclass(frozen=True)
class RunRecord:
    """A training that came to its end, or was stopped before it (`finished` is false): its figures and where it lies.

    `first` and `last` are lines of history.jsonl, those of the parents included; `final_loss` and `final_accuracy` are
    means of the last epoch, in which every sample had its say; `seconds` is the time in the training loop.
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


def train(plan: Plan, base: Path, root: Path, resume: Run | None = None, phases: Phases | None = None) -> RunRecord:
    """Train what the plan says on the base in a local folder; `resume` goes on with a run that was stopped, `phases`
    with the start-up phases that were timed before.

    Raises FasttuneError for what the user can mend; whatever the data and the model can be checked for is checked
    before a run folder exists.
    """
    recipe, phases, cache = plan.recipe, phases or Phases(), token_cache.Cache()
    with phases("render", _("tokenizing")):
        tokenizer = models.load_tokenizer(base)
        samples = (*plan.dataset.train, *plan.dataset.held_out)  # together, so that their problems are named together
        rendered = tokenize_samples(samples, tokenizer, recipe.data, recipe.model.max_seq_length, cache)
        training = rendered.examples[: len(plan.dataset.train)]
        held_out = rendered.examples[len(plan.dataset.train) :]
    show_findings([*plan.dataset.findings, *rendered.findings, *plan.findings])

    before = resume or (None if plan.start.kind == "base" else plan.start.parent)
    if before is not None:
        provenance.require_same_base(before, base)
    distributed.broadcast_from_rank0((plan, base, training, held_out))  # the other processes load the base meanwhile
    with phases("load", _("loading the model")):
        model = models.load(base, recipe.model)
        steps = StepDataset(training, plan)
        rows = decide_rows(plan, model, steps, resume, before)
        model = with_adapter(model, plan, rows)

    with files.disk_full_as_error(root, checkpoint_bytes(model)):
        run = resume or store.create(
            root, recipe.name, recipe.strategy, lambda new: open_run(new, plan, base, rows)
        )  # fmt: skip
        with files.locked(run.lock, _("another process is training {run}", run=run.id)), checkpoints.unless_begun(run):
            if run.adapter.is_dir():
                raise error("run-is-locked", _("another process has trained {run} meanwhile", run=run.id))
            say(_("run {run} in {folder}", run=run.id, folder=run.folder))
            say(_("rows of at most {tokens} tokens", tokens=rows.tokens_per_row))
            files.remove_partial(run.folder)
            files.remove_partial(run.checkpoints)
            documents.update_provenance(run, rows=rows)
            checkpoint = newest_checkpoint(run) or plan.start.checkpoint
            distributed.broadcast_from_rank0((run, rows, checkpoint))
            trainer = StepTrainer(model, arguments(plan, run), steps, held_out, plan, run)
            trainer.add_callback(FirstStepCallback(run, phases, len(samples), cache.rendered))
            seconds = fit(trainer, checkpoint)
            distributed.finalize()
            if trainer.complete:
                with phases("probe", _("answering the probe questions")):
                    record_answers(trainer, tokenizer)
            return finish(trainer, seconds)


def train_as_worker() -> None:
    """What a process beside the first one does: its part of every step, as the first one says (processes.py). It writes
    and says nothing."""
    try:
        plan, base, training, held_out = distributed.broadcast_from_rank0(None)
    except RuntimeError:  # the first process has ended without training: its message and its exit code tell why
        return
    with silence():
        model = models.load(base, plan.recipe.model)
        run, rows, checkpoint = distributed.broadcast_from_rank0(None)
        model = with_adapter(model, plan, rows)
        trainer = StepTrainer(model, arguments(plan, run), StepDataset(training, plan), held_out, plan, run)
        fit(trainer, checkpoint)
    distributed.exit_worker()


def with_adapter(model: Any, plan: Plan, rows: RowRecord) -> Any:
    """The base with LoRA on it, fresh or with the weights that the plan starts from."""
    recipe = plan.recipe
    model = models.add_lora(model, recipe.lora, recipe.train.seed, checkpointing=rows.gradient_checkpointing)
    model.peft_config["default"].base_model_name_or_path = recipe.model.base
    if plan.start.kind == "adapter" and plan.start.parent is not None:
        models.load_adapter(model, plan.start.parent.adapter)
    return model


def fit(trainer: StepTrainer, checkpoint: Path | None) -> float:
    """Train from a checkpoint, or from where the plan starts; returns the seconds it took."""
    start = trainer.plan.start
    if trainer.writes and checkpoint is None and start.kind == "adapter" and start.parent is not None:
        documents.add_continuation(trainer.run, resume_check.check_adapter(trainer, start.parent.adapter))
    began = time.monotonic()
    with stoppable(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return time.monotonic() - began


def recall(run: Run) -> RunRecord:
    """The record of a run that was trained before and whose files were not made yet."""
    say(_("{run} is trained; going on with its files", run=run.id))
    store.set_current(run)  # it may have been killed just before it did that
    state = documents.read_trainer_state(run)
    return make_record(run, True, state.global_step, state.log_history, state.best_metric, 0.0)


def make_record(
    run: Run,
    finished: bool,
    steps: int,
    history: Sequence[dict[str, float]],
    best_eval_loss: float | None,
    seconds: float,
) -> RunRecord:
    """A record from the Trainer's log history."""
    lines = [line for line in history if "loss" in line]
    epoch = last_epoch(lines, documents.read_plan(run).steps_per_epoch)
    assert epoch is not None  # a run without a trained step is an error before this
    return RunRecord(run, finished, steps, lines[0], lines[-1], epoch.loss, epoch.accuracy, best_eval_loss, seconds)


# Before the first step ----------------------------------------------------------------------------------------------


def decide_rows(plan: Plan, model: Any, steps: StepDataset, resume: Run | None, before: Run | None) -> RowRecord:
    """How many tokens a row may hold, and whether activations are recomputed (gradient checkpointing)."""
    asked, checkpointing = plan.recipe.train.tokens_per_row, plan.recipe.train.gradient_checkpointing
    known = documents.read_provenance(before).rows if before else None
    budget = known_row_budget(asked, known, resumes=resume is not None) if known else None
    free, shape = device.free_memory(), models.shape(model)
    if budget is None:
        budget = RowBudget(estimated_budget(free, shape, checkpointing) if asked == "auto" else int(asked))
    if checkpointing == "auto":
        was_on = resume is not None and known is not None and known.gradient_checkpointing
        checkpointing = was_on or needs_recomputation(free, shape, steps.plan(steps[0], budget.now).rows)
    return budget.record(asked, checkpointing=checkpointing)


def known_row_budget(asked: int | str, known: RowRecord, *, resumes: bool) -> RowBudget | None:
    """The row budget of the run that is resumed, step by step, so that its steps are laid out alike (E2, bit for bit),
    or the one that the parent ended with; None where the recipe asks for another number now."""
    if asked not in ("auto", known.rows_asked):
        return None
    return RowBudget.read(known) if resumes else RowBudget(known.tokens_per_row)


def checkpoint_bytes(model: Any) -> int:
    """About what a checkpoint takes: the adapter and Adam's two moments in float32, and the small files."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 3 * 4 * trained + 2**20


def open_run(run: Run, plan: Plan, base: Path, rows: RowRecord) -> None:
    """What a run folder holds when it appears."""
    shutil.copyfile(plan.recipe.path, run.recipe)
    documents.write(run.plan, plan.document())
    documents.write(run.provenance, provenance.collect(plan, base, device.device_type(), rows))


def arguments(plan: Plan, run: Run) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    settings = plan.recipe.train
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)  # the callback's only way to be told
    evaluates = bool(plan.dataset.held_out)
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
        report_to=[name for name in settings.report_to if name != "none" and distributed.rank() == 0] or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        average_tokens_across_devices=False,  # a step is normalised by its own count of supervised tokens
        use_cpu=device.device_type() == "cpu",
        **device.precision(plan.recipe.model),
    )


def newest_checkpoint(run: Run) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are named and passed over."""
    checkpoint, flaws = checkpoints.newest_whole_checkpoint(run)
    show_findings(damage_findings(run, checkpoint, flaws))
    return checkpoint


@contextlib.contextmanager
def stoppable(trainer: StepTrainer) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends training after the current step with a checkpoint; a second one at once."""

    def stop(_signal: int, _frame: Any) -> None:
        if trainer.interrupted and distributed.world_size() > 1:
            return  # torchrun sends its own signal after the terminal's, and ends by itself who takes too long
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True
        # Straight to the terminal: a signal can come in the middle of a print, and a file refuses a second writer then.
        os.write(2, (_("stopping after this step; press Ctrl-C again to stop at once") + "\n").encode())

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        trainer.live.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


# After the last step ------------------------------------------------------------------------------------------------


def finish(trainer: StepTrainer, seconds: float) -> RunRecord:
    """Write what a finished run has: its adapter and state; a stopped run has its checkpoint and nothing else."""
    run, state = trainer.run, trainer.state
    lines = [line for line in state.log_history if "loss" in line]
    if not lines or (state.global_step <= trainer.plan.start.step and not trainer.interrupted):
        raise error("nothing-trained", _("no step was trained"), where=run.id)
    if trainer.complete and trainer.args.should_save:
        files.write_json(run.trainer_state, dataclasses.asdict(state))
        write_adapter(trainer)
        store.set_current(run)
    return make_record(run, trainer.complete, state.global_step, state.log_history, state.best_metric, seconds)


def write_adapter(trainer: StepTrainer) -> None:
    """The run's adapter: the last weights, or the best checkpoint's where early stopping was asked for."""
    best = trainer.run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
    with files.whole_folder(trainer.run.adapter) as folder:
        if trainer.plan.recipe.train.early_stopping_patience and best.is_dir():
            for name in ("adapter_config.json", "adapter_model.safetensors", documents.CHECK_BATCH):
                shutil.copyfile(best / name, folder / name)
        else:
            models.save_adapter(trainer.model, folder)
            resume_check.record(trainer, folder)


def record_answers(trainer: StepTrainer, tokenizer: Any) -> None:
    """The untrained base's answers to the probe questions: this network with its adapter switched off. The trained
    one's are its GGUF file's; where none is to be made, this network answers."""
    recipe, system = trainer.plan.recipe, trainer.plan.system
    prompts = [prompt_tokens(question, system, tokenizer) for question in recipe.probe.questions]

    def answers() -> list[str]:
        return [models.generate(trainer.model, tokenizer, prompt, recipe.probe.max_new_tokens) for prompt in prompts]

    with trainer.model.disable_adapter():
        by_base = answers()
    by_adapter = [""] * len(prompts) if recipe.export.gguf else answers()
    probes = tuple(map(Probe, recipe.probe.questions, by_base, by_adapter))
    documents.write(trainer.run.scores, Scores(probes, documents.NOT_ASKED))
