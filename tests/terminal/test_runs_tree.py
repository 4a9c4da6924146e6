"""`fasttune runs`: the tree of runs, its width, and its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from rich.cells import cell_len
from run_folders import write_run

from fasttune.console import UsageError
from fasttune.runs import store, summary
from fasttune.runs.store import Run
from fasttune.terminal import runs_tree


def test_a_run_that_was_killed_at_once_is_shown(tmp_path: Path, fasttune: Cli) -> None:
    store.create(tmp_path, "persona", "fresh")
    done = fasttune("runs", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "persona/001-fresh  stopped" in done.stdout and "0 epochs, 0 steps" in done.stdout


def family(root: Path, series: str) -> list[Run]:
    """fresh, incremental from it, retune from that with many changes, augment from the first, stopped."""
    first = write_run(root, "fresh", series=series, held_out=[0.505, 0.5])
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
    text = " ".join(" ".join(lines).replace("│", " ").split())  # lines are wrapped at the terminal's width
    assert "linzhi/003-retune cannot tell, in use 2026-03-01" in text
    assert "linzhi/004-augment stopped" in text
    assert "loss 2.000 → 0.200; held-out 0.500 (best 0.500); accuracy 95.0%" in text
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
    assert (row["status"], row["verdict"], row["current"]) == ("finished", "good", False)
    assert (row["verdict_reason"], row["loss_band"], row["best_step"]) == ("at-best", "excellent", 2)
    assert len(json.loads(fasttune("runs", "linzhi", "--runs", tmp_path, "--json").stdout)["runs"]) == 4


def test_the_state_in_one_line(tmp_path: Path) -> None:
    figures = summary.read_figures(write_run(tmp_path, "fresh", held_out=[0.505, 0.5]))
    assert runs_tree.state_line(figures) == "001-fresh finished, 2 epochs, loss 0.200, held-out 0.500: good"
    none = replace(figures, epoch_loss=None, eval_loss=None, verdict=None, status="stopped", epochs=0.0)
    assert runs_tree.state_line(none) == "001-fresh stopped, 0 epochs"


def test_what_changed_in_words(tmp_path: Path) -> None:
    first = write_run(tmp_path)
    same = summary.read_figures(write_run(tmp_path, "custom", parent=first))
    assert "changed: nothing" in runs_tree.label(same).plain
    other = summary.read_figures(write_run(tmp_path, "retune", parent=first, lora__r=16, data__train=["b.jsonl"]))
    assert 'changed: lora.r 8 → 16, data.train ["a.jsonl"] → ["b.jsonl"]' in runs_tree.label(other).plain
    assert "changed" not in runs_tree.label(summary.read_figures(first)).plain


def test_the_run_in_use_is_shown_with_the_command_that_uses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    runs_tree.show_current(tmp_path, "persona", as_json=False)
    shown = capsys.readouterr()
    assert "persona/001-fresh" in shown.out and f"talk to it: `fasttune chat persona --runs {tmp_path}`" in shown.out
    (run.exports / "persona-Q8_0.gguf").unlink()
    runs_tree.show_current(tmp_path, "persona", as_json=False)
    assert "fasttune export persona --gguf q8_0" in capsys.readouterr().out
    runs_tree.show_current(tmp_path, "persona", as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["run"], document["skipped"], document["verdict"]) == (run.id, True, "cannot-tell")
    write_run(tmp_path, series="other", finished=False)
    with pytest.raises(UsageError, match="other has no finished run"):
        runs_tree.show_current(tmp_path, "other", as_json=False)
