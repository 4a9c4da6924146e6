"""What is decided in every cell of the continuation table, before torch is loaded: the run that is resumed, deleted or
begun and where it starts, or the refusal. Nothing is written by deciding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from continuations import CELLS, EPOCHS, REFUSALS, SETTINGS, TRAININGS, Cell
from series import Series, contents
from written_runs import write_run

from fasttune import files, pipeline
from fasttune.console import UsageError
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning.resume import run_to_resume
from fasttune.runs.store import Run

# Outcome of the table -> code and place of the finding, and words of its message.
FINDINGS = {
    "unknown": ("unknown-run", "", "no run called persona/001"),
    "no-runs": ("nothing-to-continue", "persona.toml: strategy", "persona has no runs in runs to continue from"),
    "exists": ("series-exists", "runs", "; the newest is persona/00"),
    "unfinished": ("parent-unfinished", "persona.toml: continue.parent", "persona/001-fresh was stopped before its end"),
    "differs": ("resume-differs", "persona/002-incremental: strategy", "the stopped run began with incremental, now it is"),
    "its-parent": ("overwrites-parent", "--overwrite", "persona/001-fresh is what this run continues from"),
}  # fmt: skip
FRESH = RunRequest(Path("persona.toml"), SETTINGS["fresh"])
INCREMENTAL = RunRequest(Path("persona.toml"), SETTINGS["incremental"], strategy="incremental")
STATES = {
    "nothing": (), "finished": ((FRESH, "finished"),), "stopped": ((FRESH, "stopped"),), "trained": ((FRESH, "trained"),),
    "second-stopped": ((FRESH, "finished"), (INCREMENTAL, "stopped")),
    "second-trained": ((FRESH, "finished"), (INCREMENTAL, "trained")),
}  # fmt: skip


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a series in each state of the table."""
    root = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        for name, runs in STATES.items():
            patch.chdir(Series.new(root / name, EPOCHS).folder)
            for request, state in runs:
                write_run(request, state)  # type: ignore[arg-type]
    return {name: root / name for name in STATES}


@pytest.fixture
def folder(states: dict[str, Path], cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the folder of a series in the cell's state."""
    monkeypatch.chdir(states[cell.state])
    return states[cell.state]


def test_the_table_is_whole() -> None:
    assert (len(CELLS), len(REFUSALS), len(TRAININGS)) == (120, 75, 45)


@pytest.mark.parametrize("cell", REFUSALS, ids=lambda cell: cell.name)
def test_refused(folder: Path, cell: Cell) -> None:
    before = contents(folder)
    with pytest.raises(UsageError) as refused:
        pipeline.run(cell.request, Planner())
    code, where, words = FINDINGS[cell.outcome]
    finding = refused.value.findings[0]
    assert (finding.code, finding.where, finding.level) == (code, where, "error")
    assert words in finding.what and finding.fix
    assert contents(folder) == before


@pytest.mark.parametrize("cell", TRAININGS, ids=lambda cell: cell.name)
def test_trained(folder: Path, cell: Cell) -> None:
    before = contents(folder)
    plan = Planner().plan(cell.request)
    deleted = pipeline.run_to_overwrite(cell.request, plan)
    resumed = run_to_resume(cell.request.root, plan, "new" if deleted else cell.request.on_existing)
    assert (deleted.id if deleted else None) == ("persona/001-fresh" if cell.outcome == "instead" else None)
    if cell.outcome in ("resume", "files"):
        newest = "persona/002-incremental" if cell.state.startswith("second") else "persona/001-fresh"
        assert resumed is not None and resumed.id == newest
        assert resumed.status == ("stopped" if cell.outcome == "resume" else "finished")
    else:
        assert resumed is None
        assert (plan.start.parent.id if plan.start.parent else None) == cell.parent
        assert (plan.start.kind, plan.start.step) == ("checkpoint" if cell.start_step else "base", cell.start_step)
        assert plan.total_steps == cell.steps[-1]
    assert contents(folder) == before


@pytest.mark.parametrize(
    "cell",
    [next(cell for cell in REFUSALS if cell.outcome == outcome) for outcome in FINDINGS],
    ids=lambda cell: cell.name,
)
def test_a_refusal_on_the_command_line(fasttune: Cli, states: dict[str, Path], cell: Cell) -> None:
    """Exit code 2, one error with its place and a hint, no traceback; once for every code."""
    folder = states[cell.state]
    before, changes = contents(folder), [word for one in SETTINGS[cell.strategy] for word in ("--set", one)]
    done = fasttune("run", "persona.toml", *cell.command.split(), *changes, cwd=folder, FASTTUNE_RUNS="runs")
    _code, where, words = FINDINGS[cell.outcome]
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {where}: " if where else "error: ")
    assert words in done.stderr and "hint: " in done.stderr and "Traceback" not in done.stderr
    assert contents(folder) == before


def test_a_live_process_keeps_its_run(states: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process trains the newest run, it is neither resumed nor continued from nor overwritten."""
    monkeypatch.chdir(shutil.copytree(states["stopped"], tmp_path / "series"))
    run = Run(Path("runs"), "persona/001-fresh")
    with files.locked(run.lock, "another process"):
        for request in (FRESH, INCREMENTAL, replace(FRESH, on_existing="resume")):
            with pytest.raises(UsageError) as refused:
                pipeline.run(request, Planner())
            assert [finding.code for finding in refused.value.findings] == ["run-is-locked"]
