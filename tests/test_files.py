"""Atomic files and folders, locks, and a full disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import small_files

from fasttune import files
from fasttune.console import FasttuneError

# --- writing ---------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"name": "林栀"})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "林栀"\n}\n'
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        files.write_text(path, "x" * 5000)
    assert files.read_json(path) == {"name": "林栀"} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
def test_what_is_no_file_is_not_replaced_by_one(make: Callable[[Path], None], tmp_path: Path) -> None:
    """`--out /dev/null`, as root, would leave a file in the place of the device."""
    path = tmp_path / "out"
    make(path)
    before = path.stat().st_mode
    with pytest.raises(OSError) as caught:
        files.write_text(path, "text")
    assert path.stat().st_mode == before and names(tmp_path) == ["out"]
    known = files.known_condition(caught.value)
    assert known is not None and known.findings[0].code == "not-usable" and known.findings[0].where == str(path)


def test_lines_are_appended_as_json(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for step in (1, 2):
        files.append_line(path, {"step": step, "text": "好"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"step": 1, "text": "好"}' and [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with pytest.raises(RuntimeError), files.whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    (tmp_path / "adapter.partial").mkdir()  # of a process that died
    (tmp_path / "adapter.partial" / "stale").touch()
    with files.whole_folder(target) as folder:
        assert not target.exists()
        (folder / "weights").write_text("all")
    assert names(tmp_path) == ["adapter"] and names(target) == ["weights"]
    with files.whole_folder(target) as folder:
        (folder / "other").touch()
    assert names(target) == ["other"]


def test_a_removed_folder_is_gone_and_partial_files_can_be_removed(tmp_path: Path) -> None:
    for name in ("run", "kept", "a.partial", ".b.deleted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "c.json.partial").touch()
    files.remove_folder(tmp_path / "run")
    assert "run" not in names(tmp_path)
    files.remove_partial(tmp_path, "a*")
    assert names(tmp_path) == [".b.deleted", "c.json.partial", "kept"]
    files.remove_partial(tmp_path)
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError("[enforce fail] unexpected pos 64"),
    ],
)
def test_a_full_disk_is_an_error_with_figures(failure: Exception, tmp_path: Path) -> None:
    full = files.disk_full_as_error(tmp_path / "not" / "there", 3_000_000)
    with pytest.raises(FasttuneError, match=r"a checkpoint needs 3\.0 MB") as caught, full:
        raise failure
    (finding,) = caught.value.findings
    assert finding.code == "disk-full" and "run the same command again" in finding.fix  # there may be no checkpoint yet


def test_a_file_system_that_holds_no_more_files_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said that there is no space, with 200 MB free."""
    system = SimpleNamespace(f_files=1000, f_favail=0, f_bavail=50_000, f_blocks=60_000, f_bfree=50_000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _place: system)
    problem = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "not" / "there"))
    full = files.disk_full_as_error(tmp_path / "not" / "there", 1)
    with pytest.raises(FasttuneError) as caught, full:
        raise problem
    for raised in (files.known_condition(problem), caught.value):
        assert raised is not None and f"(`df -i {tmp_path}`)" in raised.findings[0].what
    system.f_favail = 5
    known = files.known_condition(problem)
    assert known is not None and known.findings[0].what == "no space left"


@pytest.mark.parametrize(("flag", "reason"), [(os.ST_RDONLY, "Read-only file system"), (0, "Permission denied")])
def test_a_folder_that_may_not_be_written_to_is_named_before_anything_is_written(
    flag: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.require_writable(tmp_path / "not" / "there")
    monkeypatch.setattr(os, "access", lambda _place, _mode: False)  # root may write to any folder of its own
    monkeypatch.setattr(os, "statvfs", lambda _place: SimpleNamespace(f_flag=flag))
    with pytest.raises(FasttuneError) as caught:
        files.require_writable(tmp_path / "not" / "there")
    (finding,) = caught.value.findings
    assert (finding.code, finding.where) == ("not-permitted", str(tmp_path)) and reason in finding.why
    assert names(tmp_path) == []


def test_a_file_that_can_not_be_written_is_named_as_the_user_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.write_text(tmp_path / "no" / "copy.jsonl", "text")
    assert caught.value.filename == str(tmp_path / "no" / "copy.jsonl")


def test_other_failures_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.disk_full_as_error(tmp_path, 1):
        raise PermissionError(errno.EACCES, "denied")


def test_a_checksum_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert files.file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- locks -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from fasttune.files import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not files.is_locked(path)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert files.is_locked(path)
        with pytest.raises(FasttuneError, match="busy") as caught, files.locked(path, "busy", seconds=0.05):
            pass
        assert [finding.code for finding in caught.value.findings] == ["run-is-locked"]
        holder.kill()
    assert not files.is_locked(path)
    with files.locked(path, "busy"):
        assert files.is_locked(path)


def test_a_lock_file_that_is_deleted_lets_no_second_process_in(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        path.unlink()
        assert files.is_locked(path)
        with pytest.raises(FasttuneError, match="busy"), files.locked(path, "busy", seconds=0.05):
            pass
        holder.kill()
    with files.locked(path, "busy"):
        assert files.is_locked(path)


def test_a_lock_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    with pytest.raises(FasttuneError) as caught, files.locked(tmp_path / "gone" / ".lock", "busy"):
        pass
    assert [finding.code for finding in caught.value.findings] == ["run-removed"]


def test_a_file_system_without_locks_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the lock file alone decides."""
    flock = fcntl.flock

    def no_folders(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "no")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", no_folders)
    path = tmp_path / ".lock"
    with files.locked(path, "busy"):
        assert files.is_locked(path)
        with pytest.raises(FasttuneError, match="busy"), files.locked(path, "busy", seconds=0.05):
            pass
    assert not files.is_locked(path)


# --- a power cut ------------------------------------------------------------------------------------------------------


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed to the disk and what is renamed, in order, by name."""
    found: list[tuple[str, str]] = []

    def fsync(descriptor: int) -> None:
        found.append(("flushed", Path(f"/proc/self/fd/{descriptor}").readlink().name))

    def replace(old: Path, new: Path) -> None:
        found.append(("renamed", Path(new).name))
        own_replace(old, new)

    own_replace = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return found


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, done: list[tuple[str, str]]) -> None:
    files.write_text(tmp_path / "plan.json", "{}")
    partial = "plan.json" + files.PARTIAL
    assert done == [("flushed", partial), ("renamed", "plan.json"), ("flushed", tmp_path.name)]


def test_a_folder_is_on_the_disk_with_its_files_before_it_has_its_name(
    tmp_path: Path, done: list[tuple[str, str]]
) -> None:
    with files.whole_folder(tmp_path / "checkpoint-3") as partial:
        (partial / "a").write_bytes(b"weights")
        (partial / "b").mkdir()
        (partial / "b" / "c").write_bytes(b"more")
    flushed = [("flushed", name) for name in ("a", "c", "checkpoint-3" + files.PARTIAL)]
    assert done == [*flushed, ("renamed", "checkpoint-3"), ("flushed", tmp_path.name)]
