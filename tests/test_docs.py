"""The pages for a PC with Windows say, in both languages, what a user there can't find out alone."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY

PAGES = {"docs/wsl2.md": "ADDRESS_OF_THIS_REPOSITORY", "docs/wsl2.zh-CN.md": "本仓库的地址"}
FACTS = {
    "the file that gives Linux memory is opened where WSL2 reads it": r"^notepad \$HOME\\\.wslconfig$",
    "12 of 16 GB": r"16 GB(.|\n)*?^memory=12GB$",
    "6 of 8 GB": r"8 GB.{1,8}`memory=6GB`",
    "with 32 GB nothing is to be done": r"32 GB",
    "where OneDrive keeps the documents": r"/mnt/c/Users/\S+/OneDrive/\S+",
    "the window stays open while it trains": r"^\*\*(Leave the Ubuntu window open while it trains|训练期间不要关闭 Ubuntu 窗口)\*\*",
    "the language of the messages": r"`export FASTTUNE_LANG=(en|zh)`|`~/\.bashrc`.*`export FASTTUNE_LANG=(en|zh)`",
    "curves in the browser of Windows": r"`tensorboard --logdir runs`(.|\n)*?http://localhost:6006",
}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("fact", FACTS)
def test_the_page_for_windows_says(page: str, fact: str) -> None:
    assert re.search(FACTS[fact], (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_a_fork_fills_in_its_address_in_one_line_and_the_text_says_so(page: str) -> None:
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("git clone")]
    assert commands == [f"git clone {PAGES[page]} fasttune"]
    assert sum(PAGES[page] in line for line in lines) == 2, "the command, and the sentence about it"
