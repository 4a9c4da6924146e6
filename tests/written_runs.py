"""Run folders as training leaves them, written from a plan without torch: what planning reads of a run, and no weights."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from series import RECIPE, Series

from fasttune import pipeline
from fasttune.cli import train
from fasttune.console import Finding, UsageError
from fasttune.files import append_line, write_json
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning.strategy import Plan
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.documents import BaseRecord, DataRecord, Provenance, RowRecord, Scores
from fasttune.runs.store import Run

State = Literal["stopped", "trained", "finished"]  # trained: it has its adapter, its files are not made yet


def write_run(
    request: RunRequest, state: State = "finished", *, steps: int | None = None, held_out: Sequence[float] = ()
) -> Run:
    """The run of a request in its runs folder, with a checkpoint at its last step.

    `steps` is the step it came to where that is not the plan's total; `held_out` are losses logged at the last step.
    """
    plan = Planner().plan(request)
    run = store.create(request.root, plan.recipe.name, plan.recipe.strategy)
    shutil.copyfile(plan.recipe.path, run.recipe)
    documents.write(run.plan, plan.document())
    documents.write(run.provenance, provenance(plan))
    last = plan.total_steps if steps is None else steps
    write_history(run, range(plan.start.step + 1, last + 1), plan.steps_per_epoch, held_out=held_out)
    with checkpoints.writing_checkpoint(run, last) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if state != "stopped":
        lines = [json.loads(line) for line in run.history.read_text(encoding="utf-8").splitlines()]
        write_json(run.trainer_state, {"global_step": last, "log_history": lines, "best_metric": None})
        run.adapter.mkdir()
        documents.write(run.scores, Scores((), documents.NOT_ASKED if state == "trained" else None))
        store.set_current(run)
    return run


def write_history(
    run: Run,
    steps: Sequence[int],
    steps_per_epoch: int,
    *,
    loss: float = 0.2,
    accuracy: float = 0.9,
    held_out: Sequence[float] = (),
) -> None:
    """history.jsonl anew: every step with the same loss and accuracy, then the held-out losses."""
    run.history.unlink(missing_ok=True)
    for step in steps:
        epoch = step / steps_per_epoch
        append_line(run.history, {"step": step, "epoch": epoch, "loss": loss, "mean_token_accuracy": accuracy})
    for value in held_out:
        append_line(run.history, {"step": steps[-1], "epoch": steps[-1] / steps_per_epoch, "eval_loss": value})


def provenance(plan: Plan) -> Provenance:
    """A provenance.json with the plan's names and nothing of a machine."""
    model, data = plan.recipe.model, plan.recipe.data
    return Provenance(
        fasttune="0.1.0", commit="", created="2026-03-01T10:00:00+00:00", python="3.12", platform="Linux",
        command=("run", plan.recipe.path.name), device={"kind": "cpu"}, packages={},
        base=BaseRecord(model.base, model.revision, "0" * 64), data=DataRecord(data.train, data.val, plan.dataset.fingerprint),
        system=plan.system, parent=plan.start.parent.id if plan.start.parent else None, rows=RowRecord(512),
    )  # fmt: skip


def request(*overrides: str, strategy: str | None = None, **options: Any) -> RunRequest:
    """`fasttune run persona.toml --continue STRATEGY --set OVERRIDE…` in the folder of a series."""
    return RunRequest(Path("persona.toml"), overrides, strategy=strategy, **options)


def typed(fix: str) -> list[RunRequest]:
    """What the `fasttune run` commands in a hint ask for, as the command line takes them."""
    found = []
    for words in map(shlex.split, re.findall(r"`(fasttune run [^`]*)`", fix)):
        given = dict(train.run.make_context("run", words[2:]).params)
        assert not given.pop("as_json")
        found.append(RunRequest(given.pop("recipe_file"), **given))
    return found


def planned(*overrides: str, strategy: str | None = None, **options: Any) -> Plan:
    """The plan of that request."""
    return Planner().plan(request(*overrides, strategy=strategy, **options))


def refusal(*overrides: str, strategy: str | None = None, **options: Any) -> tuple[Finding, ...]:
    """The findings that `fasttune run` refuses that request with."""
    with pytest.raises(UsageError) as refused:
        pipeline.run(request(*overrides, strategy=strategy, **options), Planner())
    return refused.value.findings


def advice(*overrides: str, strategy: str | None = None) -> list[Finding]:
    """What is advised about that request."""
    return list(planned(*overrides, strategy=strategy, allow_overfit=True).findings)


def write_parent(folder: Path, recipe: str = RECIPE) -> Run:
    """A series with the finished run 001-fresh in a new folder: 2 epochs of 3 steps, its held-out loss still falling.

    To be called with the folder as the working directory.
    """
    Series.new(folder, recipe)
    return write_run(request("train.epochs=2", "data.val=val.jsonl"), held_out=(4.2, 4.0))
