"""The text of a bug report: versions and results, without a path, the name of a person or of a computer."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import fasttune
from fasttune.console import _
from fasttune.doctor.outcome import STATES, Check
from fasttune.doctor.windows import NOBODY, WINDOWS_USERS
from fasttune.machine import is_wsl, package_versions

PLACE, PERSON, COMPUTER, ADDRESS = "<path>", "<name>", "<computer>", "<address>"
# Names that say nothing about a person, and words that would be torn out of sentences.
IMPERSONAL = {"root", "user", "users", "ubuntu", "home", "admin", "localhost", "nobody", "gpu", "cpu", "linux"}
PATHS = (
    r"\\\\[^\s\\]+\\[^\n'\"`]*",  # \\server\share
    r"[A-Za-z]:[\\/][^\n'\"`,;]*",  # C:\Users\…, up to a quote or the end of the part: names hold spaces
    r"(?<![\w.:/<>])~?/[^\s'\"`,;:()]*[^\s'\"`,;:().]",  # /home/…, ~/…
)
URL = r"\b[a-z][a-z0-9+.-]*://[^\s'\"`,;)]+"
IP_ADDRESS = r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.])"


def report(checks: Sequence[Check]) -> str:
    """Versions and results as Markdown, ready to be pasted into an issue."""
    kernel = f"{platform.system()} {platform.release()}{' (WSL2)' if is_wsl() else ''}"
    versions = {"fasttune": fasttune.__version__, "python": platform.python_version(), "kernel": kernel}
    versions |= package_versions()
    lines = [f"- {name} {version}" for name, version in versions.items()]
    headings = _("check"), _("state"), _("measured")
    lines += ["", f"| {' | '.join(headings)} |", "|---|---|---|"]
    lines += [
        f"| {check.title} (`{check.name}`) | {_(STATES[check.state])} | {cell(check.measured)} |" for check in checks
    ]
    return anonymous("\n".join(lines), personal_places(), personal_names(), computer_names())


def cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def anonymous(text: str, places: Iterable[str], people: Iterable[str], computers: Iterable[str]) -> str:
    """The text without these folders and anything else that looks like a path or an address, without these names of
    people and computers. What can hold the others goes first: an address, a path, a name."""
    text = re.sub(URL, ADDRESS, text)
    for place in sorted(places, key=len, reverse=True):
        text = re.sub(re.escape(place) + r"[^\s'\"`,;|]*", PLACE, text)
    for pattern in PATHS:
        text = re.sub(pattern, PLACE, text)
    text = re.sub(IP_ADDRESS, ADDRESS, text)
    for stands_for, names in ((COMPUTER, computers), (PERSON, people)):
        for name in sorted(names, key=len, reverse=True):
            text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", stands_for, text, flags=re.IGNORECASE)
    return text


def personal_places() -> set[str]:
    """The folders whose names may name a person or a project: home, here, caches, the package."""
    places = {str(Path.cwd()), str(Path(fasttune.__file__).parents[1]), *home_folders()}
    places |= {value for name, value in os.environ.items() if name in ("HF_HOME", "XDG_CACHE_HOME", "FASTTUNE_RUNS")}
    return {place for place in places if place.strip("/.") and len(place) > 3}


def home_folders() -> list[str]:
    """The home folder by HOME and by the user database."""
    found = [os.environ.get("HOME", ""), os.path.expanduser(f"~{user_name()}")]
    return [place for place in found if place.startswith("/") and place.strip("/")]


def user_name() -> str:
    """The name of the user; "" where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def personal_names() -> set[str]:
    """The names of the person at this machine: of the account, of home folders, of Windows' users."""
    names = {user_name(), *(Path(place).name for place in home_folders())}
    names |= {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER", "USERNAME")}
    with contextlib.suppress(OSError):  # not in Windows
        names |= {folder.name for folder in WINDOWS_USERS.iterdir() if folder.name not in NOBODY}
    return speaking(names)


def computer_names() -> set[str]:
    """The names of this machine: short, and with its domain."""
    full = socket.gethostname()
    return speaking({full, full.split(".")[0], platform.node(), os.environ.get("HOSTNAME", "")})


def speaking(names: Iterable[str]) -> set[str]:
    """Those names that tell somebody apart; a single letter would take every such word with it."""
    return {name for name in names if len(name) > 1 and name.lower() not in IMPERSONAL}
