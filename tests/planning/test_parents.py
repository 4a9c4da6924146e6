"""A continuation in a series without runs: from the base it trains the first one; else the command that makes one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from series import RECIPE, Series
from written_runs import planned, refusal, write_run

from fasttune.pipeline import Planner, RunRequest
from fasttune.planning.parents import resume_command
from fasttune.planning.resume import run_to_resume


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a series without runs, as the working directory."""
    monkeypatch.chdir(Series.new(tmp_path).folder)
    return tmp_path


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("retune", ()), ("retune", ("continue.start=base",)), ("custom", ("continue.start=base",))],
)
def test_the_first_run_of_a_series_may_be_a_continuation_from_the_base(
    folder: Path, strategy: str, settings: tuple[str, ...]
) -> None:
    changes = (*settings, "train.learning_rate=1e-4")
    plan = planned(*changes, strategy=strategy)
    (said,) = (one for one in plan.findings if one.code == "first-of-series")
    assert "persona has no runs yet" in said.what and "\n" not in said.what
    assert (plan.start.kind, plan.start.parent, plan.recipe.train.learning_rate) == ("base", None, 1e-4)
    request = RunRequest(Path("persona.toml"), changes, strategy=strategy)
    stopped = write_run(request, "stopped", steps=2)
    again = Planner().plan(request)
    assert run_to_resume(Path("runs"), again, None) == stopped, "the same command resumes it"
    (stopped.adapter).mkdir()
    write_finished(request, stopped.folder)
    following = planned(*changes, strategy=strategy, on_existing="new")
    assert following.start.parent and following.start.parent.id == stopped.id
    assert "first-of-series" not in [one.code for one in following.findings]


def write_finished(request: RunRequest, folder: Path) -> None:
    """scores.json as a run leaves it that is trained, exported and probed."""
    (folder / "scores.json").write_text('{"probes": [], "answered_by": null}', encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("linzhi_incremental", "run recipes/linzhi.toml"),
        ("linzhi_custom", "run recipes/linzhi.toml"),
        ("linzhi_augment", "run recipes/linzhi_augment.toml --set strategy=fresh"),
    ],
)
def test_a_parent_that_is_needed_is_named_as_a_command(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    from fasttune.console import UsageError

    with pytest.raises(UsageError) as refused:
        Planner().plan(RunRequest(Path(f"recipes/{name}.toml"), root=Path("nowhere")))
    (finding,) = refused.value.findings
    found = re.search(r"`fasttune (.*)`", finding.fix)
    assert finding.code == "nothing-to-continue" and found
    assert found[1] == command.replace(".toml", ".toml --runs nowhere")
    words = shlex.split(found[1])
    plan = Planner().plan(RunRequest(Path(words[1]), tuple(words[5:]), Path(words[3])))
    assert plan.start.parent is None and plan.total_steps > 0


def test_a_parent_is_trained_with_the_overrides_that_are_not_about_continuing(folder: Path) -> None:
    (finding,) = refusal("continue.add_epochs=1", "lora.r=4", "train.epochs=1", strategy="incremental")
    assert finding.fix.endswith("`fasttune run persona.toml --set lora.r=4`")


def test_a_stopped_parent_is_resumed_by_the_command_that_is_named(folder: Path) -> None:
    stopped = write_run(RunRequest(Path("persona.toml"), ("train.max_steps=6", "lora.r=4")), "stopped", steps=2)
    command = resume_command(stopped)
    (finding,) = refusal("continue.add_epochs=1", strategy="incremental")
    assert finding.code == "parent-unfinished" and f"`{command}`" in finding.fix
    words = shlex.split(command)
    request = RunRequest(Path(words[2]), tuple(words[6::2]), on_existing="resume")
    assert words[3:5] == ["--on-existing", "resume"]
    assert run_to_resume(Path("runs"), Planner().plan(request), "resume") == stopped


@pytest.mark.parametrize("epochs", [6.5, 8.0])
def test_augment_takes_up_the_recipe_of_a_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: float
) -> None:
    """The epochs that `init` writes are those of the first run; --continue augment adds to them."""
    recipe = RECIPE.replace("[train]", f"[train]\nepochs = {epochs}")
    monkeypatch.chdir(Series.new(tmp_path, recipe).folder)
    write_run(RunRequest(Path("persona.toml")))
    plan = planned(strategy="augment")
    assert plan.start.kind == "checkpoint" and plan.start.step < plan.total_steps
    assert plan.epochs >= int(epochs) + 1
    assert planned("train.epochs=10", strategy="augment").epochs == 10
