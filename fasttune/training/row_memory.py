"""What a training does about the memory of its rows: sized by what the first step took, cut where memory ran out,
gradient checkpointing turned on or off, and all of it recorded, so that a resumed run lays its steps out as before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fasttune.console import Finding, _, say, show_findings
from fasttune.runs import checkpoints, documents
from fasttune.training import distributed, gradient_checkpointing, row_budget
from fasttune.training import model as models
from fasttune.training.oom import FailedRow, sample_too_large
from fasttune.training.row_budget import GIB

if TYPE_CHECKING:
    from fasttune.training.trainer import StepTrainer


def set_measured_budget(trainer: StepTrainer, tokens: int, free: int, taken: int) -> None:
    """With `tokens_per_row = "auto"`, size the rows from step 2 on by step 1, whose longest row of `tokens` tokens
    took `taken` of `free` bytes."""
    measured = row_budget.measured_budget(free, tokens, taken) if tokens >= row_budget.MEASURED_ROW else math.inf
    measured = distributed.all_reduce_min(measured)
    settings = trainer.plan.recipe.train
    is_set = trainer.row_budget.cuts or trainer.row_budget.measured or settings.tokens_per_row != "auto"
    if is_set or measured == math.inf:
        return
    if trainer.gradient_checkpointing and settings.gradient_checkpointing == "auto":
        shape = models.memory_shape(trainer.model)
        without = distributed.all_reduce_min(row_budget.budget_without_checkpointing(free, tokens, taken, shape) or 0)
        if without:
            gradient_checkpointing.disable(trainer.model)
            trainer.gradient_checkpointing, measured = False, without
            say(_("gradient checkpointing is off again: the first step took less memory than was expected"))
    trainer.row_budget.measured = 2, int(measured)
    record_rows(trainer)
    say(
        _(
            "packing budget now {budget:,} tokens a row ({tokens:,} tokens took {taken:.2f} of {free:.1f} GiB free)",
            budget=trainer.row_budget.now,
            tokens=tokens,
            taken=taken / GIB,
            free=free / GIB,
        )
    )


def reduce_memory(trainer: StepTrainer, moment: float, failed: FailedRow) -> None:
    """After a row ran out of memory: smaller rows or gradient checkpointing for the rest of the run, recorded for a
    resume. Raises FasttuneError where neither is left. The memory of CUDA graphs goes first; with several processes,
    which decide alike, rows get smaller all the same."""
    if trainer.graphs.give_way() and distributed.world_size() == 1:
        return
    row, auto = failed.row, trainer.plan.recipe.train.gradient_checkpointing == "auto"
    # Scoring keeps no activations, so gradient checkpointing would save nothing there.
    remedy = row_budget.choose_remedy(
        row, may_checkpoint=auto and not trainer.gradient_checkpointing and torch.is_grad_enabled()
    )
    if remedy == "none":
        has_checkpoint = bool(checkpoints.list_checkpoints(trainer.run))
        raise sample_too_large(failed, trainer.plan.recipe, trainer.gradient_checkpointing, has_checkpoint)
    if remedy == "gradient checkpointing":
        gradient_checkpointing.enable(trainer.model)
        trainer.gradient_checkpointing = True
        text = _("gradient checkpointing is now on; the result is the same")
    else:
        trainer.row_budget.cut(moment, row_budget.halved(row))
        text = _(
            "packing budget now {tokens:,} tokens a row, and the step is computed again; the result is the same",
            tokens=row_budget.halved(row),
        )
    record_rows(trainer)
    where = _("step {step}", step=math.ceil(moment - 0.5))
    what = _("out of memory in a row of {tokens} tokens", tokens=row.tokens)
    show_findings([Finding("out-of-memory", "warning", where, _("{problem}; {remedy}", problem=what, remedy=text))])


def record_rows(trainer: StepTrainer) -> None:
    """Write the row budget into provenance.json, so that a resumed run lays its steps out as before (E2)."""
    if trainer.is_rank_zero:
        rows = trainer.row_budget.record(trainer.rows_requested, checkpointing=trainer.gradient_checkpointing)
        documents.update_provenance(trainer.run, rows=rows)
