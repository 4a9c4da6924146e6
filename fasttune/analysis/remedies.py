"""What to type or to change for each thing that can be wrong with a training: complete fasttune commands for runs of
our own, the setting in the trainer's own spelling for those of others."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from fasttune.analysis.trainer_logs import TrainerLog
from fasttune.command import command_line, run_arguments, runs_option
from fasttune.planning.parents import OF_THE_CONTINUATION, OVERFIT_EPOCHS, began_with, resume_command, typed_value
from fasttune.runs import bands, documents, epochs, store
from fasttune.runs.documents import PlanDocument
from fasttune.runs.holding_out import share_to_hold_out
from fasttune.runs.store import Run

MORE = 1.5  # epochs to add, and the factor for other trainers' epochs
SLOWER, FASTER = 0.25, 2.0  # factors of a learning rate that was too high, and of one on whose plateau nothing moved


@dataclass(frozen=True)
class Remedies:
    """A command or a setting for each remedy, without backticks."""

    continue_: str
    more_epochs: str
    fewer_epochs: str
    higher_learning_rate: str
    lower_learning_rate: str
    clip_gradients: str
    one_schedule: str
    hold_out: str
    look_at_mask: str
    other_numbers: str
    lower_rank: str
    higher_rank: str
    larger_base: str = ""
    talk: str = ""
    pick_best: str = ""


def of_run(
    run: Run, plan: PlanDocument, best_epochs: float | None, earlier: epochs.KeptEpoch | None = None
) -> Remedies:
    """The commands for a run of our own; `best_epochs` is where its held-out loss was at its best, `earlier` the epoch
    kept there, if one is."""
    train, lora = plan.values.get("train.learning_rate", 2e-4), plan.values.get("lora.r", 8)
    suits = bands.suiting_learning_rate(
        plan.epochs, plan.train_samples, plan.values.get("lora.alpha"), plan.values.get("model.base")
    )
    shorter = best_epochs or max(1.0, plan.epochs / 2)
    samples = plan.train_samples + (0 if isinstance(plan.values.get("data.val"), str) else plan.val_samples)
    return Remedies(
        continue_=continuing(run, plan, "incremental", f"continue.add_epochs={MORE}"),
        more_epochs=continuing(run, plan, "incremental", f"continue.add_epochs={MORE}"),
        fewer_epochs=continuing(run, plan, "retune", f"train.epochs={shorter:.3g}"),
        higher_learning_rate=continuing(run, plan, "retune", f"train.learning_rate={higher_rate(train, suits):.2g}"),
        lower_learning_rate=continuing(run, plan, "retune", f"train.learning_rate={train * SLOWER:.2g}"),
        clip_gradients=continuing(run, plan, "retune", "train.max_grad_norm=0.3"),
        one_schedule=continuing(run, plan, "retune", f"train.epochs={plan.epochs:.3g}"),
        hold_out=anew(run, plan, f"data.val={share_to_hold_out(samples)}"),
        look_at_mask=look_at_mask(run),
        other_numbers=anew(run, plan, "model.dtype=float32"),
        lower_rank=continuing(run, plan, "retune", f"lora.r={max(4, lora // 2)}"),
        higher_rank=continuing(run, plan, "retune", "lora.r=8"),
        larger_base=anew(run, plan, "model.base=Qwen/Qwen2.5-1.5B-Instruct"),
        talk=command_line(["chat", run.id, *runs_option(run.root)]),
        pick_best=pick(run, earlier),
    )


def pick(run: Run, epoch: epochs.KeptEpoch | None) -> str:
    """`fasttune pick` of a kept epoch; "" where there is none, and for a run that is not finished."""
    if epoch is None or run.status != "finished":
        return ""
    return epochs.pick_command(run, "--epoch", epochs.epoch_word(epoch.epoch))


def overrides(run: Run, replaced: tuple[str, ...]) -> list[str]:
    """The overrides that a run began with, as they are typed after --set, without those that are replaced."""
    given = began_with(run)
    return [f"{key}={typed_value(value)}" for key, value in given.items() if not key.startswith(replaced)]


def continuing(run: Run, plan: PlanDocument, strategy: str, override: str) -> str:
    """`fasttune run` of the run's recipe that continues from it with one override, or with none where it is "".

    A run that was not finished can't be continued from: it is resumed, or trained anew with the override.
    """
    if run.status != "finished":
        return resume_command(run) if strategy != "retune" else anew(run, plan, override)
    key = override.partition("=")[0]
    kept = overrides(run, (*OF_THE_CONTINUATION, *([key] if key else [])))
    if store.current(run.root, run.series) != run:
        kept.append(f"continue.parent={run.id}")
    long = strategy == "incremental" and plan.epochs + MORE > OVERFIT_EPOCHS
    long = long or (strategy == "retune" and key != "train.epochs" and plan.epochs > OVERFIT_EPOCHS)
    kept += [override] if override else []
    return command_line(run_arguments(run.recipe, run.root, kept, strategy=strategy, allow_overfit=long))


def anew(run: Run, plan: PlanDocument, override: str) -> str:
    """`fasttune run` of the run's recipe from the base with one override."""
    kept = overrides(run, ("strategy", "continue.", override.partition("=")[0]))
    strategy = ["strategy=fresh"] * (plan.strategy != "fresh")
    return command_line(
        run_arguments(run.recipe, run.root, [*kept, *strategy, override], on_existing="new",
                      allow_overfit=plan.epochs > OVERFIT_EPOCHS and "train.epochs" not in override)
    )  # fmt: skip


def augmenting(run: Run, plan: PlanDocument) -> str:
    """`fasttune run` of the run's recipe that continues from it by `augment`, whose epochs suit the samples' number."""
    return continuing(run, plan, "augment", "")


def check_command(run: Run) -> str:
    """`fasttune check` of the run's recipe."""
    given = [word for override in overrides(run, OF_THE_CONTINUATION) for word in ("--set", override)]
    return command_line(["check", str(run.recipe), *given])


def export_command(run: Run) -> str:
    """`fasttune export` of the run."""
    return command_line(["export", run.id, *runs_option(run.root)])


def look_at_mask(run: Run) -> str:
    """`fasttune show` of the first sample, by the run's recipe."""
    files = documents.read_provenance(run).data.train if run.provenance.is_file() else ("train.jsonl",)
    return command_line(["show", f"{files[0]}:1", "--recipe", str(run.recipe)])


# Other trainers -----------------------------------------------------------------------------------------------------


def of_log(log: TrainerLog, peak: float | None, best_epochs: float | None) -> Remedies:
    """The settings for another trainer's training, in its own spelling."""
    epochs = log.epochs or log.attempts[-1].points[-1].epoch or 3.0
    rate = peak or bands.RATE_IN_BAND
    longer = typed(log, "num_train_epochs", f"{epochs + max(MORE, epochs / 2):.3g}")
    resumed = typed(log, "resume_from_checkpoint", newest_checkpoint(log))
    held_out = {"Hugging Face": "eval_dataset=…, eval_strategy='epoch'", "LLaMA-Factory": "val_size: 0.1",
                "ms-swift": "--split_dataset_ratio 0.1"}  # fmt: skip
    rank = {"Hugging Face": "r", "LLaMA-Factory": "lora_rank", "ms-swift": "lora_rank"}[log.trainer]
    look = {"Hugging Face": "assistant_only_loss=True", "LLaMA-Factory": "train_on_prompt: false",
            "ms-swift": "--loss_scale default"}  # fmt: skip
    return Remedies(
        continue_=resumed,
        more_epochs=f"{longer} {resumed}" if log.checkpoints else longer,
        fewer_epochs=typed(log, "num_train_epochs", f"{best_epochs or max(1.0, epochs / 2):.3g}"),
        higher_learning_rate=typed(log, "learning_rate", f"{higher_rate(rate, bands.RATE_IN_BAND):.2g}"),
        lower_learning_rate=typed(log, "learning_rate", f"{rate * SLOWER:.2g}"),
        clip_gradients=typed(log, "max_grad_norm", "0.3"),
        one_schedule=longer if log.epochs is None else typed(log, "num_train_epochs", f"{epochs:.3g}"),
        hold_out=held_out[log.trainer],
        look_at_mask=look[log.trainer],
        other_numbers=typed(log, "bf16", {"Hugging Face": "True"}.get(log.trainer, "true")),
        lower_rank=typed(log, rank, str(max(4, (log.rank or 16) // 2))),
        higher_rank=typed(log, rank, "8"),
    )


def higher_rate(rate: float, suits: float) -> float:
    """The learning rate to try after one that moved nothing: the one that suits, or a higher one where it had that."""
    return suits if rate < suits else rate * FASTER


def typed(log: TrainerLog, key: str, value: str) -> str:
    """A setting as the trainer takes it: a keyword argument, a line of YAML, or an option."""
    if log.trainer == "LLaMA-Factory":
        return f"{key}: {value}"
    if log.trainer == "ms-swift":
        return f"--{key} {shlex.quote(value)}"
    quoted = value if value.replace(".", "").replace("e-", "").isdigit() or value in ("True", "False") else repr(value)
    return f"{key}={quoted}"


def newest_checkpoint(log: TrainerLog) -> str:
    """The newest checkpoint in the folder of a log; a placeholder where it has none."""
    number = max(log.checkpoints, default=None)
    return str(log.folder / f"checkpoint-{number if number is not None else 'N'}")
