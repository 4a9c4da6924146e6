"""What to change for each thing that can be wrong with another trainer's training: the setting in its own spelling."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from fasttune.analysis.remedies import MORE, SLOWER, higher_rate
from fasttune.analysis.trainer_logs import TrainerLog
from fasttune.runs import bands


@dataclass(frozen=True)
class LogRemedies:
    """A setting of another trainer for each remedy, in its own spelling, without backticks."""

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


def of_log(log: TrainerLog, peak: float | None, best_epochs: float | None) -> LogRemedies:
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
    return LogRemedies(
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
