"""What the verdict on an earlier run says of a plan: what the advisor says of that run, by a command that is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import run_states
from typed_commands import carried_out, commands_in
from written_runs import advice

from fasttune.analysis import advisor
from fasttune.console import Finding
from fasttune.runs import checkpoints

CHOSEN = {
    "incremental": ("continue.add_epochs=1",),
    "retune": ("train.epochs=2",),
    "custom": ("continue.add_epochs=1",),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def by_code(findings: list[Finding], code: str) -> list[Finding]:
    """Those of one code."""
    return [one for one in findings if one.code == code]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("over_fitted", "held-out-loss-rising"),
        ("nothing_learned", "other-strategy-fits"),
        ("good", "other-strategy-fits"),
        ("too_short", ""),
        ("nothing_held_out", ""),
    ],
)
def test_training_on_where_the_figures_ask_for_something_else(tmp_path: Path, state: str, code: str) -> None:
    run = run_states.in_folder(tmp_path, state)
    told = advisor.of_run(run)
    assert told is not None
    for chosen, overrides in CHOSEN.items():
        found = [one for one in advice("data.val=val.jsonl", *overrides, strategy=chosen)
                 if one.code in ("other-strategy-fits", "held-out-loss-rising")]  # fmt: skip
        argued = code and (chosen == "incremental" or (chosen == "custom" and code == "held-out-loss-rising"))
        assert [one.code for one in found] == ([code] if argued else []), chosen
        assert all(commands_in(one.fix) == [told.command] for one in found)


def test_a_fresh_run_beside_a_finished_one_begins_again(tmp_path: Path) -> None:
    """Its loss starts where the parent's did, at 3.69 every time: not what is meant where it should go on."""
    run = run_states.in_folder(tmp_path, "too_short")
    (finding,) = by_code(advice(), "begins-again")
    assert "persona/001-fresh ended at loss 1.000" in finding.what and "still falls fast" in finding.why
    (command,) = commands_in(finding.fix)
    assert "--continue incremental" in command
    told = advisor.of_run(run)
    assert told is not None and told.command == command
    carried_out(command)
    assert not by_code(advice("name=new"), "begins-again")


def test_no_continuation_is_proposed_that_would_be_refused(tmp_path: Path) -> None:
    """Its data was changed, so that neither its checkpoint nor `incremental` is of use."""
    run_states.in_folder(tmp_path, "data_changed")
    (finding,) = by_code(advice(), "begins-again")
    (command,) = commands_in(finding.fix)
    assert "incremental" not in command
    carried_out(command)


def test_after_a_pick_nothing_is_said_of_the_end_of_the_run(tmp_path: Path) -> None:
    """The continuation begins with the picked epoch, whose held-out loss had not risen."""
    run = run_states.in_folder(tmp_path, "picked")
    with checkpoints.writing_checkpoint(run, 6) as checkpoint:
        (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
    found = advice("data.val=val.jsonl", "continue.add_epochs=1", strategy="custom")
    assert by_code(found, "begins-with-picked") and not by_code(found, "held-out-loss-rising")
