"""Files on disk: atomic writing and removal, locks, checksums, and a full disk.

Every file and folder is written under a temporary name (NAME.partial), flushed to disk and renamed (invariant E6). A
folder is removed by renaming it first, so that a removal that is interrupted leaves nothing under the old name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fasttune.console import FasttuneError, _, error

PARTIAL, DELETED = ".partial", ".deleted"
NO_FOLDER_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # NFS, some mounts of Windows
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Something else lies where a file or a folder belongs, or the disk itself fails.
NOT_USABLE = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE)
LARGEST_READ = 2**30  # bytes of a file of samples, of a recipe or a fact sheet: 100,000 samples are some 50 MB
RUN_LOCK_SECONDS = 1.0  # a run's lock is held for hours; others look at it for a moment only
SERIES_LOCK_SECONDS = 60.0  # a series' lock is held for a moment only, which on a busy machine can be a long one


# Writing ------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: it appears complete or not at all. Raises OSError and then leaves nothing."""
    require_replaceable(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if problem.filename == str(partial):
            problem.filename = str(path)  # the name that the user knows
        raise
    sync_folder(path.parent)


def require_replaceable(path: Path) -> None:
    """Raises OSError for a folder and for a device, in whose place the rename would put a file: as root in that of
    /dev/null, and every program of the machine would then read what the last one wrote."""
    if path.exists() and not path.is_file():
        number = errno.EISDIR if path.is_dir() else errno.EEXIST
        raise OSError(number, os.strerror(number), str(path))


def require_writable(folder: Path) -> None:
    """Raises FasttuneError where a folder, or what there is of its path, is no folder or may not be written to. Writes
    nothing."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
    number = 0
    if not place.is_dir():
        number = errno.ENOTDIR
    elif not os.access(place, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
    if number:
        known = known_condition(OSError(number, os.strerror(number), str(place)))
        assert known is not None
        raise known


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically, with Chinese characters as they are. Raises OSError."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The document in a JSON file. Raises OSError, or ValueError where the file holds no JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, document: Any) -> None:
    """Append a document as one line to a JSONL file; the operating system has it when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(document, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def disk_full_as_error(folder: Path, needed: int) -> Iterator[None]:
    """Turn a full disk, or an exhausted quota, inside the block into an error that says how much a checkpoint needs.

    `needed` is in bytes. Raises FasttuneError; any other exception passes unchanged.
    """
    try:
        yield
    except Exception as problem:  # torch and safetensors each have an error of their own for a full disk
        if not is_full(problem):
            raise
        raise error(
            "disk-full",
            what_ran_out(folder, needed, problem),
            where=str(folder),
            why=_("every checkpoint that was complete before is kept"),
            fix=_("free some space, or raise the quota, and run the same command again"),
        ) from problem  # fmt: skip


def what_ran_out(folder: Path, needed: int, problem: Exception) -> str:
    """In words what a checkpoint of so many bytes lacks: files that the file system may hold, a quota, or space."""
    place = existing_folder(folder)
    free = shutil.disk_usage(place).free
    if reason := no_more_files(place):
        return reason
    if (isinstance(problem, OSError) and problem.errno == errno.EDQUOT) or free >= needed:
        return _(
            "no space left for this user: a checkpoint needs {needed:.1f} MB, and a quota or the largest size of a "
            "file is reached",
            needed=needed / 1e6,
        )
    return _(
        "no space left: a checkpoint needs {needed:.1f} MB, {free:.1f} MB are free",
        needed=needed / 1e6,
        free=free / 1e6,
    )


def existing_folder(path: Path) -> Path:
    """The folder that a path is, or the first above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def no_more_files(place: Path) -> str:
    """In words that a file system has space, but no file can be added to it; "" where that is not so."""
    system = os.statvfs(place)
    if not system.f_files or system.f_favail:
        return ""
    return _("no file can be added: the file system holds as many as it can (`df -i {place}`)", place=place)


@contextlib.contextmanager
def condition_as_error() -> Iterator[None]:
    """Raise FasttuneError for an OSError of the block that is such a condition; any other one is left as it is."""
    try:
        yield
    except OSError as problem:
        if known := known_condition(problem):
            raise known from None
        raise


def known_condition(problem: OSError) -> FasttuneError | None:
    """The error for a condition of the disk or of its permissions that a user can mend; None for any other problem."""
    where = str(problem.filename2 or problem.filename or "")
    reason = _("the operating system says: {reason}", reason=problem.strerror or str(problem))
    if problem.errno in NOT_PERMITTED:
        fix = _("choose a folder that you may write to, for example `--runs ~/runs`, or change its permissions")
        return error("not-permitted", _("this can't be read or written"), where=where, why=reason, fix=fix)
    if problem.errno in DISK_FULL:
        what = (no_more_files(existing_folder(Path(where))) if where else "") or _("no space left")
        fix = _("free some space, or raise the quota, and run the same command again")
        return error("disk-full", what, where=where, why=reason, fix=fix)
    if problem.errno in NOT_USABLE and where:
        fix = _("move away what lies there, or name another place")
        return error("not-usable", _("this can't be used as a file or folder"), where=where, why=reason, fix=fix)
    return None


def is_full(problem: Exception) -> bool:
    """Whether an exception says that the disk is full, a quota exhausted or a file too large."""
    if isinstance(problem, OSError):
        return problem.errno in DISK_FULL
    # safetensors' SafetensorError, and the RuntimeErrors of torch.save, which name no reason
    signs = [*(f"os error {number}" for number in DISK_FULL), "PytorchStreamWriter", "unexpected pos"]
    return any(sign in str(problem) for sign in signs)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Create a folder atomically: the block fills a partial folder, which gets its name when the block has succeeded.

    A folder that has the name already is replaced. Where the block raises, the partial folder is removed.
    """
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
    """Flush a file's contents to the disk, so that they survive a power cut."""
    with open(path, "rb") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder; its name is free at once, even where the removal of its files is interrupted."""
    renamed = folder.with_name(f".{folder.name}{DELETED}")
    shutil.rmtree(renamed, ignore_errors=True)  # left by a removal that was interrupted
    os.replace(folder, renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def remove_partial(folder: Path, names: str = "*") -> None:
    """Remove the partial files that a process left in a folder when it died while writing or removing.

    The caller holds the lock under which others write there.
    """
    for path in (*folder.glob(names + PARTIAL), *folder.glob(f".{names}{DELETED}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# Locks --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, message: str, *, seconds: float = RUN_LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock file and its folder in this process; the operating system frees both when the process ends, however
    it ends.

    The folder too, so that no second process gets in where the lock file is deleted meanwhile. Raises FasttuneError
    with `message` where another live process holds one of them for longer than `seconds`, and where the folder is gone.
    """
    deadline = time.monotonic() + seconds
    while (held := take_lock(path)) is None:
        if time.monotonic() > deadline:
            raise error("run-is-locked", message, where=str(path), fix=_("wait for it, or stop it first"))
        time.sleep(0.01)
    with held:
        yield


def take_lock(path: Path) -> contextlib.ExitStack | None:
    """Lock a folder and the lock file in it; closing what is returned frees both. None where another process holds one.

    Raises FasttuneError where the folder is gone.
    """
    with contextlib.ExitStack() as opened:
        for place, flags in ((path.parent, os.O_RDONLY), (path, os.O_RDWR | os.O_CREAT)):
            try:
                descriptor = os.open(place, flags, 0o666)
            except FileNotFoundError:
                what = _("the folder is gone: another process has removed it")
                raise error("run-removed", what, where=str(path.parent)) from None
            opened.callback(os.close, descriptor)
            if not try_lock(descriptor):
                return None
        if not is_at(descriptor, path):
            return None
        with contextlib.suppress(OSError):  # a full disk: the lock holds without it
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)  # for runs/holder.py
        return opened.pop_all()


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one that has this name."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path))


def try_lock(descriptor: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file or folder, if it is free; returns whether it was.

    A file system that has no locks for folders leaves the work to the lock file.
    """
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as problem:
        return problem.errno in NO_FOLDER_LOCKS and stat.S_ISDIR(os.fstat(descriptor).st_mode)
    return True


def is_locked(path: Path) -> bool:
    """Whether a live process holds this lock file or its folder."""
    for place in (path.parent, path):
        if not place.exists():
            continue
        descriptor = os.open(place, os.O_RDONLY)
        try:
            if not try_lock(descriptor, fcntl.LOCK_SH):
                return True
        finally:
            os.close(descriptor)
    return False


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Reading ------------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> bytes:
    """The bytes of a file that a user named.

    Raises OSError, with the reason, for a pipe or a device, which may never end, and for a file beyond LARGEST_READ.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, _("it is a pipe or a device; write what it gives into a file"), str(path))
    if found.st_size > LARGEST_READ:
        size, most = found.st_size / 2**30, LARGEST_READ / 2**30
        raise OSError(
            errno.EINVAL, _("{size:.1f} GiB are too many; {most:.0f} are read", size=size, most=most), str(path)
        )
    return path.read_bytes()
