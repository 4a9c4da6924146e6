"""Picking an epoch on the page of a run: real requests, what is recorded, and that it can be taken back."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from board_server import Served, served
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.runs import checkpoints, epochs, store
from fasttune.runs.store import Run
from fasttune.web.conversation import chat_models

PAGE = "/runs/persona/001-fresh"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three epochs, the second with the lowest held-out loss, the last one the run's own adapter."""
    run = write_run(tmp_path / "runs", losses=(2.0, 1.0, 0.2), held_out=(3.0, 1.0, 2.0))
    write_epochs(run, (1, 2, 3), (3.0, 1.0, 2.0), steps_per_epoch=1)
    return run


def rows(board: Served) -> list[str]:
    """The text of each kept epoch on the page of the run."""
    page = board.get(PAGE).text
    table = page[page.index('<section id="epochs">') :].partition("</tbody>")[0].partition("<tbody>")[2]
    table = re.sub(r'<span class="folded">[^<]*</span>', "", table)  # names of columns, for narrow screens
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", one)).split()) for one in table.split("</tr>")[:-1]]


def picks(run: Run) -> list[tuple[float | None, float | None]]:
    return [(one.from_, one.to) for one in epochs.read_picks(run)]


def test_the_page_shows_the_epochs_and_which_one_is_used(run: Run) -> None:
    with served(run.root) as board:
        assert rows(board) == ["1 1 3.000 answer after 1 Use epoch 1", "2 best 2 1.000 answer after 2 Use epoch 2",
                               "3 in use the last 3 2.000 answer after 3"]  # fmt: skip
        assert "the run uses its own adapter, which the training ended with" in board.get(PAGE).text
        assert "Undo" not in board.get(PAGE).text


def test_a_pick_is_recorded_shown_and_undone(run: Run) -> None:
    before = chat_models([run])["persona/001-fresh/adapter"]
    with served(run.root) as board:
        answer = board.post(f"{PAGE}/pick", epoch="2")
        assert answer.status_code == 303 and answer.headers["location"].startswith(f"{PAGE}?")
        assert picks(run) == [(None, 2.0)] and epochs.served_adapter(run).name == "epoch-2"
        assert "2 in use best 2 1.000 answer after 2" in rows(board)
        page = html.unescape(board.get(PAGE).text)
        assert "the run uses the adapter of epoch 2, picked " in page and "Undo: the run's own adapter again" in page
        assert chat_models([run])["persona/001-fresh/adapter"] != before, "chat begins anew with the other adapter"
        assert board.post(f"{PAGE}/pick", epoch="1").status_code == 303
        assert "Undo: epoch 2 again" in board.get(PAGE).text
        for epoch in ("2", "own"):
            assert board.post(f"{PAGE}/pick", epoch=epoch).status_code == 303
    assert (
        picks(run) == [(None, 2.0), (2.0, 1.0), (1.0, 2.0), (2.0, None)] and epochs.served_adapter(run) == run.adapter
    )


@pytest.mark.parametrize("epoch", ["7", "", "x", "../001", "nan"])
def test_an_epoch_that_is_not_kept_is_refused_with_those_that_are(run: Run, epoch: str) -> None:
    with served(run.root) as board:
        answer = board.post(f"{PAGE}/pick", epoch=epoch)
    assert answer.status_code == 409 and "1, 2, 3" in answer.text and picks(run) == []


def test_a_foreign_page_picks_nothing(run: Run) -> None:
    with served(run.root) as board:
        assert board.post(f"{PAGE}/pick", origin="http://evil.example", epoch="2").status_code == 403
        with board.bare as client:
            headers = {"Origin": board.origin}
            assert client.post(f"{PAGE}/pick", data={"epoch": "2"}, headers=headers).status_code == 403, "no token"
        assert board.get(f"{PAGE}/pick", epoch="2").status_code == 405
        assert board.post("/runs/persona/009-fresh/pick", epoch="2").status_code == 404
    assert picks(run) == []


def test_what_is_damaged_or_in_use_is_not_picked(run: Run) -> None:
    (run.epochs / "epoch-2" / checkpoints.WEIGHTS).write_text("other weights")
    with served(run.root) as board:
        answer = board.post(f"{PAGE}/pick", epoch="2")
        assert answer.status_code == 409 and "epoch-2" in answer.text
        with store.exclusive(run):
            assert board.post(f"{PAGE}/pick", epoch="1").status_code == 409
    assert picks(run) == []


def test_a_training_that_is_not_finished_has_no_button(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0, 1.0), finished=False)
    write_epochs(run, (1, 2), (3.0, 2.0), steps_per_epoch=1)
    for file in run.adapter.iterdir():
        file.unlink()
    run.adapter.rmdir()
    with served(tmp_path) as board:
        assert rows(board) == ["1 1 3.000 answer after 1", "2 best 2 2.000 answer after 2"]
        assert "once the training is finished" in board.get(PAGE).text
        assert board.post(f"{PAGE}/pick", epoch="1").status_code == 409
    assert picks(run) == []


def test_a_damaged_document_hides_nothing_else(run: Run) -> None:
    run.picked.write_text("{", encoding="utf-8")
    with served(run.root) as board:
        page = board.settled(PAGE)
    assert page.status_code == 200 and "picked.json" in page.text and 'id="epochs"' not in page.text
