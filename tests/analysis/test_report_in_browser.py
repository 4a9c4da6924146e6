"""The page of runs in a real browser: wide and narrow, light and dark, in both languages.

Screenshots are not compared with stored ones, whose fonts differ from machine to machine, but with each other: text is
dark on light and light on dark, a narrow page is longer and nothing of it is lost, and with every colour taken away the
lines of a chart can still be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import SCHEMES, WIDTHS, browser, opened_page
from run_folders import write_run
from test_report import HOSTILE
from whole_runs import whole_run

from fasttune.analysis import report

pytestmark = pytest.mark.slow
LUMINANCE = "one => { const [r, g, b] = getComputedStyle(one).%s.match(/[\\d.]+/g).map(Number); return r + g + b }"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=["zh", "en"])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A page of one run with hostile texts, one of two runs, and one of a run that never trained a step."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTTUNE_LANG", request.param)
        run = whole_run(folder / "runs", HOSTILE)
        other = write_run(
            folder / "runs", series="other", losses=[3.0 - n / 100 for n in range(200)], held_out=[2.0] * 200
        )
        empty = write_run(folder / "runs", series="empty", losses=(), finished=False)
        written = [report.write([run], folder / "one.html"), report.write([run, other], folder / "two.html"),
                   report.write([empty], folder / "none.html")]  # fmt: skip
    return [one.path for one in written]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_is_readable_everywhere_and_asks_for_nothing(
    chromium: Any, pages: list[Path], width: int, scheme: Any
) -> None:
    for path in pages:
        with opened_page(chromium, path.as_uri(), width, scheme) as seen:
            assert seen.console == []
            assert seen.requests == [path.as_uri()]
            assert seen.overflow() == []
            assert seen.violations() == []
            ink, paper = (seen.page.locator("body").evaluate(LUMINANCE % one) for one in ("color", "backgroundColor"))
            assert (ink < 250 < 500 < paper) if scheme == "light" else (paper < 250 < 500 < ink)


def test_nothing_is_lost_without_scripts_or_on_a_phone(chromium: Any, pages: list[Path]) -> None:
    texts, heights = [], []
    for width, scripts in ((1280, True), (1280, False), (390, True)):
        with opened_page(chromium, pages[0].as_uri(), width, "light", scripts=scripts) as seen:
            texts.append("".join(seen.page.locator("main").text_content().split()))
            box = seen.page.locator("main").bounding_box()
            heights.append(box["height"])
    assert texts[0] == texts[1] == texts[2]
    assert heights[0] == heights[1] < heights[2]


def test_no_text_on_a_phone_is_smaller_than_twelve_pixels(chromium: Any, pages: list[Path]) -> None:
    """A chart that is scaled down with its text could not be read."""
    with opened_page(chromium, pages[0].as_uri(), 390, "light") as seen:
        sizes = seen.page.evaluate(
            "() => [...document.querySelectorAll('main *')].filter(one => one.textContent.trim())"
            ".map(one => parseFloat(getComputedStyle(one).fontSize))"
        )
    assert min(sizes) >= 12


def test_lines_are_told_apart_without_colour(chromium: Any, pages: list[Path]) -> None:
    with opened_page(chromium, pages[1].as_uri(), 1280, "light") as seen:
        dashes = seen.page.evaluate(
            "() => [...document.querySelectorAll('#chart-loss .curve')].map(one => getComputedStyle(one).strokeDasharray)"
        )
    assert len(dashes) == 2 and len(set(dashes)) == 2


def test_a_page_can_be_printed(chromium: Any, pages: list[Path]) -> None:
    with opened_page(chromium, pages[0].as_uri(), 1280, "dark") as seen:
        seen.page.emulate_media(media="print")
        assert not seen.page.locator("nav").is_visible()
        paper = seen.page.locator("body").evaluate(LUMINANCE % "backgroundColor")
        assert paper == 3 * 255
        assert len(seen.page.pdf()) > 20_000
