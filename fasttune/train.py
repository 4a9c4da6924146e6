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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune import memory, processes, proof, provenance, runs, tokens
from fasttune import model as models
from fasttune.console import _, error, say, show_findings, silence
from fasttune.live import Phases
from fasttune.memory import Budgets
from fasttune.render import prompt_tokens, render_all
from fasttune.runs import Run
from fasttune.strategy import Plan, damaged_checkpoints
from fasttune.trainer import Steps, StepTrainer

# isort: split
from transformers import TrainerCallback, TrainingArguments  # after trainer.py, which has imported Unsloth


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
    recipe, phases, cache = plan.recipe, phases or Phases(), tokens.Cache()
    with phases("render", _("tokenizing")):
        tokenizer = models.load_tokenizer(base)
        samples = (*plan.dataset.train, *plan.dataset.val)  # together, so that their problems are named together
        rendered = render_all(samples, tokenizer, recipe.data, recipe.model.max_seq_length, cache)
        training = rendered.examples[: len(plan.dataset.train)]
        held_out = rendered.examples[len(plan.dataset.train) :]
    show_findings([*plan.dataset.findings, *rendered.findings, *plan.findings])

    before = resume or (None if plan.start.kind == "base" else plan.start.parent)
    if before is not None:
        provenance.require_same_base(before, base)
    processes.from_first((plan, base, training, held_out))  # the other processes load the base meanwhile
    with phases("load", _("loading the model")):
        net = models.load(base, recipe.model)
        steps = Steps(training, plan)
        limits = row_limits(plan, net, steps, resume, before)
        net = with_adapter(net, plan, limits)

    with runs.room_for(root, checkpoint_bytes(net)):
        run = resume or runs.create(
            root, recipe.name, recipe.strategy, lambda new: open_run(new, plan, base, limits)
        )  # fmt: skip
        with runs.locked(run.lock, _("another process is training {run}", run=run.id)), runs.unless_begun(run):
            if run.adapter.is_dir():
                raise error("run-is-locked", _("another process has trained {run} meanwhile", run=run.id))
            say(_("run {run} in {folder}", run=run.id, folder=run.folder))
            say(_("rows of at most {tokens} tokens", tokens=limits["tokens_per_row"]))
            runs.remove_halves(run.folder)
            runs.remove_halves(run.checkpoints)
            runs.note(run, limits)
            checkpoint = newest_checkpoint(run) or plan.start.checkpoint
            processes.from_first((run, limits, checkpoint))
            trainer = StepTrainer(net, arguments(plan, run), steps, held_out, plan, run)
            trainer.add_callback(FirstStep(run, phases, {"samples": len(samples), "rendered": cache.rendered}))
            seconds = fit(trainer, checkpoint)
            processes.end()
            if trainer.complete:
                with phases("probe", _("answering the probe questions")):
                    record_answers(trainer, tokenizer)
            return finish(trainer, seconds)


def train_along() -> None:
    """What a process beside the first one does: its part of every step, as the first one says (processes.py). It writes
    and says nothing."""
    try:
        plan, base, training, held_out = processes.from_first(None)
    except RuntimeError:  # the first process has ended without training: its message and its exit code tell why
        return
    with silence():
        net = models.load(base, plan.recipe.model)
        run, limits, checkpoint = processes.from_first(None)
        net = with_adapter(net, plan, limits)
        trainer = StepTrainer(net, arguments(plan, run), Steps(training, plan), held_out, plan, run)
        fit(trainer, checkpoint)
    processes.leave()


def with_adapter(net: Any, plan: Plan, limits: dict[str, Any]) -> Any:
    """The base with LoRA on it, fresh or with the weights that the plan starts from."""
    recipe = plan.recipe
    net = models.add_lora(net, recipe.lora, recipe.train.seed, checkpointing=limits["gradient_checkpointing"])
    net.peft_config["default"].base_model_name_or_path = recipe.model.base
    if plan.start.kind == "adapter" and plan.start.parent is not None:
        models.load_adapter(net, plan.start.parent.adapter)
    return net


def fit(trainer: StepTrainer, checkpoint: Path | None) -> float:
    """Train from a checkpoint, or from where the plan starts; returns the seconds it took."""
    start = trainer.plan.start
    if trainer.writes and checkpoint is None and start.kind == "adapter" and start.parent is not None:
        runs.note_continuation(trainer.run, proof.check_weights(trainer, start.parent.adapter))
    began = time.monotonic()
    with stoppable(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return time.monotonic() - began


def recall(run: Run) -> RunRecord:
    """The record of a run that was trained before and whose files were not made yet."""
    say(_("{run} is trained; going on with its files", run=run.id))
    runs.set_current(run)  # it may have been killed just before it did that
    state = runs.read_json(run.trainer_state)
    return make_record(run, True, state["global_step"], state["log_history"], state["best_metric"], 0.0)


def make_record(
    run: Run, finished: bool, steps: int, history: list[dict[str, float]], best_eval_loss: float | None, seconds: float
) -> RunRecord:
    """A record from the Trainer's log history."""
    lines = [line for line in history if "loss" in line]
    epoch = runs.last_epoch(lines, runs.read_json(run.plan)["steps_per_epoch"])
    loss, accuracy = runs.mean(epoch, "loss"), runs.mean(epoch, "mean_token_accuracy")
    return RunRecord(run, finished, steps, lines[0], lines[-1], loss, accuracy, best_eval_loss, seconds)


# Before the first step ----------------------------------------------------------------------------------------------


def row_limits(plan: Plan, net: Any, steps: Steps, resume: Run | None, before: Run | None) -> dict[str, Any]:
    """The fields of provenance.json that say what a row may take: tokens, and whether activations are recomputed."""
    settings = plan.recipe.train
    known = runs.read_json(before.provenance) if before else {}
    budgets = remembered_budgets(settings.tokens_per_row, known, resumes=resume is not None)
    free, shape, recomputes = models.free_memory(), models.shape(net), settings.gradient_checkpointing
    if budgets is None:
        auto = settings.tokens_per_row == "auto"
        budgets = Budgets(memory.estimated_budget(free, shape, recomputes) if auto else int(settings.tokens_per_row))
    if recomputes == "auto":
        first = steps.plan(steps[0], budgets.now).rows
        recomputes = (resume and known.get("gradient_checkpointing")) or memory.needs_recomputation(free, shape, first)
    return budgets.document() | {"rows_asked": settings.tokens_per_row, "gradient_checkpointing": bool(recomputes)}


def remembered_budgets(asked: int | str, known: dict[str, Any], *, resumes: bool) -> Budgets | None:
    """What the run that is resumed cut its rows to and when, so that its steps are cut alike (E2, bit for bit), or what
    the run that is continued had come to; none where the recipe says another number now."""
    if not known or asked not in ("auto", known.get("rows_asked")):
        return None
    return Budgets.read(known) if resumes else Budgets(known["tokens_per_row"])


def checkpoint_bytes(net: Any) -> int:
    """About what a checkpoint takes: the adapter and Adam's two moments in float32, and the small files."""
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    return 3 * 4 * trained + 2**20


def open_run(run: Run, plan: Plan, base: Path, limits: dict[str, Any]) -> None:
    """What a run folder holds when it appears."""
    shutil.copyfile(plan.recipe.path, run.recipe)
    runs.write_json(run.plan, plan.document())
    runs.write_json(run.provenance, provenance.collect(plan, base, models.device()) | limits)


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
        report_to=[name for name in settings.report_to if name != "none" and processes.rank() == 0] or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        average_tokens_across_devices=False,  # a step is normalised by its own count of supervised tokens
        use_cpu=models.device() == "cpu",
        **models.precision(plan.recipe.model),
    )


def newest_checkpoint(run: Run) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are named and passed over."""
    checkpoint, flaws = runs.newest_whole_checkpoint(run)
    show_findings(damaged_checkpoints(run, checkpoint, flaws))
    return checkpoint


class FirstStep(TrainerCallback):
    """Says how long the first step took, with all that is set up for it, and keeps the start-up phases' seconds."""

    def __init__(self, run: Run, phases: Phases, counts: dict[str, int]) -> None:
        self.run, self.phases, self.counts = run, phases, counts
        self.began = time.monotonic()
        self.over = False

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_more: Any) -> None:
        if self.over:
            return
        self.over = True
        next(p for p in model.parameters() if p.requires_grad).flatten()[0].item()  # waits for the device, this once
        self.phases.took("first_step", _("first step"), time.monotonic() - self.began)
        runs.note_start(self.run, {"step": state.global_step, "seconds": self.phases.seconds, **self.counts})


@contextlib.contextmanager
def stoppable(trainer: StepTrainer) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends training after the current step with a checkpoint; a second one at once."""

    def stop(_signal: int, _frame: Any) -> None:
        if trainer.interrupted and processes.count() > 1:
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
        runs.write_json(run.trainer_state, dataclasses.asdict(state))
        write_adapter(trainer)
        runs.set_current(run)
    return make_record(run, trainer.complete, state.global_step, state.log_history, state.best_metric, seconds)


def write_adapter(trainer: StepTrainer) -> None:
    """The run's adapter: the last weights, or the best checkpoint's where early stopping was asked for."""
    best = trainer.run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
    with runs.whole_folder(trainer.run.adapter) as folder:
        if trainer.plan.recipe.train.early_stopping_patience and best.is_dir():
            for name in ("adapter_config.json", "adapter_model.safetensors", proof.NAME):
                shutil.copyfile(best / name, folder / name)
        else:
            models.save_adapter(trainer.model, folder)
            proof.record(trainer, folder)


def record_answers(trainer: StepTrainer, tokenizer: Any) -> None:
    """The untrained base's answers to the probe questions: this network with its adapter switched off. The trained
    one's are its GGUF file's; where none is to be made, this network answers."""
    recipe, system = trainer.plan.recipe, trainer.plan.system
    prompts = [prompt_tokens(question, system, tokenizer) for question in recipe.probe.questions]

    def said() -> list[str]:
        return [models.generate(trainer.model, tokenizer, prompt, recipe.probe.max_new_tokens) for prompt in prompts]

    with trainer.model.disable_adapter():
        answers = {"question": recipe.probe.questions, "base": said()}
    if not recipe.export.gguf:
        answers["trained"] = said()
    probes = [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]
    runs.write_json(trainer.run.scores, {"probes": probes})
