"""A bug report names no path, no person and no computer, wherever they were said."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fasttune.doctor import bug_report
from fasttune.doctor.bug_report import anonymous, report
from fasttune.doctor.outcome import Check

SECRETS = (
    "can't write /home/limei/fasttune/runs/x.toml: denied",
    'File "/home/limei/my project/train.py", line 3',
    r"not found: C:\Users\Li Mei\AppData\Local\ollama",
    r"on \\wsl$\Ubuntu\home\limei\fasttune",
    "in /mnt/c/Users/Li Mei/fasttune",
    "http://limei:geheim@mirror.firma.example:8080/hub refused",
    "no route to 192.168.17.23:11434",
    "limei-pc.fritz.box: Temporary failure",
    "user LIMEI, or ~/secret/place",
    "libcuda.so in '/opt/limei_tools/lib64'",
)
REVEALING = ("limei", "li mei", "fasttune/runs", "my project", "appdata", "firma", "geheim", "192.168", "fritz", "secret",
             "/opt", "mnt/c", "wsl$")  # fmt: skip


def clean(text: str) -> str:
    places = {"/home/limei", "/home/limei/my project", "/mnt/c/Users/Li Mei/fasttune"}
    return anonymous(text, places, {"limei", "Li Mei"}, {"limei-pc", "limei-pc.fritz.box"})


@pytest.mark.parametrize("secret", SECRETS)
def test_nothing_personal_is_left(secret: str) -> None:
    shown = clean(secret).lower()
    assert not [word for word in REVEALING if word in shown], shown


def test_what_matters_is_left() -> None:
    text = "driver 580.95.05; loss 4.080 -> 3.608, 30 MB/s, 3 steps/s, torch 2.13.0+cpu, RTX 4060, 1.3 of 12.0 GiB"
    assert clean(text) == text
    assert clean("| a | ok | llama.cpp: b/c |") == "| a | ok | llama.cpp: b/c |"


def test_a_report_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a home, an account, a computer and users of Windows that are planted."""
    users = tmp_path / "Users"
    (users / "张 三").mkdir(parents=True)
    monkeypatch.setattr(bug_report, "WINDOWS_USERS", users)
    monkeypatch.setenv("HOME", "/home/planted.person")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "planted.person")
    monkeypatch.setattr(socket, "gethostname", lambda: "planted-tower.example.org")
    monkeypatch.setattr("platform.node", lambda: "planted-tower")
    monkeypatch.chdir(tmp_path)
    told = f"{tmp_path}/runs, /home/planted.person/x, 张 三, planted.person, on PLANTED-TOWER | {Path(__file__)}"
    text = report([Check("disk", "crashed", told), Check("hub", "ok", "the hub answers in 0.4 s")])
    for secret in ("planted", "张", "三", str(tmp_path), str(Path(__file__).parent), "tests/doctor"):
        assert secret not in text.lower(), text
    assert "the hub answers in 0.4 s" in text and "(`disk`) | crashed |" in text
    assert "- fasttune " in text and "- torch " in text


def test_short_and_common_names_do_not_tear_words_out() -> None:
    assert bug_report.speaking({"", "x", "root", "Ubuntu", "mei"}) == {"mei"}
    assert anonymous("the meinung of mei and MEI-x", (), {"mei"}, ()) == "the meinung of <name> and <name>-x"
