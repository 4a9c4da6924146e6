"""Charts: what is drawn of which points, for eyes and for screen readers."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from fasttune.analysis import chart_scales, charts
from fasttune.analysis.charts import Chart, Series

FALLING = tuple((n / 10, 5.0 - n / 25) for n in range(1, 101))


def drawn(*series: Series, **settings: object) -> ElementTree.Element:
    """The parsed SVG of a chart."""
    return ElementTree.fromstring(charts.draw(Chart("loss", "Loss", "epoch", series, **settings)))  # type: ignore[arg-type]


def texts(chart: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in chart.iter("text")]


def lines(chart: ElementTree.Element) -> list[str]:
    return [element.attrib["d"] for element in chart.iter("path") if "curve" in element.attrib["class"]]


def test_a_chart_says_what_it_shows_without_being_seen() -> None:
    chart = drawn(Series("training", FALLING))
    named = {element.attrib["id"]: element.text for element in chart if "id" in element.attrib}
    assert chart.attrib["role"] == "img"
    assert [named[name] for name in chart.attrib["aria-labelledby"].split()] == [
        "Loss",
        "training: 4.96 (0.1) … 1 (10)",
    ]


def test_the_axes_have_round_ticks_that_lie_within() -> None:
    assert chart_scales.ticks(0.0, 3.0, 6) == (0, 0.5, 1, 1.5, 2, 2.5, 3)
    assert chart_scales.ticks(4.43, 9.0, 5) == (5, 6, 7, 8, 9)
    assert chart_scales.ticks(0.0, 2e-4, 5) == pytest.approx((0, 5e-5, 1e-4, 1.5e-4, 2e-4))
    assert chart_scales.log_ticks(0.04, 30.0) == (0.1, 1, 10)
    assert chart_scales.log_ticks(0.9, 40.0) == (1, 2, 5, 10, 20)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (2e-4, "2e-4"), (1.5e-5, "1.5e-5"), (0.25, "0.25"), (12_000, "12,000"), (3e7, "3e7")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert chart_scales.number(value) == text


def test_values_far_apart_are_on_a_logarithmic_axis_and_those_with_zero_are_not() -> None:
    wide = Series("gradient", ((0, 0.01), (1, 1.0), (2, 100.0)))
    assert {"0.01", "0.1", "1", "10", "100"} <= set(texts(drawn(wide)))
    assert "0.1" not in texts(drawn(Series("gradient", ((0, 0.0), (1, 1.0), (2, 100.0)))))


def test_a_value_that_is_no_number_is_a_gap() -> None:
    (line,) = lines(drawn(Series("training", ((0, 2.0), (1, math.nan), (2, 1.0), (3, math.inf), (4, 0.5)))))
    assert re.sub(r"[\d. -]+", "", line) == "MMM"


def test_nothing_is_drawn_of_no_values_and_one_value_is_drawn() -> None:
    assert charts.draw(Chart("loss", "Loss", "epoch", (Series("training", ((0, math.nan),)),))) == ""
    assert charts.draw(Chart("loss", "Loss", "epoch", ())) == ""
    assert lines(drawn(Series("training", ((3, 2.0),)))) == ["M1000.0 110.0"]


def test_each_column_keeps_its_lowest_and_highest_value() -> None:
    """A spike of a single step among 100,000 is seen."""
    points = [(n / 1000, 1.0) for n in range(100_000)]
    points[54_321], points[77_777] = (54.321, 9.0), (77.777, 0.0)
    kept = charts.reduced(points, 400)
    assert len(kept) <= 802 and {points[0], points[54_321], points[77_777], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_a_gap_outlives_the_reduction() -> None:
    points = [(float(n), math.nan if 400 <= n < 700 else 1.0) for n in range(1000)]
    assert any(math.isnan(y) for _x, y in charts.reduced(points, 20))


def test_a_hundred_thousand_points_stay_small() -> None:
    many = tuple((n / 1000, 1 + math.sin(n)) for n in range(100_000))
    every = Series("training", charts.smoothed(many), raw=many)
    assert len(charts.draw(Chart("loss", "Loss", "epoch", (every,)))) < 30_000
    assert len(charts.draw(Chart("loss", "Loss", "epoch", (every,) * 6))) < 60_000


def test_six_series_differ_without_colour() -> None:
    chart = Chart("loss", "Loss", "epoch", tuple(Series(f"run {n}", FALLING, marked=True) for n in range(6)))
    legend = ElementTree.fromstring(charts.legend(chart))
    looks = [tuple(re.findall(r'(?:dasharray| d)="([^"]*)"', ElementTree.tostring(one, "unicode"))) for one in legend]
    assert len(set(looks)) == 6
    assert [one.text for one in legend.iter("bdi")] == [f"run {n}" for n in range(6)]


def test_a_mean_is_taken_around_each_point_and_follows_the_curve() -> None:
    noisy = [(float(n), n / 100 + (0.5 if n % 2 else -0.5)) for n in range(1000)]
    for x, y in charts.smoothed(noisy)[50:-50]:
        assert y == pytest.approx(x / 100, abs=0.05)
    assert charts.smoothed(noisy[:20]) == tuple(noisy[:20])


def test_a_seam_has_its_line_and_its_name_and_names_do_not_run_into_each_other() -> None:
    chart = drawn(Series("training", FALLING), at=((4.0, "002-incremental"), (4.1, "003-incremental")))
    assert sum(element.attrib["class"] == "at" for element in chart.iter("line")) == 2
    assert "002-incremental" in texts(chart) and "003-incremental" not in texts(chart)


def test_values_beyond_any_training_do_not_flatten_the_others() -> None:
    (line,) = lines(drawn(Series("training", ((0, 2.0), (1, 1e300), (2, 1.0)))))
    assert line == "M0.0 11.8M1000.0 208.2"
    assert lines(drawn(Series("training", ((0, 5e-324), (1, 1e29)))))


def test_names_are_text_and_nothing_else() -> None:
    name = '<script>alert(1)</script>" onload="x\x1b[31m'
    chart = Chart(name, name, name, (Series(name, FALLING), Series(name, FALLING)), at=((1.0, name),))
    for text in (charts.draw(chart), charts.legend(chart), charts.histogram(name, name, name, [1, 2])):
        assert "<script" not in text and "\x1b" not in text
        assert not [key for one in ElementTree.fromstring(text).iter() for key in one.attrib if key.startswith("on")]


def test_a_histogram_counts_every_value_once() -> None:
    parts = charts.counted([1, 2, 2, 50, 99, 100], 10)
    assert [count for _low, _high, count in parts] == [3, 0, 0, 0, 1, 0, 0, 0, 0, 2]
    chart = ElementTree.fromstring(charts.histogram("tokens", "Tokens", "tokens", [1, 2, 2, 50, 99, 100], 10))
    heights = [float(one.attrib["height"]) for one in chart.iter("rect")]
    assert heights[0] == chart_scales.HEIGHT and heights[4] == pytest.approx(chart_scales.HEIGHT / 3, abs=0.1)
    assert charts.histogram("tokens", "Tokens", "tokens", []) == ""
    assert charts.histogram("tokens", "Tokens", "tokens", [7, 7])
