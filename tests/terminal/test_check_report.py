"""What `fasttune check` prints: in both languages, in narrow and usual terminals, and where a terminal has no blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import pair, write
from rich.cells import cell_len

from fasttune import console
from fasttune.analysis import check as checking
from fasttune.terminal import check_report
from fasttune.terminal.check_report import figure_lines, histogram

WORDS = {
    "en": (
        "nearly the same as",
        "2 samples to train on",
        "tokens a sample, estimated",
        "characters an answer",
        "hint:",
    ),
    "zh": ("几乎相同", "2 个训练样本", "每个样本的 token 数（估计）", "每个回答的字数", "怎么办："),
}


@pytest.fixture
def report(tmp_path: Path) -> checking.Report:
    """A file of 300 samples of all lengths and two that are nearly the same."""
    varied = [
        pair(f"第{n}间屋子里有什么", f"第{n}间里" + "有一张桌子，" * (n % 40) + f"还有{n}把椅子。") for n in range(300)
    ]
    return checking.check(Path(write(tmp_path / "data.jsonl", *varied)))


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_for_people(
    language: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", language)
    monkeypatch.setattr(console.stdout_console, "_width", columns)
    same = "定影，三花的，尾巴尖弯一个钩，晚上睡在柜台的账本上。"
    path = write(
        tmp_path / "data.jsonl", pair("你的猫叫什么呀", same), pair("你的猫叫什么呢", same.replace("账本", "旧书"))
    )
    assert check_report.show(checking.check(Path(path)), as_json=False) == 0
    shown = capsys.readouterr()
    missing = [words for words in WORDS[language] if words not in shown.err + shown.out]
    assert not missing, shown.err + shown.out
    assert f"{path}:2" in shown.err and f"{path}:1" in shown.err
    bars = [line for line in shown.out.splitlines() if "█" in line]
    assert bars and all(cell_len(line) <= columns for line in bars)
    assert max(line.count("█") for line in bars) >= 30, "the room there is, is used"


@pytest.mark.parametrize("columns", [50, 80])
def test_bars_of_many_values_fit(columns: int, report: checking.Report) -> None:
    lines = figure_lines(report.figures, "utf-8", columns)
    bars = [line for line in lines if "█" in line]
    assert len(bars) > 10 and all(cell_len(line) <= columns for line in bars)


def test_where_the_terminal_has_no_blocks(report: checking.Report) -> None:
    for encoding, block, other in (("ascii", "#", "█"), ("utf-8", "█", "#")):
        text = "\n".join(figure_lines(report.figures, encoding, 80))
        assert block in text and other not in text


def test_the_longest_bar_is_the_most_frequent_part() -> None:
    lines = histogram([1] * 400 + [9] * 100, "#", 200)
    assert [line.count("#") for line in lines] == [check_report.WIDTH, 0, 0, 0, 10]


def test_further_findings_of_a_code_are_named_by_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "data.jsonl", *[pair(f"第{n}问", f"说到一半，第{n}回就停在了{n}，") for n in range(6)])
    check_report.show(checking.check(Path(path)), as_json=False)
    shown = capsys.readouterr().err
    assert f"and 3 more cut-off-answer: {path}:4, {path}:5, {path}:6" in shown
