"""What the parts of the set-up share: where things lie, errors that say what to do, commands with log and clock."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from setup_messages import _

TORCH = "2.13.0"
DRIVER = "580"  # the first driver series for CUDA 13, which torch 2.13.0 is built with
NO_CONNECTION = re.compile(
    "NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution|ProxyError|ConnectionResetError"
)
STARTED = time.monotonic()


def gpu_needs() -> str:
    """What a GPU and its driver must be for this torch."""
    return _(
        "a driver of version {driver} or newer (see the first lines of nvidia-smi) and a GPU of compute capability 7.5 "
        "or newer (GTX 16, RTX 20 and later)",
        driver=DRIVER,
    )


class SetupError(Exception):
    """The machine or the network stops the set-up: `what` is the fact, `fix` what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class StepError(SetupError):
    """A command of the set-up failed; `output` is all that it printed."""

    def __init__(self, what: str, fix: str, output: str) -> None:
        super().__init__(what, fix)
        self.output = output


@dataclass(frozen=True)
class Place:
    """Where one clone keeps its set-up; `wheels` is shared by all clones of a user."""

    root: Path
    wheels: Path

    @property
    def locks(self) -> Path:
        return self.root / ".setup"

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / "setup.json"

    @property
    def unfinished(self) -> Path:
        return self.venv / "setup-unfinished"

    @property
    def log(self) -> Path:
        return self.root / ".cache" / "setup.log"

    @property
    def site_packages(self) -> Path:
        return self.venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def find_pin(place: Place, name: str) -> str:
    """The line `name==version` of requirements.lock."""
    for line in (place.locks / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line
    raise SetupError(_("requirements.lock has no line for {name}", name=name), "git checkout .setup/requirements.lock")


def pip(place: Place, label: str, command: str, *arguments: str) -> None:
    """One pip command in `.venv`; until it succeeds, `.venv` counts as unfinished."""
    place.unfinished.touch()
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    # A user's `pip config set global.user true` is an error inside a virtual environment.
    run(place, label, [str(place.python), "-m", "pip", command, *options, *arguments], {"PIP_USER": "0"})
    place.unfinished.unlink()


def run(place: Place, label: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """Runs a command with its output in the log, prints `label` with the seconds it took and returns the output.

    On a terminal the last line of the log is shown while it runs. Raises SetupError with the end of the log.
    """
    began, size = time.monotonic(), place.log.stat().st_size
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
        )
        try:
            while process.poll() is None:
                show_progress(place, label)
                time.sleep(0.05 if time.monotonic() - began < 1 else 0.5)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    output = place.log.read_bytes()[size:].decode("utf-8", "replace")
    if process.returncode:
        tail = "\n".join(f"  {line[:200]}" for line in output.strip().splitlines()[-12:])
        what = _("{label}: failed after {seconds:.0f} s", label=label, seconds=time.monotonic() - began)
        raise StepError(f"{what}\n{tail}", hint_for(output, place), output)
    say(_("{label}: {seconds:.0f} s", label=label, seconds=time.monotonic() - began))
    return output


def hint_for(output: str, place: Place) -> str:
    """What to do about a step that failed, from its output."""
    if NO_CONNECTION.search(output):
        return _(
            "no connection to the package index: check network and proxy (docs/wsl2.md), then run the command again"
        )
    if "No space left on device" in output:
        return _("the disk is full: free some space, then run the same command again")
    if "no kernel image is available" in output:
        return _("this GPU is too old for torch {version}: it needs {needs}", version=TORCH, needs=gpu_needs())
    if re.search(r"Killed signal|signal terminated program cc1plus", output):
        return _("the compiler ran out of memory: close programs or give WSL2 more (docs/wsl2.md), then run again")
    return _("all of it is in {log}; running the same command again continues where it stopped", log=place.log)


def show_progress(place: Place, label: str) -> None:
    """The last line of the log beside the label, on a terminal only."""
    if not sys.stdout.isatty():
        return
    with place.log.open("rb") as log:
        log.seek(max(0, place.log.stat().st_size - 2000))
        lines = log.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    text = f"[{time.monotonic() - STARTED:4.0f} s] {label} … {last}"
    sys.stdout.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
    sys.stdout.flush()


def say(text: str) -> None:
    """One line with the seconds since the start, in place of the live line where there is one."""
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{clear}[{time.monotonic() - STARTED:4.0f} s] {text}", flush=True)
