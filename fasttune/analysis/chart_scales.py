"""The scales of charts: which values a plot shows, where each of them stands, and round numbers beside the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HEIGHT = 220  # pixels of the plot itself
LOG_SPREAD = 30.0  # highest / lowest value from which on a logarithmic axis tells more
FEW_DECADES = 100.0  # highest / lowest value up to which 2 and 5 are ticks beside the powers of ten
ROOM = 0.06  # of the range, above and below the values
LARGEST, SMALLEST = 1e30, 1e-30  # beyond them no figure of a training is one; a chart would lose all others
Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """Which values a plot shows: x from `left` to `right`, y from `low` to `high`, with its ticks."""

    left: float
    right: float
    low: float
    high: float
    log: bool
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        """How far to the right a value stands, from 0 to 1."""
        return (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        """How many pixels below the top a value stands; a value that a logarithmic axis lacks is at the bottom."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        position = (math.log(value) if value > 0 else low) if self.log else value
        return HEIGHT * (1 - (min(max(position, low), high) - low) / (high - low))


def frame_of(points: Sequence[Point], log: bool | None = None, *, from_zero: bool = False) -> Frame | None:
    """The frame that holds finite points; None where there is none. `log` is None where their spread decides."""
    if not points:
        return None
    xs, ys = [x for x, _y in points], [y for _x, y in points]
    left, right = widened(min(0.0, *xs), max(xs), 0.0)
    is_log = is_spread(ys) if log is None else log and min(ys) > SMALLEST
    if is_log:
        low, high = min(ys) / 1.15, max(ys) * 1.15
        return Frame(left, right, low, high, True, ticks(left, right, 7), log_ticks(low, high))
    low, high = widened(min(0.0, *ys) if from_zero else min(ys), max(ys), ROOM)
    low = max(0.0, low) if min(ys) >= 0 else low
    return Frame(left, right, low, high, False, ticks(left, right, 7), ticks(low, high, 5))


def is_spread(values: Sequence[float]) -> bool:
    """Whether values are positive and so far apart that a logarithmic axis shows more of them."""
    return min(values) > SMALLEST and max(values) / min(values) > LOG_SPREAD


def widened(low: float, high: float, room: float) -> tuple[float, float]:
    """A range with some room on both sides; one that holds a single value is widened by half of it."""
    if high <= low:
        half = abs(high) / 2 or 0.5
        return low - half, high + half
    return low - room * (high - low), high + room * (high - low)


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """At most `most` + 1 round values within a range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(n * step for n in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten within a range, with 2 and 5 times them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < FEW_DECADES else (1,)
    skip = max(1, len(decades) // 6)
    found = [factor * 10.0**decade for decade in decades[::skip] for factor in factors]
    return tuple(value for value in found if low <= value <= high)


def number(value: float) -> str:
    """A value in few characters: 0.25, 12,000, 2e-4."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def finite(points: Sequence[Point]) -> list[Point]:
    """The points with two finite numbers."""
    return [(x, y) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST]
