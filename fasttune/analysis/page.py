"""A page about runs as one HTML file: no network, no script, every text escaped, whoever wrote it.

    RunReport… ── RunView, Part ──► templates/report.html.jinja ──► HTML, below LARGEST bytes

Texts of strangers stand in it: samples, answers, names. Markup in them is escaped by jinja2, control characters and
those that turn the direction of writing are written out, long ones are cut and that is said, and each is isolated, so
that Arabic in it does not reorder what stands around it. The content security policy forbids scripts and requests.
Where a page would be too large it is laid out again with less room for curves and texts.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fasttune.analysis import charts
from fasttune.analysis.charts import Chart
from fasttune.analysis.page_blocks import Bars
from fasttune.console import JSON_CONTROLS, _, finite, language, visible

TEMPLATES = Path(__file__).parent / "templates"
LARGEST = 300_000  # bytes of a page
# What turns the direction of writing, or can't be seen: written out, so that nobody is shown another text than stands.
HIDDEN = {
    code: f"\\u{code:04x}"
    for code in (0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
}
IN_SCRIPT = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"} | JSON_CONTROLS | HIDDEN
BACKTICKS = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Room:
    """How much a page may show: characters of a text, columns of a chart."""

    characters: int
    columns: int


ROOMS = (Room(2000, 400), Room(800, 240), Room(300, 120), Room(80, 60))


@dataclass(frozen=True)
class Shown:
    """The beginning of a text, and what is said where it is not all of it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Drawn:
    """A chart as markup, with its legend."""

    name: str
    title: str
    svg: Markup
    legend: Markup


def render(template: str, values: Callable[[Room], Mapping[str, Any]]) -> str:
    """The page of a template, with the most room for which it stays below LARGEST. `values` lays its values out in a
    room; `lang`, `chart_style` and the filters cut, code and the labels `t` are added."""
    page = ""
    for room in ROOMS:
        page = (
            environment(room)
            .get_template(template)
            .render(lang=html_language(), chart_style=Markup(charts.STYLE.strip()), t=labels(), **values(room))
        )
        if len(page.encode("utf-8")) < LARGEST:
            break
    return page


@functools.cache
def environment(room: Room) -> Environment:
    """jinja2 as every page uses it: all output is escaped and shown as it is, a name that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["cut"] = functools.partial(cut, most=room.characters)
    made.filters["code"] = with_code
    return made


def html_language() -> str:
    """The language of a page as HTML names it."""
    return "zh-CN" if language() == "zh" else "en"


def labels() -> dict[str, Any]:
    """The texts of the templates themselves."""
    return {
        "report": _("fasttune report"),
        "contents": _("Contents"),
        "verdict": _("Verdict"),
        "curves": _("Curves"),
        "levels": {"error": _("error"), "warning": _("warning"), "info": _("info")},
        "footer": _(
            "Made from the files of the run: no model was loaded, nothing was sent. The figures stand in this file as "
            "JSON, in the element with the id figures."
        ),
    }


# Texts --------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A text in which everything is seen: control characters, and those that hide or turn text, are written out."""
    return visible(text).translate(HIDDEN)


def finalized(value: Any) -> Any:
    """What jinja2 writes for a value: markup as it is, any other text made plain before it is escaped."""
    if isinstance(value, Markup) or value is None:
        return value
    return plain(value) if isinstance(value, str) else value


def cut(text: str, most: int) -> Shown:
    """The beginning of a text, and how long it is where that is not all of it."""
    if len(text) <= most:
        return Shown(text)
    return Shown(text[:most] + "…", _("cut: {total:,} characters in all", total=len(text)))


def with_code(text: str) -> Markup:
    """A text with what stands in backticks as code."""
    pieces = BACKTICKS.split(plain(text))
    made = [Markup("<code>{}</code>").format(piece) if n % 2 else escape(piece) for n, piece in enumerate(pieces)]
    return Markup("").join(made)


def draw(chart: Chart, room: Room) -> Drawn:
    """A chart as markup; charts.py escapes every name."""
    return Drawn(chart.name, chart.title, Markup(charts.draw(chart, room.columns)), Markup(charts.legend(chart)))


def draw_bars(bars: Bars) -> Drawn:
    """A histogram as markup."""
    svg = charts.histogram(bars.name, bars.title, bars.x_label, bars.values)
    return Drawn(bars.name, bars.title, Markup(svg), Markup(""))


def drawn(all_charts: Sequence[Chart], room: Room) -> list[Drawn]:
    """Charts as markup, without those that show nothing."""
    return [one for one in (draw(chart, room) for chart in all_charts) if one.svg]


def in_script(document: Any) -> Markup:
    """A JSON document that may stand in a script element: nothing in it ends the element or is hidden."""
    return Markup(json.dumps(finite(document), ensure_ascii=False, allow_nan=False).translate(IN_SCRIPT))
