"""The adapter of a run that has reached its end, with the checksums that export and continuation compare it with."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from fasttune import files
from fasttune.console import Finding, _, show_findings
from fasttune.runs import checkpoints
from fasttune.training import model as models
from fasttune.training import resume_check

if TYPE_CHECKING:
    from fasttune.training.trainer import StepTrainer


def write(trainer: StepTrainer) -> None:
    """Write the run's adapter: the last weights, or with early stopping those of the best checkpoint.

    A best checkpoint that is damaged is named, and the last weights are taken. Raises FasttuneError where a weight is
    not a finite number.
    """
    best = trainer.run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
    takes_best = bool(trainer.plan.recipe.train.early_stopping_patience) and best.is_dir()
    if takes_best and (flaw := checkpoints.find_damage(best)):
        what = _("{checkpoint} is damaged and is not used: {flaw}", checkpoint=best, flaw=flaw)
        why = _("the adapter holds the weights of the last step, not those of the lowest held-out loss")
        show_findings([Finding("checkpoint-damaged", "warning", trainer.run.id, what, why)])
        takes_best = False
    with files.whole_folder(trainer.run.adapter) as folder:
        if takes_best:
            for name in checkpoints.ADAPTER_FILES:
                shutil.copyfile(best / name, folder / name)
        else:
            models.save_trained_adapter(trainer.model, folder)
            resume_check.record(trainer, folder)
        step = trainer.state.best_global_step if takes_best else trainer.state.global_step
        checkpoints.write_manifest(folder, step, checkpoints.ADAPTER_FILES)
