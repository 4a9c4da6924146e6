"""Run folders with chosen figures, written as training leaves them; and one document of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fasttune import files
from fasttune.recipe.schema import Setting
from fasttune.runs import documents, store
from fasttune.runs.documents import BaseRecord, DataRecord, PlanDocument, Provenance, RowRecord, Scores, StartKind
from fasttune.runs.store import Run

SETTINGS = {
    "name": "persona", "strategy": "fresh", "lora.r": 8, "lora.alpha": 16, "train.epochs": 2.0, "train.max_steps": 0,
    "train.learning_rate": 2e-4, "train.early_stopping_patience": 0, "continue.add_epochs": 0.0, "data.train": ["a.jsonl"],
}  # fmt: skip
PLAN = PlanDocument(
    name="persona", strategy="fresh", parent=None, start="base", start_step=0, settings=(), system=None,
    data_fingerprint="0" * 64, train_samples=10, val_samples=20, steps_per_epoch=1, total_steps=2, epochs=2.0,
)  # fmt: skip
PROVENANCE = Provenance(
    fasttune="0.1.0", commit="", created="2026-03-01T10:00:00+00:00", python="3.12", platform="Linux",
    command=("run", "persona.toml"), device={"kind": "cpu"}, packages={}, base=BaseRecord("builtin:tiny", "", "0" * 64),
    data=DataRecord(("a.jsonl",), 0.1, "0" * 64), system=None, parent=None, rows=RowRecord(512),
)  # fmt: skip


def write_run(
    root: Path,
    strategy: str = "fresh",
    *,
    parent: Run | None = None,
    start: StartKind = "base",
    losses: Sequence[float] = (2.0, 0.2),
    held_out: Sequence[float] = (),
    finished: bool = True,
    samples: int = 10,
    created: str = PROVENANCE.created,
    series: str = "persona",
    **settings: Any,
) -> Run:
    """A run folder with a step and an evaluation an epoch; `train__epochs=3.0` among `settings` is train.epochs.

    Its accuracies are 0.9 and, in the last epoch, 0.95. The GGUF file of a finished run is sparse: its size takes no
    space.
    """
    run = store.create(root, series, strategy)
    values = SETTINGS | {"strategy": strategy} | {key.replace("__", "."): value for key, value in settings.items()}
    sources = {"lora.alpha": "default (2 × r)"}
    plan = replace(
        PLAN, name=series, strategy=strategy, parent=parent.id if parent else None, start=start,
        settings=tuple(Setting(key, value, sources.get(key, "recipe")) for key, value in values.items()),
        data_fingerprint=f"{samples:064d}", train_samples=samples, total_steps=len(losses), epochs=float(len(losses)),
    )  # fmt: skip
    documents.write(run.plan, plan)
    documents.write(run.provenance, replace(PROVENANCE, created=created, parent=plan.parent))
    for step, loss in enumerate(losses, 1):
        accuracy = 0.95 if step == len(losses) else 0.9
        files.append_line(
            run.history, {"step": step, "epoch": float(step), "loss": loss, "mean_token_accuracy": accuracy}
        )
        for value in held_out[step - 1 : step]:
            files.append_line(run.history, {"step": step, "epoch": float(step), "eval_loss": value})
    if finished:
        run.adapter.mkdir()
        run.exports.mkdir()
        with open(run.exports / f"{series}-Q8_0.gguf", "wb") as file:
            file.truncate(12_300_000)
        store.set_current(run)
    return run


def write_recipe(run: Run, samples: int = 10) -> None:
    """The recipe of such a run and data for it, so that what it is advised to type can be planned. The samples are not
    those that its plan counts: as after a change of its data, it can't be continued from its checkpoint."""
    data = run.root / "samples.jsonl"
    lines = [f'{{"instruction": "第{n}个问题？", "output": "第{n}个回答。"}}\n' for n in range(samples)]
    data.write_text("".join(lines), encoding="utf-8")
    recipe = f'name = "{run.series}"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{data}"\n'
    run.recipe.write_text(recipe, encoding="utf-8")
    plan = documents.read_plan(run)
    documents.write(run.plan, replace(plan, settings=(*plan.settings, Setting("model.base", "builtin:tiny", "recipe"))))
    if not run.scores.is_file():
        documents.write(run.scores, Scores((), None))  # it is complete
