"""Blind comparison on a page: the names come at the end, and blind.json is that of `fasttune compare --blind`."""

from __future__ import annotations

import html
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from board_server import Served, served
from run_folders import write_run

from fasttune.cli.understand import compare
from fasttune.runs import documents, store
from fasttune.runs.outcomes import BlindComparisons
from fasttune.web import blind

NAMES = ("persona/001-fresh", "persona/002-fresh")
QUESTIONS = [
    {"question": "who?", "answers": {NAMES[0]: ["first says <b>me</b>"], NAMES[1]: ["second says me"]}},
    {"question": "where?", "answers": {NAMES[0]: ["first says here"], NAMES[1]: ["second says here"]}},
    {"question": "same?", "answers": {NAMES[0]: ["yes"], NAMES[1]: ["yes"]}},
]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a child process print this in place of `fasttune compare --json`."""

    def answer(text: str) -> None:
        code = f"import sys; sys.stderr.write('the models answer\\n'); sys.stdout.write({text!r})"
        monkeypatch.setattr(blind, "fasttune", lambda: [sys.executable, "-c", code])

    answer(json.dumps({"questions": QUESTIONS}))
    return answer


def begun(board: Served) -> str:
    """The address of a sitting whose answers are there, or that has failed."""
    started = board.post("/blind", first=NAMES[0], second=NAMES[1])
    assert started.status_code == 303
    path = started.headers["location"].partition("?")[0]
    board.board.sittings.by_key[path.rpartition("/")[2]].process.wait(120)
    return str(path)


def test_the_names_come_when_all_is_picked(tmp_path: Path, answering: Any) -> None:
    write_run(tmp_path)
    write_run(tmp_path)
    with served(tmp_path) as board:
        path = begun(board)
        for number in range(2):
            page = board.get(path).text
            assert not any(name in page for name in NAMES), "the labels only after picking"
            first = html.unescape(re.findall(r'<div class="said"[^>]*>(.*?)</div>', page)[0])
            choice = "1" if first.startswith("second") else "2"
            assert board.post(f"{path}/pick", number=str(number), pick=choice).status_code == 303
        page = html.unescape(board.get(path).text)
        assert re.search(rf"{NAMES[1]}</bdi></dt><dd><meter[^>]*></meter> 2<", page)
        assert "1 pair of answers is equal" in page and "<b>" not in board.get(path).text
    kept = documents.read(store.Run(tmp_path, NAMES[0]).blind, BlindComparisons)
    (sitting,) = kept.comparisons
    assert dict(sitting.picks) == {NAMES[0]: 0, NAMES[1]: 2} and len(sitting.choices) == 2


def test_a_second_click_counts_once_and_stopping_keeps_what_was_picked(tmp_path: Path, answering: Any) -> None:
    write_run(tmp_path)
    write_run(tmp_path)
    with served(tmp_path) as board:
        path = begun(board)
        for number, choice in (
            ("0", "neither"),
            ("0", "1"),
            ("7", "1"),
            ("x", "1"),
            ("1", "3"),
            ("1", "stop"),
            ("1", "1"),
        ):
            board.post(f"{path}/pick", number=number, pick=choice)
        assert "kept in" in board.get(path).text
    (sitting,) = documents.read(store.Run(tmp_path, NAMES[0]).blind, BlindComparisons).comparisons
    assert (dict(sitting.picks), sitting.no_difference) == ({NAMES[0]: 0, NAMES[1]: 0}, 1)


@pytest.mark.parametrize(
    "text", ["", "{", '{"questions": []}', '{"questions": [{"question": "a", "answers": {"x": ["1"]}}]}']
)
def test_models_that_give_no_answers_are_one_message(tmp_path: Path, answering: Any, text: str) -> None:
    write_run(tmp_path)
    write_run(tmp_path)
    answering(text)
    with served(tmp_path) as board:
        page = board.get(begun(board))
        assert page.status_code == 500 and "the models answer" in page.text


@pytest.mark.parametrize("names", [("persona/001-fresh", "persona/001-fresh"), ("persona/001-fresh", "../x"), ("", ""),
                                   ("--json", "base"), ("persona/001-fresh", "/etc/passwd")])  # fmt: skip
def test_only_models_of_the_list_are_asked(tmp_path: Path, answering: Any, names: tuple[str, str]) -> None:
    write_run(tmp_path)
    with served(tmp_path) as board:
        assert board.post("/blind", first=names[0], second=names[1]).status_code == 400
        assert not board.board.sittings.by_key


def test_a_page_that_waits_shows_what_the_models_are_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    code = "import sys, time; print('persona answers 3/20', file=sys.stderr, flush=True); time.sleep(600)"
    monkeypatch.setattr(blind, "fasttune", lambda: [sys.executable, "-c", code])
    with served(tmp_path) as board:
        path = board.post("/blind", first=NAMES[0], second="base").headers["location"].partition("?")[0]
        sitting = board.board.sittings.by_key["1"]
        for _try in range(2400):
            if sitting.last_line():
                break
            time.sleep(0.05)
        page = board.get(path).text
        assert "persona answers 3/20" in page and 'http-equiv="refresh"' in page
    assert sitting.process.wait(120) != 0, "nobody will see its answers"


def test_the_command_is_one_that_compare_takes() -> None:
    options = {name for parameter in compare.params for name in parameter.opts}
    assert {"--held-out", "--seeds", "--json", "--runs"} <= options
