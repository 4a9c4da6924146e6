"""Where a running board is found by `fasttune run`: a file of this user alone, with its port and its token.

    ~/.cache/fasttune/boards/RUNS-PORT.json     0600, in a folder that is 0700

In the cache and not in the runs folder, which may lie on a drive of Windows, where everybody can read every file. The
board holds the file's lock while it runs, so that the file of one that was killed is known to be stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from fasttune.files import is_locked, try_lock
from fasttune.machine import cache_folder


def url(port: int, token: str = "") -> str:
    """The address that is opened in a browser; without the token it shows nothing."""
    return f"http://localhost:{port}/" + (f"?{urlencode({'token': token})}" if token else "")


def files_of(root: Path) -> tuple[Path, str]:
    """The folder of all boards' files, and what the names of those begin with that show this runs folder."""
    return cache_folder() / "boards", hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


@contextlib.contextmanager
def announced(root: Path, port: int, token: str) -> Iterator[None]:
    """In the block, `fasttune run` finds this board. Where the cache can't be written nobody finds it, and it works."""
    try:
        folder, name = files_of(root)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        remove_stale(folder)
        file = folder / f"{name}-{port}.json"
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        os.fchmod(descriptor, 0o600)
        try_lock(descriptor)
        document = {"pid": os.getpid(), "port": port, "token": token}
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(document).encode(), 0)
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove the files of boards that were killed."""
    for file in folder.glob("*.json"):
        if not is_locked(file):
            file.unlink(missing_ok=True)


def running(root: Path, *, with_token: bool = True) -> str | None:
    """The address of a board that shows this runs folder; None where none runs. Without its token for a log file, which
    others may read."""
    with contextlib.suppress(OSError):  # a user without a home folder
        folder, name = files_of(root)
        for file in sorted(folder.glob(f"{name}-*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                document = json.loads(file.read_text(encoding="utf-8"))
                if is_locked(file):
                    return url(int(document["port"]), str(document["token"]) if with_token else "")
    return None
