"""The start of a training from a page: only of recipes in the list, only of a plan that was shown, as a child process
that does not need the board."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from board_server import served
from conftest import REPOSITORY
from run_folders import write_run

from fasttune.web import children, training_page
from fasttune.web.training_page import Choice, requested


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, which is the current one."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text('name = "mine"\nstrategy = "fresh"\n', encoding="utf-8")
    (tmp_path / "secret.toml").write_text('name = "secret"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def standing_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(children, "fasttune", lambda: [sys.executable, "-c", code])


def test_the_plan_is_shown_and_then_started_once(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in(monkeypatch, "import sys; print('the plan of', *sys.argv[1:])")
    with served(recipes / "runs") as board:
        page = board.post("/train/plan", recipe="recipes/mine.toml").text
        assert "the plan of plan recipes/mine.toml --runs" in page and "Start this training" in page
        assert board.post("/train/start", plan="2").status_code == 404, "no plan was shown under this number"
        standing_in(monkeypatch, "import sys, time; print('training', *sys.argv[1:], flush=True); time.sleep(600)")
        where = [board.post("/train/start", plan="1").headers["location"] for _twice in range(2)]
        assert where[0] == where[1] and len(board.board.children.started) == 1
        child = board.board.children.started["1"]
        try:
            assert said(child, "training run recipes/mine.toml --runs")
            assert os.getsid(child.process.pid) == child.process.pid, (
                "its own session: no Ctrl-C of the board reaches it"
            )
            assert stat.S_IMODE(child.log.stat().st_mode) == 0o600
            assert "running" in board.get("/train/started/1").text
        finally:
            child.process.kill()
            child.process.wait()
        assert "ended with exit code -9" in board.get("/train/started/1").text
        assert board.get("/train/started/2").status_code == 404


def said(child: children.Child, text: str) -> bool:
    """Whether a child prints this within two minutes."""
    for _try in range(2400):
        if text in child.output():
            return True
        time.sleep(0.05)
    return False


def test_a_plan_that_is_refused_can_not_be_started(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in(monkeypatch, "import sys; print('error: no such <file>', file=sys.stderr); sys.exit(2)")
    with served(recipes / "runs") as board:
        page = board.post("/train/plan", recipe="recipes/mine.toml")
        assert page.status_code == 409 and "error: no such &lt;file&gt;" in page.text
        assert "Start this training" not in page.text
        assert board.post("/train/start", plan="1").status_code == 404 and not board.board.children.started


@pytest.mark.parametrize("recipe", ["", "secret.toml", "../secret.toml", "recipes/../secret.toml", "/etc/passwd", "recipes/mine",
                                    "./recipes/mine.toml", "--help", "recipes/mine.toml\n"])  # fmt: skip
def test_only_recipes_of_the_list(recipes: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    standing_in(monkeypatch, "raise SystemExit('must not run')")
    with served(recipes / "runs") as board:
        assert board.post("/train/plan", recipe=recipe).status_code == 404
        assert not board.board.children.plans


def test_the_list_has_recipes_and_the_copies_in_the_newest_runs(recipes: Path) -> None:
    run = write_run(recipes / "runs")
    run.recipe.write_text('name = "persona"\nstrategy = "fresh"\n', encoding="utf-8")
    with served(recipes / "runs") as board:
        page = board.get("/train").text
    assert "recipes/mine.toml" in page and "persona/001-fresh/recipe.toml" in page and "secret" not in page
    assert page.count('name="strategy"') == 1, "only a series that has runs can be continued"


@pytest.mark.parametrize(("given", "arguments"), [
    ({}, []),
    ({"strategy": "incremental", "add_epochs": "1.5"}, ["--continue", "incremental", "--set", "continue.add_epochs=1.5"]),
    ({"strategy": "incremental", "add_epochs": "1 --overwrite x"}, ["--continue", "incremental"]),
    ({"strategy": "retune", "add_epochs": "2"}, ["--continue", "retune"]),
    ({"strategy": "--json", "on_existing": "overwrite"}, []),
    ({"on_existing": "new"}, ["--on-existing", "new"]),
])  # fmt: skip
def test_a_form_gives_only_what_it_offers(given: dict[str, str], arguments: list[str]) -> None:
    choice = Choice("mine", Path("mine.toml"), (), "mine")
    assert requested(choice, given, Path("elsewhere")).arguments == [
        "run",
        "mine.toml",
        "--runs",
        "elsewhere",
        *arguments,
    ]


def test_a_killed_board_leaves_the_training_alone(recipes: Path) -> None:
    """The board is a process of its own here, killed with all that its session holds."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from board_server import served; from fasttune.web import children\n"
        "with served(Path('runs')) as board:\n"
        "    children.fasttune = lambda: [sys.executable, '-c', 'print(1)']\n"
        "    board.post('/train/plan', recipe='recipes/mine.toml')\n"
        "    children.fasttune = lambda: [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "    board.post('/train/start', plan='1')\n"
        "    print(board.board.children.started['1'].process.pid, flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command: list[str] = [sys.executable, "-c", code, str(REPOSITORY / "tests")]
    board: Any = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment,
                                  start_new_session=True)  # fmt: skip
    training = int(board.stdout.readline())
    os.killpg(board.pid, signal.SIGINT)
    os.killpg(board.pid, signal.SIGKILL)
    board.communicate()
    try:
        os.kill(training, 0)
        state = re.search(r"State:\s+(\S)", Path(f"/proc/{training}/status").read_text(encoding="ascii"))
        assert state and state[1] in "SRD", "it lives, and is no zombie"
    finally:
        os.kill(training, signal.SIGKILL)


def test_a_word_for_each_state(tmp_path: Path) -> None:
    words = []
    for code in (0, 130, 1):
        process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        process.wait()
        words.append(training_page.state_word(children.Child("1", (), tmp_path, process, 0.0)))
    assert words == ["finished", "stopped", "ended with exit code 1"]
