"""Screenshots of the report and the board against stored ones, wide and narrow, light and dark.

Fonts differ from machine to machine, so text is shown in a font of boxes that is made here (box_font.py): what is
compared is where everything stands, how large it is, and how light. The stored pictures, in layout/ beside this file,
are an eighth of the size, in grey. FASTTUNE_LAYOUT=write writes them anew: look at them before they are committed.

The tolerance: browsers of different years draw the edges of boxes, check boxes and fields slightly differently. That
moves a grey value of a tile of 32 pixels by a few of 255; a rule of the style sheet that is gone moves whole tiles. So
a tile differs where its mean is off by more than OFF, and a page may have MOST such tiles, however long it is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board_server import Served, served
from box_font import style
from browser import SCHEMES, WIDTHS, Seen, browser, opened_page
from run_folders import write_run
from whole_runs import whole_run

from fasttune.analysis import report
from fasttune.runs.store import Run

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytestmark = pytest.mark.slow
STORED = Path(__file__).parent / "layout"
SMALLER, TILE = 8, 4  # a stored pixel is 8 of the page, a tile 4 of those
OFF, MOST = 20, 4
PAGES = ("report", "reports", "runs", "run")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The board of three runs below the folder runs/, as people have it: no path of this machine is in a page."""
    folder = tmp_path_factory.mktemp("layout")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FASTTUNE_LANG", "en")
        patch.setenv("TZ", "UTC")
        run = whole_run(Path("runs"))
        other = write_run(
            Path("runs"), series="other", losses=[3.0 - n / 100 for n in range(200)], held_out=[2.0] * 200
        )
        report.write([run], Path("report.html"))
        report.write([Run(run.root, "persona/001-fresh"), run, other], Path("reports.html"))
        with served(Path("runs")) as one:
            yield one


def address(board: Served, name: str) -> str:
    """Where a page of PAGES is found; those of the board once the figures on them are read."""
    if name.startswith("report"):
        return Path(f"{name}.html").resolve().as_uri()
    path = {"runs": "/", "run": "/runs/persona/002-incremental"}[name]
    board.settled(path)
    return f"{board.origin}{path}?token={board.board.token}"


def picture(seen: Seen) -> Any:
    """The whole page in grey, an eighth of its size."""
    whole = Image.open(io.BytesIO(seen.page.screenshot(full_page=True, animations="disabled")))
    return whole.convert("L").reduce(SMALLER)


def different(found: Any, stored: Any) -> int:
    """How many tiles differ; all where the pages are not of the same width, or not nearly of the same height."""
    if found.width != stored.width or abs(found.height - stored.height) > 1:
        return stored.width * stored.height // TILE**2
    size = (found.width // TILE * TILE, min(found.height, stored.height) // TILE * TILE)
    tiles = [one.crop((0, 0, *size)).reduce(TILE).tobytes() for one in (found, stored)]
    return sum(abs(a - b) > OFF for a, b in zip(*tiles, strict=True))


def compared(chromium: Any, board: Served, name: str, width: int, scheme: Any, more: str = "") -> tuple[Any, int]:
    """The picture of a page, with a style sheet `more` behind its own, and how much of it differs from the stored."""
    with opened_page(chromium, address(board, name), width, scheme, style=style() + more) as seen:
        found = picture(seen)
    with Image.open(stored_path(name, width, scheme)) as stored:
        return found, different(found, stored)


def stored_path(name: str, width: int, scheme: str) -> Path:
    return STORED / f"{name}-{width}-{scheme}.png"


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_looks_as_it_did(
    chromium: Any, board: Served, name: str, width: int, scheme: Any, tmp_path: Path
) -> None:
    if os.environ.get("FASTTUNE_LAYOUT") == "write":
        with opened_page(chromium, address(board, name), width, scheme, style=style()) as seen:
            picture(seen).save(stored_path(name, width, scheme), optimize=True)
    found, tiles = compared(chromium, board, name, width, scheme)
    found.save(tmp_path / "found.png")
    assert tiles <= MOST, f"{tiles} tiles differ: {tmp_path / 'found.png'}"


@pytest.mark.parametrize(
    ("name", "width", "broken"),
    [
        ("runs", 1280, ".tree li{display:block}"),
        ("run", 1280, ".charts{display:block}"),
        ("run", 390, ".scroll{overflow-x:visible}.epochs th[scope=row]{white-space:normal}"),
        ("report", 390, ".chart{padding:0}"),
        ("reports", 1280, "main{max-width:none}"),
    ],
)
def test_a_layout_that_breaks_is_seen(chromium: Any, board: Served, name: str, width: int, broken: str) -> None:
    assert compared(chromium, board, name, width, "light", broken)[1] > MOST
