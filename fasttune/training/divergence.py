"""A training that diverged: it is stopped at the first loss, gradient or held-out loss that is not a finite number.

Asked where the figures are on the host anyway: at each logged step, evaluation and checkpoint, and for the adapter. So
no step waits for the device, and no weights that are not finite are ever saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fasttune.command import command_line
from fasttune.console import FasttuneError, _, error
from fasttune.planning.strategy import Plan
from fasttune.runs import checkpoints
from fasttune.runs.store import Run

FIGURES = ("loss", "grad_norm", "eval_loss")


def require_finite(figures: Mapping[str, float], plan: Plan, run: Run, step: int) -> None:
    """Raises FasttuneError with the code not-finite where the loss, the gradient norm or the held-out loss is none."""
    for name in FIGURES:
        if not math.isfinite(figures.get(name, 0.0)):
            raise diverged(name, figures[name], plan, run, step)


def diverged(name: str, value: float, plan: Plan, run: Run, step: int) -> FasttuneError:
    """The error for a figure that is not finite: the last good checkpoint, and the likely causes in their order."""
    checkpoint, _flaws = checkpoints.newest_whole_checkpoint(run)
    what = _("training diverged: at step {step} {figure} is {value}", step=step, figure=name, value=value)
    kept = _("no checkpoint was written before; nothing of this run is of use")
    if checkpoint is not None:
        kept = _("the last good checkpoint is {checkpoint}; nothing after it was saved", checkpoint=checkpoint)
    causes = _(
        "try in this order, each with `--on-existing new`: attention (`--set train.shared_prefix=false`); dtype "
        "(`--set model.dtype=float32`); mask and data (`{show}`: is anything else supervised than the answers?); "
        "learning rate (`--set train.learning_rate={rate:.3g}`)",
        show=command_line(["show", plan.dataset.train[0].id, "--recipe", str(plan.recipe.path)]),
        rate=plan.recipe.train.peak_learning_rate / 3,
    )
    if step <= plan.start.step + 1:
        causes = _("{causes}; at the very first step the base's own weights may be damaged", causes=causes)
    return error("not-finite", what, where=run.id, why=kept, fix=causes)
