"""A run request, its plan, and what is read for them: each recipe file and each data set once a command."""

from __future__ import annotations

import builtins
import io
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from run_folders import write_run
from series import Series
from terminal import ENTER, answer

from fasttune import pipeline
from fasttune.command import runs_option
from fasttune.console import FasttuneError, UsageError
from fasttune.pipeline import Planner, RunRequest
from fasttune.runs import documents, store
from fasttune.runs.documents import Scores
from fasttune.runs.store import Run
from fasttune.terminal import series_menu


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a series, as the working directory."""
    monkeypatch.chdir(Series.new(tmp_path / "series").folder)
    return tmp_path / "series"


@pytest.fixture
def reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of the folder was opened for reading, by its name."""
    counted: Counter[str] = Counter()

    def count(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(str(path)).name in ("persona.toml", "train.jsonl", "val.jsonl"):
            counted[Path(path).name] += 1
        return io_open(path, *arguments, **options)

    io_open = io.open
    monkeypatch.setattr(io, "open", count)  # what pathlib calls
    monkeypatch.setattr(builtins, "open", count)
    return counted


def test_a_request_is_the_command_line_that_makes_it() -> None:
    assert RunRequest(Path("a.toml")).arguments == ["run", "a.toml"]
    request = RunRequest(
        Path("a b.toml"), ("lora.r=4", "data.system=S"), Path("elsewhere"), "custom", "new", "persona/001", True
    )
    assert request.arguments == [
        "run", "a b.toml", "--runs", "elsewhere", "--continue", "custom", "--on-existing", "new",
        "--overwrite", "persona/001", "--allow-overfit", "--set", "lora.r=4", "--set", "data.system=S",
    ]  # fmt: skip
    assert request.changes == ("lora.r=4", "data.system=S", "strategy=custom")
    assert request.command.startswith("fasttune run 'a b.toml' --runs elsewhere ")


def test_the_usual_runs_folder_needs_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_RUNS", "elsewhere")
    assert runs_option(Path("elsewhere")) == [] and runs_option(Path("runs")) == ["--runs", "runs"]


def test_many_plans_read_the_recipe_and_the_data_once(folder: Path, reads: Counter[str]) -> None:
    planner = Planner()
    requests = [
        RunRequest(Path("persona.toml"), (f"train.learning_rate={rate}", "data.val=val.jsonl")) for rate in (1e-4, 2e-4)
    ]
    plans = [planner.plan(request) for request in requests]
    assert [plan.recipe.train.learning_rate for plan in plans] == [1e-4, 2e-4]
    assert plans[0].dataset is plans[1].dataset
    assert reads == {"persona.toml": 1, "train.jsonl": 1, "val.jsonl": 1}


def test_another_data_table_or_seed_is_another_data_set(folder: Path, reads: Counter[str]) -> None:
    planner = Planner()
    first, seed, system = (
        planner.plan(RunRequest(Path("persona.toml"), one)) for one in ((), ("train.seed=7",), ("data.system=S",))
    )
    assert first.dataset is not seed.dataset and first.dataset is not system.dataset
    assert reads == {"persona.toml": 1, "train.jsonl": 3}


class Planned(Exception):
    """The plan stands; what follows loads torch."""


def test_a_run_from_the_menu_reads_the_recipe_and_the_data_once(
    folder: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The menu looks the series up, plans one request, goes back, plans another, and that one is carried out."""

    def stop(*_arguments: object) -> None:
        raise Planned

    run = write_run(folder / "runs")
    documents.write(run.scores, Scores((), None))
    planner, request = Planner(), RunRequest(Path("persona.toml"))
    keys = [
        ("What do you want to do?", "2" + ENTER), ("Start?", "2" + ENTER),  # a new run, and back
        ("What do you want to do?", "2" + ENTER), ("Start?", ENTER),
    ]  # fmt: skip

    def ask() -> RunRequest:
        assert series_menu.needs_answer(request, planner)
        return series_menu.ask_about_existing(request, planner)

    chosen, _screen = answer(keys, ask)
    monkeypatch.setattr(pipeline, "run_to_resume", stop)
    with pytest.raises(Planned):
        pipeline.run(chosen, planner)
    assert reads == {"persona.toml": 1, "train.jsonl": 1}


def test_a_mistake_in_the_fact_sheet_is_told_before_the_training(folder: Path) -> None:
    """Not after it, when `fasttune facts` reads the sheet."""
    request = RunRequest(Path("persona.toml"), ("facts.file=facts.toml",))
    with pytest.raises(UsageError) as refused:
        Planner().plan(request)
    assert [one.code for one in refused.value.findings] == ["facts-not-found"]
    (folder / "facts.toml").write_text('[[fact]]\nid = "a"\n', encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        Planner().plan(request)
    assert {one.code for one in refused.value.findings} == {"facts-missing-key"}
    assert {one.where for one in refused.value.findings} == {"facts.toml:1"}


def test_what_is_overwritten_is_named_by_its_id(folder: Path) -> None:
    run, other = write_run(folder / "runs"), write_run(folder / "runs", series="other")
    plan = Planner().plan(RunRequest(Path("persona.toml")))
    assert pipeline.run_to_overwrite(RunRequest(Path("persona.toml")), plan) is None
    for name in ("persona/001", run.id):
        assert pipeline.run_to_overwrite(RunRequest(Path("persona.toml"), overwrite=name), plan) == Run(
            Path("runs"), run.id
        )
    for name in ("persona", other.id):
        with pytest.raises(UsageError) as refused:
            pipeline.run_to_overwrite(RunRequest(Path("persona.toml"), overwrite=name), plan)
        assert refused.value.findings[0].code == "not-a-run-id" and run.id in refused.value.findings[0].fix
    assert store.list_runs(folder / "runs", "persona") == [run]


def test_the_same_overwrite_goes_on_where_it_was_stopped(folder: Path) -> None:
    """And one that names another run, or comes after it is complete, begins anew."""
    old, kept = write_run(folder / "runs"), write_run(folder / "runs")
    request = RunRequest(Path("persona.toml"), root=folder / "runs", overwrite=old.id)
    assert pipeline.what_to_do(request, "persona") == "new"
    begun = write_run(folder / "runs", finished=False)
    store.replace_by(old, begun)
    assert pipeline.what_to_do(request, "persona") == "resume"
    assert pipeline.what_to_do(replace(request, overwrite=kept.id), "persona") == "new"
    assert pipeline.what_to_do(replace(request, overwrite=None), "persona") is None


def test_a_run_of_another_runs_folder_is_not_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id is also a path below the current folder, where `chat` and `export` would find it."""
    write_run(folder / "elsewhere")
    recipe = folder / "persona.toml"
    request = RunRequest(recipe, root=folder / "runs", overwrite="persona/001-fresh")
    plan = Planner().plan(RunRequest(recipe, root=folder / "runs"))
    monkeypatch.chdir(folder / "elsewhere")
    assert Path(str(request.overwrite)).is_dir()
    with pytest.raises(UsageError) as refused:
        pipeline.run_to_overwrite(request, plan)
    assert refused.value.findings[0].code == "unknown-run"


def test_a_runs_folder_that_is_read_only_is_foreseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fasttune plan` says it, and `fasttune run` before it loads a model; nothing is written."""
    plan = Planner().plan(RunRequest(Path("persona.toml")))
    before = sorted(folder.rglob("*"))
    pipeline.foreseen(plan, None, Path("runs"), None)
    monkeypatch.setattr(os, "access", lambda _place, _mode: False)
    with pytest.raises(FasttuneError) as caught:
        pipeline.foreseen(plan, None, Path("runs"), None)
    assert [one.code for one in caught.value.findings] == ["not-permitted"] and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "runs", "code"),
    [
        ("train.epochs=99", "runs", "too-many-epochs"),
        ("model.base=./nowhere", "runs", "base-not-found"),
        ("model.base=no-such-owner/no-such-model", "runs", "hub-unreachable"),
        ("train.seed=1", "persona.toml/runs", "not-usable"),
        ("model.base=no-such-owner/no-such-model", "persona.toml/runs", "not-usable"),
        ("train.seed=2", "runs", "disk-full"),
    ],
)
def test_a_mistake_is_reported_before_torch_is_loaded(folder: Path, override: str, runs: str, code: str) -> None:
    """Also a base that is not there, a runs folder that can't be written and a full disk; where a run can't be written
    nothing is downloaded first."""
    program = (
        "import shutil, sys\nfrom pathlib import Path\nfrom fasttune.pipeline import Planner, RunRequest, run\n"
        "shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**20, 0, 2**20)\n"
        f"try:\n    run(RunRequest(Path('persona.toml'), ({override!r},), Path({runs!r})), Planner())\n"
        "except Exception as problem:\n    print(problem.findings[0].code, 'torch' in sys.modules)\n"
    )
    environ = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout == f"{code} False\n"
    assert not (folder / "runs").exists()
