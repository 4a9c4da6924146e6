"""docs/quick_start.sh and docs/train.ps1: the ways in for people who do not know make or WSL."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "docs" / "quick_start.sh"
POWERSHELL = REPOSITORY / "docs" / "train.ps1"
# Stand in for fasttune, and for make, which only says that it was called.
FASTTUNE = '#!/bin/sh\necho "fasttune in $(basename "$PWD"):" "$@"\nexit 7\n'
MAKE = '#!/bin/sh\necho "make $*"\nexit ${MAKE_CODE:-0}\n'
# wsl.exe: answers `uname -r` and `test -f`, carries everything else out.
WSL = """#!/bin/sh
[ -n "$NO_LINUX" ] && exit 1
case "$*" in
*uname*) echo "${KERNEL:-6.6.87.2-microsoft-standard-WSL2}" ;;
*"-e test"*) [ -z "$NO_CLONE" ] ;;
*) echo "wsl" "$@"; exit 7 ;;
esac
"""


def install(path: Path, program: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(program, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "my clone"
    (folder / "docs").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "docs")
    install(folder / ".venv" / "bin" / "fasttune", FASTTUNE)
    install(tmp_path / "bin" / "make", MAKE)
    (folder / "recipes").mkdir()
    (folder / "recipes" / "linzhi.toml").touch()
    return folder


def start(clone: Path, *arguments: str, path: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or f"{clone.parent / 'bin'}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        ["/bin/sh", str(clone / "docs" / "quick_start.sh"), *arguments],
        cwd="/", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ([], "menu"),
        (["linzhi"], "run recipes/linzhi.toml"),
        (["linzhi", "--set", "lora.r=4"], "run recipes/linzhi.toml --set lora.r=4"),
        (["doctor", "--quick"], "doctor --quick"),
    ],
)
def test_what_is_typed_and_what_is_called(clone: Path, typed: list[str], called: str) -> None:
    """From any folder, after the set-up, whose words go to stderr; the exit code is fasttune's."""
    done = start(clone, *typed)
    assert done.stdout == f"fasttune in my clone: {called}\n"
    assert done.stderr == "make setup\n" and done.returncode == 7


def test_a_set_up_that_fails_ends_it(clone: Path) -> None:
    done = start(clone, MAKE_CODE="2")
    assert done.returncode == 2 and done.stdout == ""


def test_missing_tools_are_named_with_the_line_that_brings_them(clone: Path) -> None:
    install(clone.parent / "few" / "dirname", f'#!/bin/sh\nexec {shutil.which("dirname")} "$@"\n')
    done = start(clone, path=str(clone.parent / "few"))
    assert done.returncode == 1 and "make or python3 is missing" in done.stderr and "sudo apt" in done.stderr


def test_they_fit_on_a_screen_and_are_good_shell() -> None:
    subprocess.run(["/bin/sh", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)
    for path in (SCRIPT, POWERSHELL):
        lines = path.read_bytes().decode("ascii").splitlines()  # Windows PowerShell takes a file without BOM for ANSI
        assert len(lines) < 45 and max(map(len, lines)) <= 140


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="no PowerShell here")
@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({}, 7, "wsl --cd ~ -e sh fasttune/docs/quick_start.sh linzhi --set lora.r=4"),
        ({"FASTTUNE_CLONE": "other"}, 7, "other/docs/quick_start.sh"),
        ({"NO_LINUX": "1"}, 1, "no Linux starts"),
        ({"KERNEL": "4.4.0-19041-Microsoft"}, 1, "WSL 1"),
        ({"NO_CLONE": "1"}, 1, "there is no clone"),
    ],
)
def test_from_windows(tmp_path: Path, variables: dict[str, str], code: int, words: str) -> None:
    install(tmp_path / "wsl.exe", WSL)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["pwsh", "-NoProfile", "-File", str(POWERSHELL), "linzhi", "--set", "lora.r=4"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code and words in done.stdout + done.stderr
