"""A real browser for the slow tests of pages: Debian's chromium, driven by playwright, with the rules of axe-core."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

WIDTHS = (390, 1280)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Seen:
    """A page that is open: the browser's own, and all that it wrote to the console, requested, or failed at."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> list[str]:
        """The elements that stand out of the page to the right; none where nothing can be scrolled sideways."""
        found: list[str] = self.page.evaluate(
            """() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
            [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
            .map(one => one.tagName + '.' + (one.getAttribute('class') || ''))"""
        )
        return found

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or critical: rule and the element."""
        from axe_playwright_python.sync_playwright import Axe

        results = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {node['target']}"
            for one in results
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def opened_page(
    chromium: Any, address: str, width: int, scheme: Literal["light", "dark"], *, scripts: bool = True, style: str = ""
) -> Iterator[Seen]:
    """A page in a window of so many pixels; `scripts` are those of the page, which tests may switch off; `style` is a
    style sheet of the test's own, which the page's policy would forbid."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts,
        bypass_csp=bool(style), reduced_motion="reduce",
    )  # fmt: skip
    seen = Seen(context.new_page())
    seen.page.on("console", lambda message: seen.console.append(message.text))
    seen.page.on("pageerror", lambda problem: seen.console.append(str(problem)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(address)
    if style:
        seen.page.add_style_tag(content=style)
        seen.page.evaluate("() => document.fonts.ready")
    try:
        yield seen
    finally:
        context.close()
