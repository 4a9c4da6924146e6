"""Charts as SVG in HTML, drawn by pure functions: series in, a string out. No library, no script, no network.

    draw(Chart("loss", "Loss by epoch", "epoch", (Series("training", points), Series("held-out", few, marked=True))))
    legend(chart)    the names beside a sample of each line, as HTML

A chart is as wide as its place and its text keeps its size: lines are drawn in an inner SVG that is stretched, text and
marks stand outside of it at percentages. A series differs from the others by colour, dashes and the shape of its marks,
so that none of the three is needed alone. Of many points each column keeps its lowest and its highest. A value that is
no finite number is a gap. Colours and sizes are in STYLE, which the page includes once; it follows light and dark by
the custom properties --c0 to --c5 and --line, --muted of the page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from operator import itemgetter

from fasttune.analysis.chart_scales import HEIGHT, LARGEST, Frame, Point, finite, frame_of, number, ticks
from fasttune.console import visible

UNITS = 1000  # the width of the stretched plot in its own units
COLUMNS = 400  # that the points of a chart are reduced to, shared by its series
FEWEST_COLUMNS = 60
DIVERGED = 5.0  # times the first loss: it has diverged

# Of each series in turn: the dashes of its line in pixels, and the outline of its marks around (0, 0).
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "12 4")
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "M-3.5-3.5h7v7h-7z",
    "M0-4.6L4.6 3.4H-4.6z",
    "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "M0 4.6L4.6-3.4H-4.6z",
    "M-4.5 0H4.5M0-4.5V4.5",
)
STYLE = """
.chart{display:block;width:100%;box-sizing:border-box;padding:14px 10px 40px 54px;overflow:visible;font-size:12px}
.chart text{fill:var(--muted);font-family:inherit;font-variant-numeric:tabular-nums}
.chart .plot{overflow:visible}
.chart path,.chart line{fill:none;vector-effect:non-scaling-stroke}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .at{stroke:var(--muted);stroke-width:1;stroke-dasharray:2 3}
.chart .curve{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .raw{stroke-width:1;opacity:.35}
.chart .mark path{fill:var(--surface);stroke-width:2}
.chart .bar{fill:var(--c0);stroke:none}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0;padding:0;list-style:none;font-size:.875rem}
.legend li{display:flex;align-items:center;gap:7px;min-width:0}
.legend svg{flex:none;overflow:visible}
.legend path{fill:none;stroke-width:2}
.legend .mark path{fill:var(--surface)}
"""


@dataclass(frozen=True)
class Series:
    """A named line. `raw` are the single values behind a smoothed line, drawn faintly; `marked` shows each point;
    `style` picks colour, dashes and marks, by default its place in the chart."""

    name: str
    points: tuple[Point, ...]
    raw: tuple[Point, ...] = ()
    marked: bool = False
    style: int | None = None


@dataclass(frozen=True)
class Chart:
    """What is drawn: `name` is an id in the page, `at` are vertical lines with a short text each, as for the seam
    between two runs; `log` is None where the spread of the values decides."""

    name: str
    title: str
    x_label: str
    series: tuple[Series, ...]
    at: tuple[tuple[float, str], ...] = ()
    log: bool | None = None
    from_zero: bool = False


def loss_axis(series: Sequence[Series]) -> bool | None:
    """Whether losses have a logarithmic axis: no, so that a rise of the held-out loss is seen beside a training loss
    near zero; where one has diverged their spread decides."""
    values = [y for one in series for _x, y in finite(one.points)]
    return None if values and max(values) > DIVERGED * values[0] else False


def draw(chart: Chart, room: int = COLUMNS) -> str:
    """A chart as an SVG element; "" where no series has a finite value. Its series share `room` columns."""
    points = [point for one in chart.series for point in finite((*one.points, *one.raw))]
    frame = frame_of(points, chart.log, from_zero=chart.from_zero)
    if frame is None:
        return ""
    columns = max(FEWEST_COLUMNS, room // max(1, len(chart.series)))
    curves = [curve(one, style_of(one, n), frame, columns) for n, one in enumerate(chart.series)]
    marks = [marks_of(one, style_of(one, n), frame) for n, one in enumerate(chart.series) if one.marked]
    plot = (
        f'<svg class="plot" viewBox="0 0 {UNITS} {HEIGHT}" width="100%" height="{HEIGHT}" preserveAspectRatio="none">'
    )
    inside = f"{plot}{''.join(grid(frame))}{''.join(lines_at(chart, frame))}{''.join(curves)}</svg>"
    return svg(chart.name, chart.title, described(chart), inside + "".join(labels(chart, frame)) + "".join(marks))


def svg(name: str, title: str, description: str, inside: str) -> str:
    """The outer element of a chart, which says in words what it shows."""
    ids = f"{safe(name)}-title {safe(name)}-text"
    return (
        f'<svg class="chart" role="img" aria-labelledby="{ids}" height="{HEIGHT + 54}">'
        f'<title id="{safe(name)}-title">{safe(title)}</title><desc id="{safe(name)}-text">{safe(description)}</desc>'
        f"{inside}</svg>"
    )


def described(chart: Chart) -> str:
    """Each series in figures, for those who don't see the chart: `training: 8.996 (1) … 4.434 (78)`."""
    return "; ".join(
        f"{one.name}: {number(found[0][1])} ({number(found[0][0])}) … {number(found[-1][1])} ({number(found[-1][0])})"
        for one in chart.series
        if (found := finite(one.points))
    )


def safe(text: str) -> str:
    """A text for HTML: control characters written out, markup escaped."""
    return escape(visible(text), quote=True)


def style_of(series: Series, place: int) -> int:
    """Which of the styles a series has."""
    return (place if series.style is None else series.style) % len(DASHES)


# Lines --------------------------------------------------------------------------------------------------------------


def reduced(points: Sequence[Point], columns: int) -> list[Point]:
    """At most two points for each of equally wide columns, the lowest and the highest in their sequence, and the first
    and the last of all; a point without a finite value, which is a gap, stays where a column holds no other."""
    points = [point for point in points if abs(point[0]) < LARGEST]
    if len(points) <= 2 * columns:
        return points
    points.sort(key=itemgetter(0))
    at = [x for x, _y in points]
    width = (at[-1] - at[0]) / columns
    ends = [bisect_left(at, at[0] + n * width) for n in range(1, columns)]
    chosen = [points[0]]
    for begin, end in pairwise([0, *ends, len(points)]):
        part = points[begin:end]
        values = finite(part)
        chosen += sorted({min(values, key=itemgetter(1)), max(values, key=itemgetter(1))}) if values else part[:1]
    return [*dict.fromkeys([*chosen, points[-1]])]


def smoothed(points: Sequence[Point], parts: int = 40) -> tuple[Point, ...]:
    """The running mean over a fortieth of the points, around each of them, or around as many, evenly spaced and the
    last one, as a chart can show; the points themselves where they are few."""
    values = finite(points)
    half = len(values) // (2 * parts)
    if half < 1:
        return tuple(values)
    sums = [0.0, *accumulate(y for _x, y in values)]
    shown = [*range(0, len(values) - 1, max(1, len(values) // (2 * COLUMNS))), len(values) - 1]
    around = [(n, max(0, n - half), min(len(values), n + half + 1)) for n in shown]
    return tuple((values[n][0], (sums[end] - sums[begin]) / (end - begin)) for n, begin, end in around)


def path(points: Sequence[Point], frame: Frame) -> str:
    """The `d` of a line through points, in the units of the plot; a gap at each value that is not finite."""
    parts, command = [], "M"
    for x, y in points:
        if not abs(y) < LARGEST:
            command = "M"
            continue
        parts.append(f"{command}{UNITS * frame.x(x):.1f} {frame.y(y):.1f}")
        command = "L"
    return "".join(parts)


def curve(series: Series, style: int, frame: Frame, columns: int) -> str:
    """A series as paths: its single values faintly, then its line."""
    raw = f'<path class="raw s{style}" d="{path(reduced(series.raw, columns), frame)}"/>' if series.raw else ""
    dashes = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    return f'{raw}<path class="curve s{style}"{dashes} d="{path(reduced(series.points, columns), frame)}"/>'


def marks_of(series: Series, style: int, frame: Frame) -> str:
    """A mark at each point of a series, at most as many as there is room for."""
    points = finite(series.points)
    shown = points[:: max(1, len(points) // 40)]
    return "".join(
        f'<svg class="mark" x="{100 * frame.x(x):.2f}%" y="{frame.y(y):.1f}" overflow="visible">'
        f'<path class="s{style}" d="{MARKS[style]}"/></svg>'
        for x, y in dict.fromkeys([*shown, *points[-1:]])
    )


# Around them --------------------------------------------------------------------------------------------------------


def grid(frame: Frame) -> Iterator[str]:
    """A horizontal line for each tick."""
    for value in frame.y_ticks:
        y = f"{frame.y(value):.1f}"
        yield f'<line class="grid" x1="0" x2="{UNITS}" y1="{y}" y2="{y}"/>'


def lines_at(chart: Chart, frame: Frame) -> Iterator[str]:
    """The vertical lines of a chart."""
    for value, _text in chart.at:
        x = f"{UNITS * frame.x(value):.1f}"
        yield f'<line class="at" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}"/>'


def labels(chart: Chart, frame: Frame) -> Iterator[str]:
    """The values beside the ticks, the name of the x axis, and what the vertical lines are."""
    for value in frame.y_ticks:
        yield f'<text x="-8" y="{frame.y(value):.1f}" dy="4" text-anchor="end">{number(value)}</text>'
    for value in frame.x_ticks:
        yield f'<text x="{100 * frame.x(value):.2f}%" y="{HEIGHT + 18}" text-anchor="middle">{number(value)}</text>'
    yield f'<text x="100%" y="{HEIGHT + 34}" text-anchor="end">{safe(chart.x_label)}</text>'
    for value, text in spaced(chart, frame):
        anchor = "end" if frame.x(value) > 0.7 else "start"
        shift = -4 if anchor == "end" else 4
        yield f'<text x="{100 * frame.x(value):.2f}%" dx="{shift}" y="-3" text-anchor="{anchor}">{safe(text)}</text>'


def spaced(chart: Chart, frame: Frame) -> Iterator[tuple[float, str]]:
    """The vertical lines whose text does not run into that of the line before it."""
    free = -1.0
    for value, text in sorted(chart.at):
        if frame.x(value) >= free:
            yield value, text
            free = frame.x(value) + 0.03 + 0.018 * len(text)


def legend(chart: Chart) -> str:
    """The series of a chart as a list: a sample of the line with its mark, and the name; "" for a single series."""
    if len(chart.series) < 2:
        return ""
    return f'<ul class="legend">{"".join(entry(one, style_of(one, n)) for n, one in enumerate(chart.series))}</ul>'


def entry(series: Series, style: int) -> str:
    """One line of a legend."""
    dashes = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    mark = f'<g class="mark" transform="translate(16 7)"><path class="s{style}" d="{MARKS[style]}"/></g>'
    sample = (
        f'<svg width="32" height="14" aria-hidden="true"><path class="s{style}"{dashes} d="M0 7H32"/>'
        f"{mark if series.marked else ''}</svg>"
    )
    return f"<li>{sample}<bdi>{safe(series.name)}</bdi></li>"


# Bars ---------------------------------------------------------------------------------------------------------------


def histogram(name: str, title: str, x_label: str, values: Sequence[int], bars: int = 24) -> str:
    """How often values occur in equal parts of their range, as an SVG element; "" for none."""
    if not values:
        return ""
    parts = counted(values, bars)
    frame = Frame(
        parts[0][0], parts[-1][1], 0, max(count for _low, _high, count in parts), False,
        ticks(parts[0][0], parts[-1][1], 6), whole_ticks(max(count for _low, _high, count in parts)),
    )  # fmt: skip
    rectangles = "".join(bar(frame, low, high, count) for low, high, count in parts)
    plot = (
        f'<svg class="plot" viewBox="0 0 {UNITS} {HEIGHT}" width="100%" height="{HEIGHT}" preserveAspectRatio="none">'
    )
    description = f"{number(min(values))} … {number(max(values))}; {len(values):,}"
    chart = Chart(name, title, x_label, ())
    inside = f"{plot}{''.join(grid(frame))}{rectangles}</svg>{''.join(labels(chart, frame))}"
    return svg(name, title, description, inside)


def bar(frame: Frame, low: int, high: int, count: int) -> str:
    """A rectangle over the values from `low` to below `high`."""
    left, right, top = UNITS * frame.x(low) + 1, UNITS * frame.x(high) - 1, frame.y(count)
    place = f'x="{left:.1f}" width="{right - left:.1f}" y="{top:.1f}" height="{HEIGHT - top:.1f}"'
    return f'<rect class="bar" {place}/>'


def counted(values: Sequence[int], bars: int) -> list[tuple[int, int, int]]:
    """(from, to, how many) of at most `bars` equal parts of the range of whole numbers."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bars))
    counts = [0] * -(-(high - low + 1) // width)
    for value in values:
        counts[(value - low) // width] += 1
    return [(low + n * width, low + (n + 1) * width, count) for n, count in enumerate(counts)]


def whole_ticks(most: int) -> tuple[float, ...]:
    """Ticks for counts from 0 to `most`: whole numbers alone."""
    return tuple(value for value in ticks(0, most, 4) if value == int(value))
