"""`fasttune runs`: the tree, what changed from parent to child, and the verdict on each run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from rich.cells import cell_len

from fasttune import files
from fasttune.runs import store, summary
from fasttune.runs.store import Run
from fasttune.runs.summary import Change
from fasttune.terminal import runs_tree

SETTINGS = {
    "name": "persona", "strategy": "fresh", "lora.r": 8, "lora.alpha": 16, "train.epochs": 2.0, "train.max_steps": 0,
    "train.learning_rate": 2e-4, "train.early_stopping_patience": 0, "continue.add_epochs": 0.0, "data.train": ["a.jsonl"],
}  # fmt: skip


def write_run(
    root: Path,
    strategy: str,
    *,
    parent: Run | None = None,
    start: str = "base",
    losses: list[float] | None = None,
    held_out: list[float] | None = None,
    finished: bool = True,
    samples: int = 10,
    created: str = "2026-03-01T10:00:00+00:00",
    series: str = "persona",
    **settings: Any,
) -> Run:
    """A run folder as training leaves it, one step and one evaluation an epoch."""
    run = store.create(root, series, strategy)
    losses = [2.0, 0.2] if losses is None else losses
    values = SETTINGS | {"strategy": strategy} | {key.replace("__", "."): value for key, value in settings.items()}
    sources = {"lora.alpha": "default (2 × r)"}
    entries = [{"key": key, "value": value, "source": sources.get(key, "recipe")} for key, value in values.items()]
    plan = {
        "name": series, "strategy": strategy, "parent": parent.id if parent else None, "start": start, "epochs": 2.0,
        "settings": entries, "data_fingerprint": f"{samples:064d}", "train_samples": samples, "val_samples": 1,
        "steps_per_epoch": 1, "total_steps": len(losses),
    }  # fmt: skip
    files.write_json(run.plan, plan | {"epochs": float(len(losses))})
    files.write_json(run.provenance, {"created": created})
    for step, loss in enumerate(losses, 1):
        files.append_line(run.history, {"step": step, "epoch": float(step), "loss": loss, "mean_token_accuracy": 0.9})
        for value in (held_out or [])[step - 1 : step]:
            files.append_line(run.history, {"step": step, "epoch": float(step), "eval_loss": value})
    if finished:
        run.adapter.mkdir()
        run.exports.mkdir()
        (run.exports / f"{series}-Q8_0.gguf").write_bytes(b"x" * 12_300_000)
        store.set_current(run)
    return run


@pytest.mark.parametrize(
    ("loss", "held_out", "word"),
    [
        (0.0999, [0.3], "excellent"),
        (0.1, [0.3, 0.2], "good"),
        (0.2999, [], "good"),
        (0.3, [0.5], "fair"),
        (0.5, [0.5], "not-enough"),
        (0.62, [], "not-enough"),
        (0.05, [0.4, 0.42], "excellent"),
        (0.05, [0.4, 0.4201], "over-fitting"),
        (0.62, [0.4, 0.9], "over-fitting"),
    ],
)
def test_the_verdict(tmp_path: Path, loss: float, held_out: list[float], word: str) -> None:
    run = write_run(tmp_path, "fresh", losses=[2.0, loss], held_out=held_out)
    assert summary.read_figures(run).verdict == word


def test_the_verdict_is_on_the_last_epoch_and_not_on_its_last_step(tmp_path: Path) -> None:
    run = write_run(tmp_path, "fresh", losses=[3.0, 0.6, 0.05])
    plan = json.loads(run.plan.read_text()) | {"steps_per_epoch": 2}
    files.write_json(run.plan, plan)
    figures = summary.read_figures(run)
    assert (figures.loss, figures.epoch_loss, figures.verdict) == (0.05, pytest.approx(0.325), "fair")


def test_a_child_that_goes_on_from_a_checkpoint_is_measured_by_the_best_of_both(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh", held_out=[0.5, 0.4])
    child = write_run(tmp_path, "incremental", parent=first, start="checkpoint", held_out=[0.43, 0.43])
    assert (summary.read_figures(child).best_eval_loss, summary.read_figures(child).verdict) == (0.4, "over-fitting")
    other = write_run(tmp_path, "custom", parent=first, start="checkpoint", held_out=[0.43, 0.43], samples=11)
    assert summary.read_figures(other).verdict == "good"  # other samples: not comparable
    base = write_run(tmp_path, "retune", parent=first, held_out=[0.43, 0.43])
    assert summary.read_figures(base).verdict == "good"
    early = write_run(tmp_path, "fresh", held_out=[0.4, 0.5], train__early_stopping_patience=1)
    assert (summary.read_figures(early).eval_loss, summary.read_figures(early).verdict) == (0.4, "good")


def test_what_changed(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh")
    child = write_run(
        tmp_path, "retune", parent=first, losses=[1.0] * 3, lora__r=16, lora__alpha=32, train__learning_rate=1e-4,
        samples=12, train__epochs=3.0,
    )  # fmt: skip
    assert summary.read_figures(child).changes == (
        Change("epochs", 2.0, 3.0), Change("lora.r", 8, 16), Change("train.learning_rate", 2e-4, 1e-4),
        Change("samples", "10+1 (00000000)", "12+1 (00000000)"),
    )  # fmt: skip
    same = write_run(tmp_path, "custom", parent=first)
    assert summary.read_figures(same).changes == ()
    assert "changed: nothing" in runs_tree.label(summary.read_figures(same)).plain


def test_a_parent_that_was_overwritten_is_none(tmp_path: Path) -> None:
    first = write_run(tmp_path, "fresh", created="2026-03-01T10:00:00+00:00")
    child = write_run(tmp_path, "retune", parent=first, created="2026-03-02T10:00:00+00:00")
    assert summary.read_figures(child).parent == first.id
    files.write_json(first.provenance, {"created": "2026-03-03T10:00:00+00:00"})  # another run of the same number
    assert summary.read_figures(child).parent is None
    store.delete(first)
    assert summary.read_figures(child).parent is None


def test_a_run_that_was_killed_at_once_is_shown(tmp_path: Path, fasttune: Cli) -> None:
    store.create(tmp_path, "persona", "fresh")
    done = fasttune("runs", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "persona/001-fresh  stopped" in done.stdout and "0 epochs, 0 steps" in done.stdout


def family(root: Path, series: str) -> list[Run]:
    """fresh, incremental from it, retune from that with many changes, augment from the first, stopped."""
    first = write_run(root, "fresh", series=series, held_out=[0.6, 0.5])
    second = write_run(root, "incremental", series=series, parent=first, start="checkpoint", losses=[0.2, 0.1, 0.05])
    third = write_run(
        root, "retune", series=series, parent=second, lora__r=16, train__learning_rate=5e-5, samples=99,
        data__train=["data/林栀/第一批对话样本.jsonl", "data/林栀/第二批对话样本.jsonl", "data/林栀/第三批对话样本.jsonl"],
    )  # fmt: skip
    fourth = write_run(root, "augment", series=series, parent=first, start="checkpoint", finished=False)
    return [first, second, third, fourth]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("series", ["linzhi", "林栀和她的照相馆_第二版", "a-quite-long-name-of-a-series"])
def test_the_tree_fits_80_columns_with_whole_ids(tmp_path: Path, fasttune: Cli, series: str, language: str) -> None:
    found = family(tmp_path, series)
    done = fasttune("runs", series, "--runs", tmp_path, COLUMNS="80", FASTTUNE_LANG=language)
    assert done.returncode == 0, done.stderr
    assert all(run.id in done.stdout for run in found)
    assert max(cell_len(line) for line in done.stdout.splitlines()) <= 80
    assert "…" not in done.stdout


def test_the_tree_hangs_children_below_their_parents(tmp_path: Path, fasttune: Cli) -> None:
    first, second, third, fourth = family(tmp_path, "linzhi")
    lines = fasttune("runs", "--runs", tmp_path, COLUMNS="120").stdout.splitlines()
    at = {
        run.id: next(line.index(run.id) for line in lines if run.id in line) for run in (first, second, third, fourth)
    }
    assert at[first.id] < at[second.id] < at[third.id] and at[second.id] == at[fourth.id]
    text = "\n".join(lines)
    assert "linzhi/003-retune  good, in use  2026-03-01" in text
    assert "linzhi/004-augment  stopped" in text
    assert "loss 2.000 → 0.200; held-out 0.500 (best 0.500); accuracy 90.0%" in text
    assert "lora.r 8 → 16, train.learning_rate 0.0002 → 5e-05" in text
    assert "linzhi-Q8_0.gguf 12 MB" in text


def test_json_has_all_of_it(tmp_path: Path, fasttune: Cli) -> None:
    first, second, *_rest = family(tmp_path, "linzhi")
    write_run(tmp_path, "fresh", series="other")
    rows = json.loads(fasttune("runs", "--runs", tmp_path, "--json").stdout)["runs"]
    assert [row["id"].split("/")[0] for row in rows] == ["linzhi"] * 4 + ["other"]
    row = rows[1]
    assert row["id"] == second.id and row["parent"] == first.id and row["strategy"] == "incremental"
    assert row["changes"] == [{"key": "epochs", "old": 2.0, "new": 3.0}]
    assert row["exports"] == [{"file": "linzhi-Q8_0.gguf", "bytes": 12_300_000}]
    assert (row["first_loss"], row["loss"], row["steps"], row["epochs"]) == (0.2, 0.05, 3, 3.0)
    assert (row["status"], row["verdict"], row["current"]) == ("finished", "excellent", False)
    assert len(json.loads(fasttune("runs", "linzhi", "--runs", tmp_path, "--json").stdout)["runs"]) == 4


@pytest.mark.parametrize(("size", "words"), [(4_618_080, "4.6 MB"), (531_000_000, "531 MB"), (1_646_000_000, "1.6 GB")])
def test_sizes(size: int, words: str) -> None:
    assert runs_tree.size_word(size) == words


def test_the_state_in_one_line(tmp_path: Path) -> None:
    figures = summary.read_figures(write_run(tmp_path, "fresh", held_out=[0.6, 0.5]))
    assert runs_tree.state_line(figures) == "001-fresh finished, 2 epochs, loss 0.200, held-out 0.500: good"
    none = replace(figures, epoch_loss=None, eval_loss=None, verdict=None, status="stopped", epochs=0.0)
    assert runs_tree.state_line(none) == "001-fresh stopped, 0 epochs"
