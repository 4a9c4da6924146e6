"""Training in bfloat16 on a CPU, as a processor with AMX does by itself: every strategy, each with its proof."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from series import Series, assert_same_run, document

from fasttune.runs import documents
from fasttune.runs.store import Run

BFLOAT16, SIX = "model.dtype=bfloat16", "train.max_steps=6"
SHOWN = re.compile(r"check batch loss (\S+) \(saved: (\S+)\)")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """001-fresh in bfloat16, stopped after some of 6 steps and resumed."""
    series = Series.new(tmp_path_factory.mktemp("bfloat16"))
    series.stop(BFLOAT16, SIX)
    done = series.train(BFLOAT16, SIX)
    assert (shown := SHOWN.search(done.stderr)) and shown[1] == shown[2]
    return series


def test_a_resumed_run_equals_the_straight_one(resumed: Series, tmp_path: Path) -> None:
    """E2 holds in every type."""
    straight = Series.new(tmp_path / "straight")
    straight.train(BFLOAT16, SIX)
    assert_same_run(resumed.run(1), straight.run(1))
    assert document(resumed.run(1) / "adapter" / "proof.json")["dtype"] == "bfloat16"


def test_every_strategy_continues_in_it_and_the_files_are_proven(resumed: Series) -> None:
    for flags in (
        "--continue incremental --set continue.add_epochs=1",
        "--continue augment --set train.epochs=4",
        "--continue retune --set train.learning_rate=1e-3 --set train.max_steps=2",
        "--continue custom --set continue.start=adapter --set train.max_steps=2 --set export.gguf=f16,q8_0",
    ):
        resumed.train(flags=flags)
    runs = [Run(resumed.folder / "runs", f"persona/{number:03}-{kind}")
            for number, kind in enumerate(("incremental", "augment", "retune", "custom"), 2)]  # fmt: skip
    assert [documents.read_plan(run).values["model.dtype"] for run in runs] == ["bfloat16"] * 4
    assert all(run.status == "finished" for run in runs)
    assert sorted(path.name for path in runs[-1].exports.glob("*.gguf")) == ["persona-F16.gguf", "persona-Q8_0.gguf"]
