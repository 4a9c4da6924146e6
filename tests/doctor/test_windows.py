"""WSL2: .wslconfig, the memory that Linux has, the drive of the project; for machines that are made up here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fasttune.doctor import windows
from fasttune.doctor.situation import Situation
from fasttune.doctor.windows import WslConfig, judge_drive, judge_memory, read_wslconfig


@pytest.mark.parametrize(
    ("linux", "pc", "config", "state", "words"),
    [
        (7.7, 15.8, None, "warning", "memory=12GB"),
        (11.7, 15.8, WslConfig(12.0), "ok", ""),
        (7.7, 15.8, WslConfig(12.0), "warning", "wsl --shutdown"),  # written, not in effect yet
        (7.7, 15.8, WslConfig(None, misnamed=True), "warning", "ren %USERPROFILE%"),
        (3.8, 7.9, None, "warning", "memory=6GB"),
        (5.9, 7.9, WslConfig(6.0), "ok", ""),  # all that such a PC can lend
        (15.6, 31.8, None, "ok", ""),
        (7.7, None, None, "warning", "memory=12GB"),
        (11.7, None, None, "ok", ""),
    ],
)
def test_memory(linux: float, pc: float | None, config: WslConfig | None, state: str, words: str) -> None:
    found = judge_memory(linux, pc, config)
    assert (found.state, words in found.fix) == (state, True), found
    assert f"{linux:.1f}" in found.measured


def test_a_config_that_is_not_in_effect_says_so() -> None:
    assert ".wslconfig says 12 GB" in judge_memory(7.7, 15.8, WslConfig(12.0)).measured
    assert ".wslconfig" not in judge_memory(11.7, 15.8, WslConfig(12.0)).measured


def write_config(users: Path, name: str, text: str, file: str = ".wslconfig", at: float = 0) -> None:
    (users / name).mkdir(exist_ok=True)
    (users / name / file).write_text(text, encoding="utf-8")
    os.utime(users / name / file, (at, at))


def test_the_newest_wslconfig_is_read(tmp_path: Path) -> None:
    assert read_wslconfig(tmp_path) is None
    write_config(tmp_path, "Public", "[wsl2]\nmemory=1GB\n", at=9)
    assert read_wslconfig(tmp_path) is None
    write_config(tmp_path, "mei", "[wsl2]\nmemory=6GB\n", ".wslconfig.txt")
    assert read_wslconfig(tmp_path) == WslConfig(None, misnamed=True)
    write_config(tmp_path, "mei", "\ufeff[wsl2]\nswap=16GB\nmemory = 12GB\n", at=2)
    write_config(tmp_path, "old", "[wsl2]\nmemory=6GB\n", at=1)
    assert read_wslconfig(tmp_path) == WslConfig(12.0)


@pytest.mark.parametrize(
    ("text", "gib"),
    [("[WSL2]\nmemory=8192MB", 8.0), ("[wsl2]\nswap=1GB", None), ("memory=12GB", None), ("[wsl2]\nmemory=lots", None)],
)
def test_what_a_wslconfig_says(text: str, gib: float | None) -> None:
    assert windows.parse_memory(text) == gib


def test_the_drive() -> None:
    assert judge_drive(["ext4", "ext4"]).state == "ok"
    found = judge_drive(["ext4", "9p"])
    assert found.state == "warning" and "/mnt/c" in found.measured and "git clone" in found.fix


def test_outside_wsl_nothing_of_it_applies() -> None:
    native = Situation(None, "", "", False, Path("runs"))
    assert windows.linux_memory(native).state == windows.project_drive(native).state == "not-applicable"


def test_a_windows_that_does_not_answer_leaves_its_memory_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert windows.windows_ram_gib() is None
    program = tmp_path / "powershell.exe"
    for says, expected in (("echo 17179869184", 16.0), ("echo access denied", None), ("exit 3", None)):
        program.write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
        program.chmod(0o755)
        assert windows.windows_ram_gib() == expected
