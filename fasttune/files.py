"""Files that appear whole or not at all, locks, checksums and a full disk: the only writer of fasttune's own files.

Every file and folder is written under a temporary name (NAME.partial), flushed to disk and renamed (invariant E6). A
folder is removed by renaming it first, so that a removal that is cut short leaves nothing under the old name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fasttune.console import _, error

PARTIAL, DELETED = ".partial", ".deleted"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATIENCE = 1.0  # seconds to wait for a lock: others hold the series' lock, or look at one, for a moment only


# Writing ------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """A file that appears whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """A JSON file that appears whole or not at all, Chinese readable."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The document in a JSON file of a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, document: Any) -> None:
    """One more line of a JSONL file, handed to the system before this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(document, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def disk_full_as_error(folder: Path, needed: int) -> Iterator[None]:
    """Where the block fails because the disk has no room, or a quota no more, the error says how many bytes a
    checkpoint needs."""
    try:
        yield
    except Exception as problem:  # torch and safetensors each have an error of their own for a full disk
        if not is_full(problem):
            raise
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        raise error(
            "disk-full",
            _("no space left: a checkpoint needs {needed:.1f} MB, {free:.1f} MB are free", needed=needed / 1e6,
              free=free / 1e6),
            where=str(folder),
            why=_("the last whole checkpoint is kept"),
            fix=_("free some space, or raise the quota, and run the same command again; it goes on from that "
                  "checkpoint"),
        ) from problem  # fmt: skip


def is_full(problem: Exception) -> bool:
    """Whether an error says that a file could not be written for want of room."""
    if isinstance(problem, OSError):
        return problem.errno in NO_ROOM
    # safetensors' SafetensorError, and the RuntimeErrors of torch.save, which name no reason
    signs = [*(f"os error {number}" for number in NO_ROOM), "PytorchStreamWriter", "unexpected pos"]
    return any(sign in str(problem) for sign in signs)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that appears under its name only when the block ends well, replacing none."""
    partial = path.with_name(path.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)  # left by a process that died while writing it: never complete, never used
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for file in sorted(partial.rglob("*")):
        if file.is_file():
            sync_file(file)
    sync_folder(partial)
    if path.exists():
        remove_folder(path)  # only a damaged checkpoint is ever written again
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Makes what was written to this file survive a power cut."""
    with open(path, "rb") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """A folder's end: at once gone by name, even where removing its files is cut short."""
    doomed = folder.with_name(f".{folder.name}{DELETED}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a removal that was cut short
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_partial(folder: Path, names: str = "*") -> None:
    """What a process that died while writing or removing left in a folder; the caller holds the lock of those who write
    there."""
    for path in (*folder.glob(names + PARTIAL), *folder.glob(f".{names}{DELETED}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# Locks --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds a lock file for this process; the system frees it when the process ends, however it ends.

    Raises FasttuneError with the message `otherwise` where a live process holds it.
    """
    deadline = time.monotonic() + PATIENCE
    with open(path, "w", encoding="utf-8") as file:
        while not try_lock(file):
            if time.monotonic() > deadline:
                raise error("run-is-locked", otherwise, where=str(path), fix=_("wait for it, or stop it first"))
            time.sleep(0.01)
        yield


def try_lock(file: IO[str]) -> bool:
    """Whether the lock of an open file could be taken."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a live process holds this lock file."""
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
