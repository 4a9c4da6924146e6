"""A Linux in Windows (WSL2): the memory that Windows lends it, and the drive that the project lies on."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fasttune import machine
from fasttune.console import _
from fasttune.doctor.outcome import Check, not_applicable, ok
from fasttune.doctor.situation import CLONE, Situation

WINDOWS_USERS = Path("/mnt/c/Users")
NOBODY = ("Public", "Default", "Default User", "All Users")
WINDOWS_FILESYSTEMS = ("9p", "drvfs", "v9fs")
SECONDS = 3.0  # for a question to Windows
COMFORTABLE_GIB = 9.0  # of RAM in Linux: a base is merged and exported beside the training's own memory
LENT_SHARE = 0.75  # of the PC's RAM; docs/wsl2.md gives 12 of 16 GB and 6 of 8
RAM_QUESTION = "(Get-CimInstance Win32_ComputerSystem).TotalPhysicalMemory"


@dataclass(frozen=True)
class WslConfig:
    """What a .wslconfig says: its memory in GiB, None where it says none; `misnamed`: it is called .wslconfig.txt."""

    memory_gib: float | None
    misnamed: bool = False


def linux_memory(situation: Situation) -> Check:
    """The memory that this Linux has against what Windows could lend."""
    if not situation.wsl:
        return not_applicable("linux-memory", _("this is not WSL2"))
    return judge_memory(machine.total_ram_gib(), windows_ram_gib(), read_wslconfig(WINDOWS_USERS))


def judge_memory(linux_gib: float, windows_gib: float | None, config: WslConfig | None) -> Check:
    """The result for a Linux with so much memory, a PC with so much (None: unknown) and a .wslconfig (None: none)."""
    name = "linux-memory"
    what = _("Linux has {linux:.1f} GiB", linux=linux_gib)
    if windows_gib:
        what = _("Linux has {linux:.1f} of the PC's {windows:.1f} GiB", linux=linux_gib, windows=windows_gib)
    if config and config.misnamed:
        what = _("{what}; the file is called .wslconfig.txt, which Windows does not read", what=what)
        fix = _("in Windows: `ren %USERPROFILE%\\.wslconfig.txt .wslconfig`, then `wsl --shutdown`")
        return Check(name, "warning", what, fix=fix)
    if config and config.memory_gib and linux_gib < 0.85 * config.memory_gib and windows_gib != linux_gib:
        what = _("{what}, .wslconfig says {memory:.0f} GB", what=what, memory=config.memory_gib)
        return Check(name, "warning", what, _("it is read when WSL starts"), _("in Windows: `wsl --shutdown`"))
    could_be = LENT_SHARE * windows_gib if windows_gib else None
    if linux_gib >= COMFORTABLE_GIB or (could_be is not None and linux_gib >= 0.95 * could_be):
        return ok(name, what)
    why = _("merging and exporting a base takes RAM beside the training's; WSL2 gives Linux half of the PC's at most")
    target = f"{could_be:.0f}" if could_be is not None else "12"
    fix = _("in Windows, in %USERPROFILE%\\.wslconfig under [wsl2]: `memory={target}GB`; then `wsl --shutdown`",
            target=target)  # fmt: skip
    return Check(name, "warning", what, why, fix)


def windows_ram_gib() -> float | None:
    """The PC's RAM in GiB, as Windows says; None where it can't be asked from here."""
    program = shutil.which("powershell.exe")
    if program is None:
        return None
    command = [program, "-NoProfile", "-NonInteractive", "-Command", RAM_QUESTION]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    figure = answer.stdout.strip()
    return int(figure) / machine.GIB if figure.isdigit() else None


def read_wslconfig(users: Path) -> WslConfig | None:
    """The newest .wslconfig below the folder of Windows' users; None where there is none."""
    folders = [folder for folder in users.glob("*") if folder.name not in NOBODY]
    files = [folder / name for folder in folders for name in (".wslconfig", ".wslconfig.txt")]
    present = [file for file in files if file.is_file()]
    if not present:
        return None
    right = [file for file in present if file.suffix != ".txt"]
    if not right:
        return WslConfig(None, misnamed=True)
    newest = max(right, key=lambda file: file.stat().st_mtime)
    return WslConfig(parse_memory(newest.read_text(encoding="utf-8-sig", errors="replace")))


def parse_memory(text: str) -> float | None:
    """The `memory` of a .wslconfig's [wsl2] in GiB; None where it has none or can't be read."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    try:
        parser.read_string(text)
    except configparser.Error:
        return None
    section = next((parser[name] for name in parser.sections() if name.lower() == "wsl2"), None)
    value = (section.get("memory") or "") if section is not None else ""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|MB)", value.strip(), re.IGNORECASE)
    if found is None:
        return None
    return float(found[1]) / (1 if found[2].upper() == "GB" else 1024)


def project_drive(situation: Situation) -> Check:
    """Whether the folders that a training reads and writes lie on a drive of Windows."""
    if not situation.wsl:
        return not_applicable("project-drive", _("this is not WSL2"))
    return judge_drive({path: machine.filesystem(path) for path in (Path(), situation.runs, CLONE)}.values())


def judge_drive(kinds: Iterable[str]) -> Check:
    """The result for folders on file systems of these types."""
    if not any(kind in WINDOWS_FILESYSTEMS for kind in kinds):
        return ok("project-drive", _("on Linux' own disk"))
    what = _("the project or its runs lie on a drive of Windows (/mnt/c and the like)")
    why = _("small files take many times as long there, and a checkpoint can't be written whole or not at all")
    return Check("project-drive", "warning", what, why, _("clone it again into the Linux home: `cd ~ && git clone …`"))
