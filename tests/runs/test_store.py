"""The runs folder: numbers, names, states, the current run and the end of a run."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fasttune import files
from fasttune.console import FasttuneError, UsageError
from fasttune.runs import store
from fasttune.runs.store import Run


def create(root: str) -> str:
    return store.create(Path(root), "linzhi", "fresh").id


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert [create(str(tmp_path)) for _number in range(3)] == [f"linzhi/00{n}-fresh" for n in (1, 2, 3)]
    assert store.list_series(tmp_path) == ["linzhi"]


def start_one(root: str, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    while True:
        try:
            results.put(create(root))
            return
        except FasttuneError:  # another process holds the series for a moment
            time.sleep(0.001)


def test_processes_never_get_the_same_number(tmp_path: Path) -> None:
    results: multiprocessing.Queue[str] = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=start_one, args=(str(tmp_path), results)) for _number in range(8)]
    for worker in workers:
        worker.start()
    ids = {results.get(timeout=300) for _number in workers}
    for worker in workers:
        worker.join()
    assert ids == {f"linzhi/{n:03d}-fresh" for n in range(1, 9)}


def test_names(tmp_path: Path) -> None:
    first, second = store.create(tmp_path, "linzhi", "fresh"), store.create(tmp_path, "linzhi", "retune")
    assert store.find(tmp_path, "linzhi") == second
    store.set_current(first)
    assert store.find(tmp_path, "linzhi") == first
    assert store.find(tmp_path, "linzhi/002-retune") == second
    assert store.find(tmp_path, "linzhi/002") == second
    files.write_json(second.plan, {})
    assert store.find(Path("elsewhere"), str(second.folder)).folder == second.folder
    for unknown in ("nobody", "linzhi/007", "linzhi/00"):
        with pytest.raises(UsageError, match=f"no run called {unknown}") as caught:
            store.find(tmp_path, unknown)
        assert "linzhi" in caught.value.findings[0].fix


@pytest.mark.parametrize(
    "named",
    ["{outside}", "../outside/001-fresh", "linzhi/../../outside", "linzhi", "other/001-fresh", ".", "", "\udcff"],
)
def test_current_names_a_run_of_its_series_and_nothing_else(tmp_path: Path, named: str) -> None:
    """A run folder may come from a stranger."""
    root, outside = tmp_path / "runs", store.create(tmp_path, "outside", "fresh").folder
    run = store.create(root, "linzhi", "fresh")
    store.create(root, "other", "fresh")
    pointer = root / "linzhi" / "current"
    pointer.write_bytes(named.format(outside=outside).encode(errors="surrogateescape"))
    assert store.current(root, "linzhi") == run
    store.delete(run)
    assert pointer.exists(), "it did not name this run"


def status(run: Run) -> str:
    """The state of a run, which changes between two calls."""
    return run.status


def test_status_and_a_lock_that_a_dead_process_does_not_keep(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    assert status(run) == "stopped"
    code = (
        "import time; from pathlib import Path; from fasttune.files import locked\n"
        f"with locked(Path({str(run.lock)!r}), ''):\n print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert status(run) == "running"
    with pytest.raises(FasttuneError, match="busy"), files.locked(run.lock, "busy"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert status(run) == "stopped"
    with files.locked(run.lock, "busy"):
        pass
    run.adapter.mkdir()
    assert status(run) == "finished"


def make_current_often(run: Run) -> None:
    for _time in range(100):
        store.set_current(run)


def test_many_that_finish_at_once(tmp_path: Path) -> None:
    """They write the same partial file: without a lock, one's rename takes the other's file away."""
    finished = [store.create(tmp_path, "persona", "fresh") for _number in range(3)]
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=make_current_often, args=(run,)) for run in finished]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert store.current(tmp_path, "persona") in finished
    assert not list(tmp_path.rglob("*.partial"))


def test_current_is_the_named_run_else_the_newest_finished_one(tmp_path: Path) -> None:
    assert store.current(tmp_path, "linzhi") is None
    first, second, third = (store.create(tmp_path, "linzhi", "fresh") for _number in range(3))
    assert store.current(tmp_path, "linzhi") == third
    second.adapter.mkdir()
    assert store.current(tmp_path, "linzhi") == second
    store.set_current(first)
    assert store.current(tmp_path, "linzhi") == first


def test_a_deleted_run_is_no_longer_current_and_its_number_is_not_given_to_a_live_one(tmp_path: Path) -> None:
    first, second = store.create(tmp_path, "linzhi", "fresh"), store.create(tmp_path, "linzhi", "fresh")
    store.set_current(first)
    store.delete(first)
    assert store.list_runs(tmp_path, "linzhi") == [second] and store.current(tmp_path, "linzhi") == second
    assert not (tmp_path / "linzhi" / "current").exists()
    assert store.create(tmp_path, "linzhi", "retune").id == "linzhi/003-retune"
    with (
        files.locked(second.lock, "busy"),
        pytest.raises(FasttuneError, match="another process is training linzhi/002"),
    ):
        store.delete(second)
    assert second.folder.is_dir()


def test_an_id_is_looked_up_in_the_runs_folder_before_it_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From within another runs folder, where the id is a path too."""
    here, there = (store.create(tmp_path / name, "linzhi", "fresh") for name in ("here", "there"))
    for run in (here, there):
        run.plan.write_text("{}")
    monkeypatch.chdir(here.root)
    assert store.find(there.root, "linzhi/001-fresh") == there
    assert store.find_below(there.root, "linzhi/001") == there
    assert store.find_below(there.root, str(here.folder)) is None
    assert store.find(there.root, str(here.folder)).folder == here.folder


def test_a_run_in_place_of_another(tmp_path: Path) -> None:
    old, other, new = (store.create(tmp_path, "linzhi", "fresh") for _number in range(3))
    old.plan.write_text("{}")
    assert store.replaced(new) is None and store.remove_replaced(new) is None
    store.set_current(old)
    store.replace_by(old, new)
    assert store.replaced(new) == old
    with files.locked(old.lock, "busy"), pytest.raises(FasttuneError, match="another process is training linzhi/001"):
        store.require_unused(old)
    store.require_unused(old)
    assert store.remove_replaced(new) == old
    assert store.list_runs(tmp_path, "linzhi") == [other, new] and not new.replaces.exists()
    assert not (tmp_path / "linzhi" / "current").exists()
    store.replace_by(other, new)
    other.plan.write_text("{}")  # another run of this id, of which the user said nothing
    assert store.remove_replaced(new) is None and other.folder.is_dir()


def test_a_run_that_is_exported_is_in_use(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    run.adapter.mkdir()
    with (
        store.exclusive(run),
        pytest.raises(FasttuneError, match="another process is exporting linzhi/001"),
        store.exclusive(run, seconds=0.05),
    ):
        pass


def test_a_folder_that_can_not_be_filled_leaves_no_run(tmp_path: Path) -> None:
    def fill(run: Run) -> None:
        run.recipe.write_text("name")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.create(tmp_path, "linzhi", "fresh", fill)
    assert store.list_runs(tmp_path, "linzhi") == [] and store.list_series(tmp_path) == []


def test_a_result_that_can_not_be_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison of minutes was lost where the runs folder may not be written to."""
    run = store.create(tmp_path, "linzhi", "fresh")

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.scores))

    kept = []
    assert store.keep(run, lambda: kept.append("written")) and kept == ["written"]
    assert not store.keep(run, full)
    assert "warning: " in (shown := capsys.readouterr().err) and "not kept: no space left" in shown
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS), str(run.lock))
    monkeypatch.setattr(store, "locked", lambda *_names, **_more: raising(refused))
    assert not store.keep(run, pytest.fail)
    assert "not kept: this can't be read or written" in capsys.readouterr().err


@contextlib.contextmanager
def raising(problem: Exception) -> Iterator[None]:
    raise problem
    yield
