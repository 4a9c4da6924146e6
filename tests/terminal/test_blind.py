"""The blind comparison: names hidden while a person picks, then shown, counted and kept in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import terminal
from run_folders import write_run
from terminal import CTRL_C, ENTER, answer, type_here

from fasttune.analysis import compare
from fasttune.runs import documents
from fasttune.runs.outcomes import Answered, BlindComparisons
from fasttune.runs.store import Run
from fasttune.terminal import blind

QUESTIONS = [
    Answered("你是谁？", {"base": ("助手", "AI"), "linzhi": ("林栀", "林栀呀")}),
    Answered("在吗", {"base": ("在", "在的"), "linzhi": ("在", "在呢")}),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(tmp_path)


def kept(run: Run) -> BlindComparisons:
    return documents.read(run.blind, BlindComparisons)


def sit(run: Run | None, *keys: str) -> str:
    """A sitting in which a person types these keys at one question after the other; what the terminal showed."""
    steps = [("Which answer is better?", key + ENTER) for key in keys]
    return answer(steps, lambda: blind.compare_blind(QUESTIONS, run, as_json=False))[1]


def test_picks_are_counted_by_model_and_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    screen = sit(run, "1", "3", "2")
    (found,) = kept(run).comparisons
    assert len(found.choices) == 3 and found.no_difference == 1 and sum(found.picks.values()) == 2
    assert [choice.picked for choice in found.choices] == [
        found.choices[0].order[0], None, found.choices[2].order[1],
    ]  # fmt: skip
    assert "1 pair of answers is equal" in screen
    assert not [one for one in found.choices if one.answers["base"] == one.answers["linzhi"]]
    assert {(one.question, one.seed) for one in found.choices} == {("你是谁？", 0), ("你是谁？", 1), ("在吗", 1)}


def test_no_name_is_shown_before_the_last_pick(run: Run) -> None:
    screen = sit(run, "1", "1", "1")
    before_the_end = screen[: screen.rindex("Which answer is better?")]
    assert "linzhi" not in before_the_end and "base" not in before_the_end and "林栀" in before_the_end


def picking(*keys: str) -> list[tuple[str, str]]:
    """Keys at one question after the other: its number is printed, then its choices, the last of them `stop here`. The
    question itself is printed once more with its answer, and Ctrl-C before the choices are there is lost."""
    return [step for number, key in enumerate(keys, 1) for step in ((f"{number}/3", ""), ("stop here", key))]


def test_who_stops_keeps_what_was_picked(run: Run) -> None:
    sit(run, "1", "4")
    sit(run, "2", "2", "4")
    assert [len(one.choices) for one in kept(run).comparisons] == [1, 2]


def test_ctrl_c_keeps_what_was_picked(run: Run) -> None:
    steps = picking("1" + ENTER, CTRL_C)

    def sitting() -> str:
        with pytest.raises(KeyboardInterrupt):
            blind.compare_blind(QUESTIONS, run, as_json=False)
        return "interrupted"

    ended, screen = answer(steps, sitting)
    (found,) = kept(run).comparisons
    assert ended == "interrupted" and len(found.choices) == 1 and sum(found.picks.values()) == 1
    assert "kept in" in screen and "blind.json" in screen


def test_ctrl_c_before_the_first_pick_writes_nothing(run: Run) -> None:
    def sitting() -> str:
        with pytest.raises(KeyboardInterrupt):
            blind.compare_blind(QUESTIONS, run, as_json=False)
        return "interrupted"

    answer(picking(CTRL_C), sitting)
    assert not run.blind.exists()


def test_nothing_picked_writes_nothing(run: Run) -> None:
    sit(run, "4")
    assert not run.blind.exists()


def test_the_order_is_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = {pair.order for _round in range(40) for pair in blind.shuffled(QUESTIONS)}
    assert orders == {("base", "linzhi"), ("linzhi", "base")}
    assert len({tuple((pair.question, pair.seed) for pair in blind.shuffled(QUESTIONS)) for _round in range(40)}) > 1


def test_the_document_on_stdout(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = blind.sitting(QUESTIONS, [])
    blind.show(found, run, as_json=True)
    assert json.loads(capsys.readouterr().out)["picks"] == {"base": 0, "linzhi": 0}


def test_the_typist_sees_two_words_that_come_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 10.0)

    def question() -> str:
        print("1/3  who?  stop here")
        return input()

    assert answer([("1/3", ""), ("stop here", "yes" + ENTER)], question)[0] == "yes"


def test_by_the_command_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fasttune compare --blind` at a terminal, its models' answers given: interrupted after one pick, then to the end."""
    monkeypatch.setattr(compare, "ask_only", lambda request: (QUESTIONS, run))
    asked, words = "Which answer is better?", ("compare", run.id, "--blind")

    seen = type_here(picking("1" + ENTER, CTRL_C), *words, runs=run.root)
    assert seen.returncode == 130 and "kept in" in seen.screen
    seen = type_here(picking("1" + ENTER, "2" + ENTER, "3" + ENTER), *words, runs=run.root)
    before_the_end, _asked, end = seen.screen.rpartition(asked)
    assert seen.returncode == 0 and "linzhi" not in before_the_end and "linzhi: " in end
    first, second = kept(run).comparisons
    assert len(first.choices) == 1 and len(second.choices) == 3 and second.no_difference == 1
    assert [one.picked for one in second.choices[:2]] == [second.choices[0].order[0], second.choices[1].order[1]]
