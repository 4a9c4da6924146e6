"""The page of all runs, a run's page and runs laid over each other, in both languages, with hostile data."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_server import Served, served
from run_folders import write_run

from fasttune import files
from fasttune.runs import documents
from fasttune.runs.documents import Probe, Scores

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202eabc" onload="x'


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("overview") / "runs"
    parent = write_run(root, losses=(2.0, 1.0, 0.5), held_out=(2.1, 1.4, 1.2), samples=40)
    documents.write(parent.scores, Scores((Probe("who?", "a model", HOSTILE + "x" * 1_000_000),), None))
    write_run(root, "incremental", parent=parent, start="checkpoint", losses=(0.4, 0.3), train__epochs=5.0)
    write_run(root, series="other", finished=False, losses=(3.0,))
    damaged = write_run(root, series="broken")
    damaged.plan.write_text("{", encoding="utf-8")
    with served(root) as one:
        yield one


def text_of(page: str) -> str:
    """What a page shows, without markup."""
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def test_all_series_and_runs_with_their_verdicts(board: Served) -> None:
    page = text_of(board.settled("/").text)
    for words in ("persona/001-fresh", "persona/002-incremental", "other/001-fresh", "stopped", "in use",
                  "loss 2.000 → 0.500", "cannot tell", "persona-Q8_0.gguf 12 MB", "changed: epochs"):  # fmt: skip
        assert words in page
    assert page.index("persona/001-fresh") < page.index("persona/002-incremental")


def test_a_child_stands_below_its_parent(board: Served) -> None:
    page = board.settled("/").text
    assert re.search(r'<li class="depth-1" data-run="persona/002-incremental">', page)


def test_a_damaged_run_is_named_and_hides_nothing(board: Served) -> None:
    page = text_of(board.settled("/").text)
    assert "damaged" in page and "Expecting property name" in page and "persona/001-fresh" in page
    assert board.settled("/runs/broken/001-fresh").status_code == 200


def test_a_run_says_its_verdict_first(board: Served) -> None:
    page = board.settled("/runs/persona/001-fresh").text
    shown = text_of(page)
    assert shown.index("verdict: ") < shown.index("loss 2.000 → 0.500") < shown.index("who?")
    assert '<svg class="chart"' in page and "diagnose persona/001-fresh --runs" in shown


def test_hostile_answers_are_text(board: Served) -> None:
    page = board.settled("/runs/persona/001-fresh").text
    assert "<script>alert" not in page and "<img" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page and r"\x1b[31m" in page and r"\u202eabc" in page and "\u202e" not in page
    assert "980,0" in page and len(page) < 100_000, "an endless answer is cut"


def test_pages_have_no_script_or_style_of_their_own(board: Served) -> None:
    """The content security policy would refuse them."""
    for path in ("/", "/runs/persona/001-fresh", "/train", "/blind", "/chat", "/overlay?run=persona/001-fresh"):
        page = board.settled(path.partition("?")[0], **({"run": "persona/001-fresh"} if "?" in path else {})).text
        assert not re.search(r"<script(?! src=)|<style|<\w[^>]*\s(?:on\w+|style)=|javascript:", page), path
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page), "nothing of another site"


def test_every_link_has_the_token(board: Served) -> None:
    page = board.settled("/").text
    links = re.findall(r'(?:src|href|data-events)="([^"#]+)"', page)
    assert len(links) > 8 and all(f"token={board.board.token}" in link for link in links)


def test_chinese_by_the_address(board: Served) -> None:
    page = board.settled("/", lang="zh").text
    assert '<html lang="zh-CN">' in page and "lang=zh" in page and "已停止" in text_of(page)
    assert '<html lang="en">' in board.settled("/", lang="fr").text
    assert "English" in page and "lang=en" in page


def test_runs_over_each_other(board: Served) -> None:
    page = board.settled("/overlay", run=["persona/001-fresh", "persona/002-incremental"]).text
    assert page.count('<svg class="chart"') == 2 and 'class="legend"' in page
    assert board.settled("/overlay").status_code == 400
    assert board.settled("/overlay", run="persona/009-fresh").status_code == 404


def test_a_series_with_a_chinese_name(tmp_path: Path) -> None:
    run = write_run(tmp_path, series="林知")
    with served(tmp_path) as board:
        (link,) = re.findall(r'<a href="(/runs/[^"]+)"', board.settled("/").text)
        with board.bare as client:
            assert run.id in text_of(client.get(html.unescape(link)).text)


def test_no_runs_at_all(tmp_path: Path) -> None:
    with served(tmp_path / "none") as board:
        page = text_of(board.settled("/").text)
        assert "no runs in" in page and "init --example quickstart" in page


def test_the_report_is_shown_and_can_do_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with served(tmp_path) as board:
        missing = board.settled(f"/runs/{run.id}/report")
        assert missing.status_code == 404 and "report persona/001-fresh --runs" in text_of(missing.text)
        assert f"{run.id}/report" not in board.settled(f"/runs/{run.id}").text
        (run.folder / "report.html").write_text("<style>p{}</style><script>alert(1)</script>", encoding="utf-8")
        page = board.settled(f"/runs/{run.id}/report")
        assert page.headers.get_list("content-security-policy") == [page.headers["content-security-policy"]]
        assert page.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert "script-src" not in page.headers["content-security-policy"] and page.headers["x-frame-options"] == "DENY"
        assert f"{run.id}/report" in board.settled(f"/runs/{run.id}").text


def test_figures_follow_the_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0, 1.0), finished=False)
    with served(tmp_path) as board:
        assert "loss 2.000 → 1.000" in text_of(board.settled("/").text)
        files.append_line(run.history, {"step": 3, "epoch": 3.0, "loss": 0.25, "mean_token_accuracy": 0.9})
        assert "loss 2.000 → 0.250" in text_of(board.settled("/").text)
