"""What a continuation is planned to be: the parent it continues from, the settings it inherits, the steps it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from series import RECIPE, Series
from written_runs import planned, request, write_parent, write_run

from fasttune.planning.strategy import Plan
from fasttune.runs.store import Run


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 2 epochs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_parent(tmp_path)


def sources(plan: Plan) -> dict[str, tuple[Any, str]]:
    """{key: (value, source)} as plan.json has them."""
    return {one.key: (one.value, one.source) for one in plan.document().settings}


# The parent ---------------------------------------------------------------------------------------------------------


def test_a_parent_by_name(parent: Run) -> None:
    write_run(request("train.max_steps=1", on_existing="new"))
    more = ("continue.add_epochs=1",)
    assert planned(*more, strategy="incremental").document().parent == "persona/002-fresh"
    first = planned(*more, "continue.parent=persona/001", strategy="incremental").document()
    assert (first.parent, first.start_step) == ("persona/001-fresh", 6)
    of_another = planned("name=other", *more, "continue.parent=persona", strategy="incremental")
    assert of_another.document().parent == "persona/002-fresh"


def test_a_parent_that_ended_early_counts_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Series.new(tmp_path).folder)
    write_run(request("train.max_steps=30", "train.until.loss=4.9"), steps=7)
    assert planned("continue.add_epochs=1", strategy="incremental").total_steps == 7 + 3
    assert planned("continue.start=base", "continue.add_epochs=1", strategy="custom").total_steps == 7 + 3


# Inheritance --------------------------------------------------------------------------------------------------------


def test_what_is_left_unsaid_comes_from_the_parent(parent: Run, tmp_path: Path) -> None:
    write_run(request("lora.r=4", "lora.dropout=0.1", "train.seed=5", "train.max_steps=2", on_existing="new"))
    short = RECIPE.replace("batch_size = 4\n", "").replace("learning_rate = 2e-3\n", "")
    (tmp_path / "persona.toml").write_text(short, encoding="utf-8")
    found, inherited = (
        sources(planned("lora.r=16", "train.learning_rate=1e-3", strategy="retune")),
        "parent run persona/002-fresh",
    )
    assert found["train.batch_size"] == (4, inherited)
    assert found["lora.dropout"] == (0.1, inherited)
    assert found["train.seed"] == (5, inherited)
    assert found["train.epochs"] == (2 / 3, inherited)
    assert found["train.learning_rate"] == (1e-3, "override")
    assert (found["lora.r"], found["lora.alpha"]) == ((16, "override"), (32, "default (2 × r)"))
    assert found["data.train"] == (["train.jsonl"], "recipe")
    assert planned(strategy="retune").total_steps == 2
    longer = planned("continue.add_epochs=1", strategy="incremental")
    assert (longer.total_steps, sources(longer)["lora.r"]) == (5, (4, inherited))
    assert sources(planned())["train.batch_size"] == (2, "default (auto: 10 samples)"), (
        "a fresh recipe inherits nothing"
    )


def test_a_schedule_without_warmup_inherits_none(parent: Run) -> None:
    write_run(request("train.warmup_steps=2", "train.max_steps=3", on_existing="new"))
    found = sources(planned("train.lr_scheduler_type=constant", strategy="retune"))
    value, source = found["train.warmup_steps"]
    assert value == 0.0 and source.startswith("default (constant has no warm")
    assert sources(planned(strategy="retune"))["train.warmup_steps"][0] == 2
