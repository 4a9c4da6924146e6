"""Whoever is asked what a run came to, and what to type next, says the same: `fasttune diagnose`, `runs`, `run`, `plan`,
the menu of a series and the board. And what they print to be typed is taken when it is typed."""

from __future__ import annotations

import html
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import run_states
from board_server import served
from series import Series
from terminal import CTRL_C, answer
from typed_commands import carried_out, commands_in

from fasttune.analysis import advisor, diagnose
from fasttune.analysis.advisor import Advice
from fasttune.runs import documents, store, summary
from fasttune.runs.store import Run
from fasttune.terminal import runs_tree

HELD_OUT = ("--set", "data.val=val.jsonl")
VERDICTS = {
    "good": ("good", "export"),
    "over_fitted": ("over-fitting", "run --continue retune"),
    "too_short": ("not enough", "run --continue incremental"),
    "nothing_learned": ("nothing learned", "run --continue retune"),
    "data_changed": ("not enough", "run --continue retune"),
    "stopped": ("not enough", "run --on-existing resume"),
    "killed_at_export": ("good", "run --on-existing resume"),
    "best_epoch_kept": ("over-fitting", "pick"),
    "picked": ("good", "export"),
    "picked_too_early": ("not enough", "pick"),
    "deliberately_new": ("good", "export"),
    "new_with_other_values": ("not enough", "run --continue incremental"),
    "nothing_held_out": ("cannot tell", "run --continue incremental"),
    "babbling": ("not enough", "run --continue incremental"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fasttune"])  # what the printed commands begin with
    monkeypatch.setenv("COLUMNS", "1000")
    return tmp_path


def squeezed(text: str) -> str:
    """A text without white space: a terminal breaks its lines anywhere."""
    return re.sub(r"\s+", "", text)


def menu(run: Run) -> str:
    """What the menu of `fasttune run persona.toml` shows before it asks, at a terminal."""

    def command() -> int:
        from fasttune import cli

        with pytest.raises(SystemExit) as exited:
            cli.main()
        return int(exited.value.code or 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fasttune", "run", "persona.toml"])
        return answer([("What do you want to do?", CTRL_C)], command)[1]


def board_page(run: Run) -> str:
    """The text of a run's page on the board."""
    with served(run.root) as board:
        page = board.settled(f"/runs/{run.id}").text
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"</p>|</div>|</dt>|<code>|</code>", "\n", page)))


def places(run: Run, folder: Path) -> dict[str, str]:
    """All that is said of a run, by who says it."""
    call = Series(folder)
    said = {"diagnose": call("diagnose", run.id).stdout, "menu": menu(run), "board": board_page(run)}
    if documents.is_complete(run):
        said["skip"] = call("run", "persona.toml", "--on-existing", "skip").stdout
        plan = call("plan", "persona.toml", *HELD_OUT)
        said["plan"] = plan.stdout + plan.stderr
    return said


def advice_on(run: Run) -> Advice:
    found = advisor.of_run(run)
    assert found is not None
    return found


@pytest.mark.parametrize("state", run_states.STATES)
def test_every_place_says_the_same(state: str, folder: Path) -> None:
    run = run_states.in_folder(folder, state)
    told, figures = advice_on(run), summary.read_figures(run)
    verdict, command = VERDICTS[state]
    words = shlex.split(told.command)
    assert verdict in told.verdict and set(command.split()) <= set(words), told
    diagnosed = json.loads(Series(folder)("diagnose", run.id, "--json").stdout)
    assert (diagnosed["command"], diagnosed["verdict_line"]) == (told.command, told.verdict)
    (listed,) = [
        one for one in json.loads(Series(folder)("runs", run.series, "--json").stdout)["runs"] if one["id"] == run.id
    ]
    assert (listed["verdict"], listed["verdict_reason"]) == (figures.verdict, figures.verdict_reason)
    for place, text in places(run, folder).items():
        if place != "plan":
            assert squeezed(told.verdict) in squeezed(text), place
        if not told.is_well or place in ("diagnose", "plan"):
            assert squeezed(told.command) in squeezed(text), place


@pytest.mark.parametrize("state", run_states.STATES)
def test_what_is_printed_to_be_typed_is_taken(state: str, folder: Path) -> None:
    run = run_states.in_folder(folder, state)
    document = json.loads(Series(folder)("diagnose", run.id, "--json").stdout)
    printed = {document["command"], *(one for finding in document["findings"] for one in commands_in(finding["fix"]))}
    for place, text in places(run, folder).items():
        if place != "menu":  # its lines are broken at the edge of the screen; it prints what the others do
            printed |= set(commands_in(text))
    assert len(printed) > 1
    for command in sorted(printed):
        assert "fasttune" in command
        if "tensorboard" not in command:
            carried_out(command)


def test_no_more_epochs_are_advised_beside_fewer(folder: Path) -> None:
    """An answer that loops is usual after too many epochs, and where little was learned yet."""
    run = run_states.in_folder(folder, "babbling")
    document = json.loads(Series(folder)("diagnose", run.id, "--json").stdout)
    said = " ".join(one[part] for one in document["findings"] for part in ("what", "why", "fix"))
    assert "incremental" in said and "retune" not in said
    assert "too many epochs" not in said and "known by heart" not in said


def test_a_deliberate_new_run_is_no_restart(folder: Path) -> None:
    for state in ("deliberately_new", "new_with_other_values"):
        (folder / state).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder / state)
            run = run_states.in_folder(folder / state, state)
            document = json.loads(Series(folder / state)("diagnose", run.id, "--json").stdout)
        found = {one["code"]: one["level"] for one in document["findings"]}
        assert "restarted-instead-of-continued" not in found
        assert ("begins-again" in found) == (state == "deliberately_new")
        assert found.get("begins-again", "info") == "info" and document["because"] in ("healthy", "under-trained")


def test_a_line_of_runs_says_of_which_adapter_a_figure_is(folder: Path) -> None:
    run = run_states.in_folder(folder, "picked")
    shown = " ".join(Series(folder)("runs", "persona").stdout.replace("│", " ").split())
    assert "good, in use, epoch 2 picked" in shown
    assert "its own adapter: 4 epochs, 12 steps; loss 3.000 → 1.000; held-out 1.800 (best 1.500)" in shown
    assert "epoch 2, which is picked: held-out 1.500" in shown
    line = runs_tree.state_line(summary.read_figures(run))
    assert line == "001-fresh finished, 4 epochs, loss 1.000; epoch 2 picked, held-out 1.500: good"


def test_runs_names_files_that_are_missing(folder: Path) -> None:
    run_states.in_folder(folder, "killed_at_export")
    done = Series(folder)("runs", "persona")
    assert "not exported: q8_0" in done.stdout
    (listed,) = json.loads(Series(folder)("runs", "persona", "--json").stdout)["runs"]
    assert listed["missing_exports"] == ["q8_0"]


def test_what_can_be_done_beside_a_series_is_not_refused(folder: Path) -> None:
    """Without a terminal the error lists the choices; after a change of the data `incremental` is none of them."""
    run_states.in_folder(folder, "data_changed")
    done = Series(folder)("run", "persona.toml", *HELD_OUT, code=2)
    assert "--continue" not in done.stderr and "fasttune diagnose persona" in done.stderr
    for command in commands_in(done.stderr):
        carried_out(command)


@pytest.mark.usefixtures("one_layer_base")
def test_the_end_of_a_training_says_what_diagnose_says(folder: Path) -> None:
    """Of a real one, whose training loss hardly moved."""
    series = Series.new(folder)
    done = series.train("train.epochs=2", "data.val=val.jsonl", "train.learning_rate=1e-6")
    run = store.find(Path("runs"), "persona")
    told = advice_on(run)
    assert told.verdict in done.stdout and f"`{told.command}`" in done.stdout and told.because in done.stdout
    assert told.command == json.loads(series("diagnose", run.id, "--json").stdout)["command"]
    carried_out(told.command)


@pytest.mark.parametrize(("held_out", "advises"), [((2.0, 1.6, 1.59, 1.585), False), ((2.0, 1.8, 1.6, 1.4), True)])
def test_the_bands_advise_no_more_epochs_where_a_few_held_out_samples_gain_nothing(
    folder: Path, held_out: tuple[float, ...], advises: bool
) -> None:
    """The training loss is above the bands; five held-out samples tell no verdict, and yet that they stand still."""
    run_states.in_folder(folder, "good")
    run = run_states.write_state(held_out, [4.0 - 0.1 * step for step in range(12)], on_existing="new")
    documents.write(run.plan, replace(documents.read_plan(run), val_samples=5))
    found = diagnose.of_run(run)
    assert found.verdict_line.startswith("verdict: cannot tell")
    assert ("under-trained" in {one.code for one in found.findings}) == advises
    assert ("--continue incremental" in found.command) == advises
