"""The board in a real chromium: nothing on the console, nothing beyond the page, no serious finding of axe-core, wide and
narrow, light and dark, in both languages; curves that grow while they are watched; a chat."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from board_server import Served, served
from browser import SCHEMES, WIDTHS, Seen, browser, opened_page
from kept_epochs import write_epochs
from run_folders import write_run
from web_runs import log, trained_by_another

from fasttune.runs import documents, epochs
from fasttune.runs.documents import Probe
from fasttune.web import conversation

pytestmark = pytest.mark.slow
AXES = """() => [...document.querySelectorAll('.charts svg.chart text')]
    .map(one => [one.textContent, one.getAttribute('x'), one.getAttribute('y')].join(' at '))"""
HOSTILE = '<script>document.title="taken"</script><img src=x onerror="document.title=1">\u202e' + "长" * 3000
PAGES = ("/", "/runs/persona/001-fresh", "/runs/live/001-fresh", "/overlay?run=persona/001-fresh&run=persona/002-retune", "/train",
         "/blind", "/chat", "/runs/live/001-fresh/stop", "/nothing")  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("browser") / "runs"
    parent = write_run(root, losses=[4 / step for step in range(1, 40)], held_out=[2, 1.5, 1.4], samples=100)
    write_epochs(parent, (10, 20, 39), (2.0, None, 1.4), steps_per_epoch=1)
    before = documents.read_scores(parent)
    documents.write(parent.scores, replace(before, probes=(Probe("你是谁？" + HOSTILE, "an assistant", HOSTILE),)))
    write_run(
        root,
        "retune",
        parent=parent,
        losses=[3 / step for step in range(1, 60)],
        held_out=[2.5],
        train__learning_rate=1e-4,
    )
    live = write_run(root, series="live", losses=[2.0] * 50, finished=False)
    live.history.unlink()
    for step in range(1, 20):
        log(live, step, tokens_per_second=1000.0 + step, learning_rate=1e-4, grad_norm=1.0)
    with trained_by_another(live, root.parent / "note"), served(root, poll_seconds=0.2) as one:
        yield one


def address(board: Served, path: str, lang: str = "en") -> str:
    return f"{board.origin}{path}{'&' if '?' in path else '?'}lang={lang}&token={board.board.token}"


def until(seen: Seen, condition: str) -> None:
    """Waits until an expression is true in the page. Playwright's own waiting is forbidden by the page's policy."""
    for _try in range(300):
        if seen.page.evaluate(condition):
            return
        time.sleep(0.05)
    raise AssertionError(condition)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_fits_and_can_be_read(chromium: Any, board: Served, path: str) -> None:
    for width, scheme, lang in itertools.product(WIDTHS, SCHEMES, ("zh", "en")):
        with opened_page(chromium, address(board, path, lang), width, scheme) as seen:
            seen.page.wait_for_timeout(100)
            where = f"{path} {width} {scheme} {lang}"
            console = [line for line in seen.console if "404" not in line or path != "/nothing"]
            assert console == [] and seen.overflow() == [] and seen.violations() == [], where
            assert all(request.startswith(board.origin) for request in seen.requests), where
            assert "taken" not in seen.page.title()


def test_reading_needs_no_script(chromium: Any, board: Served) -> None:
    board.settled("/runs/persona/001-fresh")
    with opened_page(chromium, address(board, "/runs/persona/001-fresh"), 390, "light", scripts=False) as seen:
        assert "verdict" in seen.page.inner_text("main") and seen.page.locator("svg.chart").count() >= 2


def test_curves_grow_while_they_are_watched(chromium: Any, board: Served) -> None:
    run = board.board.run("live/001-fresh")
    with opened_page(chromium, address(board, f"/runs/{run.id}"), 1280, "light") as seen:
        curve = "figure[data-fields^=loss] path.curve.s0"
        before = seen.page.locator(curve).get_attribute("d")
        for step in range(20, 31):
            log(run, step, tokens_per_second=2000.0, learning_rate=1e-4, grad_norm=1.0)
        until(seen, "document.querySelector('[data-place=step]').textContent.includes('step 30 of 50')")
        until(seen, f"document.querySelector('{curve}').getAttribute('d') !== {before!r}")
        assert seen.page.locator("[data-place=rate]").inner_text() == "2,000"
        assert seen.page.locator("progress").evaluate("one => one.value") == 30
        assert seen.page.locator("svg.chart title").count() == seen.page.locator("svg.chart").count()
        grown = seen.page.evaluate(AXES)
        seen.page.reload()
        assert seen.page.evaluate(AXES) == grown, "board.js draws what charts.py draws"
        assert seen.console == []


def test_an_answer_appears_as_it_is_generated(chromium: Any, board: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import json, sys, time\nfor line in sys.stdin:\n"
        "    for n in range(30): print(json.dumps({'piece': f'<b>{n}</b> '}), flush=True); time.sleep(0.05)\n"
        "    print(json.dumps({'end': True}), flush=True)"
    )
    monkeypatch.setattr(conversation, "child_command", lambda model: [sys.executable, "-c", code])
    with opened_page(chromium, address(board, "/chat"), 390, "dark") as seen:
        seen.page.fill("textarea", "hello")
        seen.page.press("textarea", "Enter")
        until(seen, "document.querySelector('.them').textContent.includes('<b>3</b>')")
        assert seen.page.locator("#stop").is_visible() and seen.page.locator(".them b").count() == 0
        until(seen, "!document.querySelector('#chat button').disabled")
        assert "<b>29</b>" in seen.page.inner_text(".them")
        assert seen.violations() == [] and seen.overflow() == [] and seen.console == []


def test_an_epoch_is_picked_and_taken_back(chromium: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0, 1.0), held_out=(1.5, 1.8))
    write_epochs(run, (1, 2), (1.5, 1.8), steps_per_epoch=1)
    with (
        served(tmp_path) as board,
        opened_page(chromium, address(board, f"/runs/{run.id}"), 390, "light") as seen,
    ):
        seen.page.get_by_role("button", name="Use epoch 1").click()
        seen.page.get_by_text("the adapter of epoch 1, picked").wait_for()
        assert epochs.served_adapter(run).name == "epoch-1"
        assert seen.page.get_by_role("button", name="Use epoch 1").count() == 0
        seen.page.get_by_role("button", name="Undo").click()
        seen.page.get_by_text("the run uses its own adapter").wait_for()
        assert epochs.served_adapter(run) == run.adapter
        assert seen.console == [] and seen.overflow() == [] and seen.violations() == []


def test_a_killed_training_is_seen_without_a_reload_by_hand(chromium: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(2.0, 1.0), finished=False)
    with (
        trained_by_another(run, tmp_path / "note") as process,
        served(tmp_path, poll_seconds=1.0) as board,
        opened_page(chromium, address(board, f"/runs/{run.id}"), 1280, "light") as seen,
    ):
        assert seen.page.inner_text(".title .badge") == "running"
        process.kill()
        process.wait()
        seen.page.locator(".title .badge", has_text="stopped").wait_for(timeout=60_000)
