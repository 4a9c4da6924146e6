"""The run folder: numbers, names, locks, whole files, checkpoints and their damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fasttune import files
from fasttune.console import FasttuneError, UsageError
from fasttune.runs import checkpoints, history, store
from fasttune.runs.store import Run


def write_checkpoint(run: Run, step: int) -> Path:
    with checkpoints.writing_checkpoint(run, step) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights" * step)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return run.checkpoints / f"checkpoint-{step}"


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
    ids = {results.get(timeout=30) for _number in workers}
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


def test_status_and_a_lock_that_a_dead_process_does_not_keep(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    assert run.status == "stopped"
    code = f"import time; from pathlib import Path; from fasttune import runs\nwith runs.locked(Path({str(run.lock)!r}), ''):\n print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert run.status == "running"
    with pytest.raises(FasttuneError, match="busy"), files.locked(run.lock, "busy"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert run.status == "stopped"
    with files.locked(run.lock, "busy"):
        pass
    run.adapter.mkdir()
    assert run.status == "finished"


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    files.write_json(target, {"name": "林栀"})
    assert "林栀" in target.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        files.write_json(target, {"bad": object()})
    assert files.read_json(target) == {"name": "林栀"}
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "adapter") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]


def test_checkpoints_are_whole_and_rotate(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    for step in (5, 10, 15, 100):
        write_checkpoint(run, step)
    assert [checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(run)] == [5, 10, 15, 100]
    checkpoints.rotate(run, keep=2, best_step=5)
    assert [checkpoints.checkpoint_step(path) for path in checkpoints.list_checkpoints(run)] == [5, 15, 100]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"weightsweighty"), "not what was written"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "not what was written"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
    ],
)
def test_damage_is_named(tmp_path: Path, harm, words: str) -> None:  # type: ignore[no-untyped-def]
    checkpoint = write_checkpoint(store.create(tmp_path, "linzhi", "fresh"), 2)
    assert checkpoints.find_damage(checkpoint) == ""
    harm(checkpoint)
    assert words in checkpoints.find_damage(checkpoint)


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    (run.checkpoints / "checkpoint-7.partial").mkdir(parents=True)
    assert checkpoints.list_checkpoints(run) == []
    write_checkpoint(run, 7)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-7"]


def test_history_is_trimmed_to_a_step_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    for step in range(1, 5):
        files.append_line(run.history, {"step": step, "loss": 1 / step})
    with open(run.history, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    assert [line["step"] for line in history.read_history(run)] == [1, 2, 3, 4]
    history.trim_history(run, 2)
    assert run.history.read_text().count("\n") == 2


def make_current_often(run: Run) -> None:
    for _time in range(100):
        store.set_current(run)


def test_many_that_finish_at_once(tmp_path: Path) -> None:
    """Their names for the unfinished file are one: without a lock, one's rename takes the other's file away."""
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
