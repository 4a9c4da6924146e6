"""What a training with data.replay records of what it has forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import call_here

from fasttune.analysis import compare, sources
from fasttune.analysis.held_out import HeldOut
from fasttune.data.dataset import general_samples
from fasttune.data.general import LANGUAGES
from fasttune.runs import documents, store


def test_the_losses_before_and_after_are_those_that_compare_computes(tmp_path: Path) -> None:
    """One step of 58 samples and 6 general conversations, at a rate at which it forgets."""
    values = ["train.max_steps=1", "train.batch_size=64", "train.learning_rate=0.02", "train.warmup_steps=0",
              "data.replay=0.1", "export.gguf=[]", "probe.questions=[]", "train.keep_epochs=false"]  # fmt: skip
    words = [word for one in values for word in ("--set", one)]
    done = call_here(tmp_path / "runs", "run", "recipes/quickstart.toml", *words)
    assert done.returncode == 0, done.stderr
    run = store.find(tmp_path / "runs", "quickstart")
    assert documents.read_plan(run).general_samples == 6 and documents.read_plan(run).train_samples == 58
    assert documents.read_provenance(run).starts[0].samples == 58 + 8 + 6, "all of them were tokenized"
    (line,) = [one for one in map(json.loads, run.history.read_text().splitlines()) if "loss" in one]
    assert round(line["samples_per_second"] * line["step_seconds"]) == 58 + 6
    known = {one.language: one for one in documents.read_scores(run).general}
    own = sources.find("quickstart", tmp_path / "runs")
    general = {language: HeldOut(tuple(general_samples("val", (language,)))) for language in LANGUAGES}
    trained, base = compare.general_losses(own, general), compare.general_losses(sources.base_of(own), general)
    assert {language: one.trained for language, one in known.items()} == pytest.approx(trained, rel=1e-5)
    assert {language: one.base for language, one in known.items()} == pytest.approx(base, rel=1e-5)
    assert all(abs(one.trained - one.base) > 0.01 for one in known.values()), "else nothing tells the two apart"
    assert f"general conversations in Chinese: loss {base['zh']:.3f} by the base" in done.stdout
