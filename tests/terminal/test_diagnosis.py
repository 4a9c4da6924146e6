"""What `fasttune diagnose` prints: verdict, evidence, one command; the checklist; JSON; the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trainings
from trainings import write_factory, write_state

from fasttune.analysis.diagnose import OURS, diagnose
from fasttune.terminal import diagnosis


def test_the_verdict_comes_first_and_one_command_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_factory(tmp_path, trainings.over_fitting(1))
    assert diagnosis.show(tmp_path / "runs", str(tmp_path), as_json=False, with_checklist=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: over-fitting from step 100 (epoch 1.0) on: the held-out loss rose from 1.5")
    assert lines[-2:] == ["change this setting of LLaMA-Factory next:", "  num_train_epochs: 1"]
    text = "\n".join(lines)
    assert "by the usual bands" in text and "besides:" in text
    assert text.count("num_train_epochs") == 1, "a remedy is not said twice"


@pytest.mark.parametrize(("made", "code"), [(trainings.diverged, 1), (trainings.restarted, 1), (trainings.good, 0),
                                            (trainings.memorised, 0)])  # fmt: skip
def test_the_exit_code_is_that_of_the_worst_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Callable[[int], trainings.Rows], code: int
) -> None:
    write_state(tmp_path, made(1))
    assert diagnosis.show(tmp_path / "runs", str(tmp_path), as_json=True, with_checklist=False) == code
    document = json.loads(capsys.readouterr().out)
    assert {"findings", "verdict", "evidence", "command", "checklist", "where", "trainer"} <= set(document)
    assert set(document["findings"][0]) == {"code", "level", "where", "what", "why", "fix"}
    assert document["verdict"] == document["findings"][0]["what"]
    levels = [one["level"] for one in document["findings"]]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)


def test_the_checklist_is_answered_item_by_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path, trainings.restarted(1))
    diagnosis.show(tmp_path / "runs", str(tmp_path), as_json=False, with_checklist=True)
    text = capsys.readouterr().out
    assert "[-] Continued, not restarted" in text
    assert "[-] The token accuracy is above 0.9: 73.0%" in text
    assert "[ ] It answers well when it is asked: only you can tell" in text
    answers = {(item.stage, item.name): item.answer for item in diagnose(tmp_path, str(tmp_path)).checklist}
    assert len(answers) == 11, "three before, four during, four after"
    write_state(tmp_path, trainings.good(1))
    answers = {(item.stage, item.name): item.answer for item in diagnose(tmp_path, str(tmp_path)).checklist}
    assert answers["during", "held-out"] == answers["during", "loss"] == answers["during", "continued"] == "yes"
    assert answers["after", "loss"] == "no", "the users' target is shown as it is"


def test_healthy_has_nothing_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path, trainings.good(1))
    assert diagnosis.show(tmp_path / "runs", str(tmp_path), as_json=False, with_checklist=False) == 0
    assert capsys.readouterr().out.rstrip().endswith("nothing to mend: talk to it, that is what counts")


def test_an_output_without_block_characters_has_no_curves(tmp_path: Path) -> None:
    write_state(tmp_path, trainings.good(1))
    found = diagnose(tmp_path, str(tmp_path))
    shown = [line for line, _style in diagnosis.lines(found, 80, "ascii")]
    assert not any("█" in line for line in shown)
    assert any("█" in line for line, _style in diagnosis.lines(found, 80, "utf-8"))


def test_a_command_of_ours_is_typed_whatever_it_begins_with(tmp_path: Path) -> None:
    """Where PATH has no fasttune, a printed command begins with the path of one."""
    write_state(tmp_path, trainings.over_fitting(1))
    found = diagnose(tmp_path, str(tmp_path))
    assert found.because is not None
    found = replace(found, trainer=OURS, because=replace(found.because, fix="`./.venv/bin/fasttune run r.toml`"))
    assert [line for line, _style in diagnosis.next_lines(found)] == [
        "", "type this next:", "  ./.venv/bin/fasttune run r.toml",
    ]  # fmt: skip
