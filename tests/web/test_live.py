"""A training that is watched: curves that grow, a killed process that is seen, the button that is Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from board_server import served
from run_folders import write_run
from web_runs import log, trained_by_another

from fasttune import files
from fasttune.runs import store
from fasttune.runs.store import Run
from fasttune.web.board import Board


def test_points_come_once_each_and_a_torn_line_is_waited_for(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0, 1.0), finished=False)
    with trained_by_another(run, tmp_path / "note"), served(tmp_path) as board:
        events = (one for one in board.events(f"/runs/{run.id}/events") if one[0] == "points")
        _name, first, place = next(events)
        assert [point[:3] for point in first] == [[1, 1.0, 2.0], [2, 2.0, 1.0]]
        log(run, 3)
        assert [point[0] for point in next(events)[1]] == [3]
        line = json.dumps({"step": 4, "epoch": 0.4, "loss": 0.25, "mean_token_accuracy": 0.5})
        with open(run.history, "a", encoding="utf-8") as file:
            file.write(line[:20])
            file.flush()
            time.sleep(0.3)
            file.write(line[20:] + "\n")
        assert [point[0] for point in next(events)[1]] == [4]
        again = board.events(f"/runs/{run.id}/events", beginning=place)
        assert [point[0] for point in next(again)[1]] == [3, 4], "from the place on that the page has"


def test_what_is_trained_now_is_said_in_words(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0,) * 10, finished=False)
    run.history.unlink()
    with trained_by_another(run, tmp_path / "note"), served(tmp_path) as board:
        page = board.get(f"/runs/{run.id}").text
        assert "the first step is awaited" in page and f"/runs/{run.id}/stop" in page
        log(run, 4, tokens_per_second=1234.5)
        events = board.events(f"/runs/{run.id}/events", lang="zh")
        state = next(data for name, data, _id in events if name == "state")
        assert state["status"] == "训练中"
        assert (state["loss"], state["rate"], state["done"], state["total"]) == ("0.250", "1,234", 4, 10)
        page = board.get(f"/runs/{run.id}").text
        assert "step 4 of 10" in page and "about 3 min left" in page
        states = next(data for name, data, _id in board.events("/events") if name == "states")
        assert states[run.id]["step"] == "step 4 of 10"


def test_a_board_looks_often_enough_to_see_a_kill_within_5_seconds() -> None:
    """Its slowest look is that of the page of all runs, at every second turn."""
    assert 2 * Board.poll_seconds < 5


def test_a_killed_training_is_seen(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=False)
    with trained_by_another(run, tmp_path / "note") as process, served(tmp_path) as board:
        events = board.events(f"/runs/{run.id}/events")
        next(events)
        process.kill()
        process.wait()
        assert [name for name, _data, _id in events][-1] == "ended"
        assert "stopped" in board.get(f"/runs/{run.id}").text


def test_the_page_of_all_runs_sees_it_too(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=False)
    with trained_by_another(run, tmp_path / "note") as process, served(tmp_path) as board:
        events = board.events("/events")
        assert run.id in next(events)[1]
        process.kill()
        process.wait()
        assert [name for name, _data, _id in events][-1] == "ended"


def test_stop_is_ctrl_c_of_the_process_that_trains(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=False)
    with trained_by_another(run, tmp_path / "note") as process, served(tmp_path) as board:
        asked = board.get(f"/runs/{run.id}/stop")
        assert asked.status_code == 200 and "writes a checkpoint" in asked.text and process.poll() is None
        assert board.post(f"/runs/{run.id}/stop").status_code == 303
        assert process.wait(120) == 130 and (tmp_path / "note").read_text() == str(int(signal.SIGINT))
        again = board.post(f"/runs/{run.id}/stop")
        assert again.status_code == 409 and "no process trains this run" in again.text


def test_a_number_in_the_lock_file_that_is_another_processes_gets_no_signal(tmp_path: Path) -> None:
    run = write_run(tmp_path, finished=False)
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with trained_by_another(run, tmp_path / "note"), served(tmp_path) as board:
            run.lock.write_text(f"{innocent.pid}\n")
            answer = board.post(f"/runs/{run.id}/stop")
            assert answer.status_code == 409 and "can&#39;t be told" in answer.text and "Ctrl-C" in answer.text
            run.lock.write_text(f"{os.getpid()}\n")
            assert board.post(f"/runs/{run.id}/stop").status_code == 409
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_finished_run_has_no_stop(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with served(tmp_path) as board:
        assert f"/runs/{run.id}/stop" not in board.get(f"/runs/{run.id}").text
        assert board.post(f"/runs/{run.id}/stop").status_code == 409


def test_a_history_that_is_written_anew_loads_the_page_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0, 1.0, 0.5), finished=False)
    with trained_by_another(run, tmp_path / "note"), served(tmp_path) as board:
        events = board.events(f"/runs/{run.id}/events")
        assert next(events)[0] == "points"
        files.write_text(run.history, run.history.read_text(encoding="utf-8").split("\n")[0] + "\n")
        assert [name for name, _data, _id in events][-1] == "ended"


@pytest.mark.slow
def test_a_real_training_is_started_watched_and_stopped(tmp_path: Path) -> None:
    """From the recipe to the stop, through the pages alone; then the same command resumes it."""
    root = tmp_path / "runs"
    with served(root) as board:
        planned = board.post("/train/plan", recipe="recipes/quickstart.toml")
        assert planned.status_code == 200 and "Start this training" in planned.text
        started = board.post("/train/start", plan="1")
        assert started.status_code == 303
        run = wait_for_run(root)
        events = board.events(f"/runs/{run.id}/events", seconds=300)
        assert next(name for name, data, _id in events if name == "points" and data)
        assert board.post(f"/runs/{run.id}/stop").status_code == 303
        assert [name for name, _data, _id in events][-1] == "ended"
        child = board.board.children.started["1"]
        assert child.process.wait(120) == 130
        assert "to resume there:" in child.output() and run.status == "stopped"
        assert any(run.checkpoints.iterdir())
        page = board.get("/train/started/1").text
        assert "stopped" in page and "resume there" in page


def wait_for_run(root: Path) -> Run:
    """The run that a training has begun."""
    for _try in range(3000):
        if runs := store.list_runs(root, "quickstart"):
            return runs[0]
        time.sleep(0.1)
    raise AssertionError("no run has begun")
