"""A real browser for pages: Debian's chromium, headless, by playwright; tests that use it are slow and skipped without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")


@dataclass
class Seen:
    """A page, and what went wrong on it: `errors` are of the console and of scripts, `requests` the addresses that it
    asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> list[str]:
        """The elements that reach beyond the page's width, and are not in one that scrolls."""
        found: list[str] = self.page.evaluate(
            """() => [...document.querySelectorAll('body *')].filter((one) => {
                for (let up = one.parentElement; up; up = up.parentElement) {
                    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(up).overflowX)) return false;
                }
                const box = one.getBoundingClientRect();
                return box.width > 0 && box.right > document.documentElement.clientWidth + 1 && box.left >= 0;
            }).map((one) => one.outerHTML.slice(0, 120))"""
        )
        wide = self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        return found + ["the page scrolls sideways"] * wide

    def serious(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {[node['html'][:160] for node in one['nodes']][:3]}"
            for one in violations if one["impact"] in ("serious", "critical")
        ]  # fmt: skip


@contextmanager
def browser() -> Iterator[Any]:
    """A chromium that reaches no proxy."""
    pytest.importorskip("playwright")
    pytest.importorskip("axe_playwright_python")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-proxy-server", "--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def page_in(chromium: Any, width: int = 1280, scheme: str = "light", **options: Any) -> Iterator[Seen]:
    """A page of a width, 844 high, in a colour scheme."""
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **options)
    page = context.new_page()
    seen = Seen(page)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda problem: seen.errors.append(str(problem)))
    page.on("request", lambda request: seen.requests.append(request.url))
    yield seen
    context.close()
