"""What a page about runs is made of: tables, charts, histograms and answers, and the parts that hold them."""

from __future__ import annotations

from dataclasses import dataclass

from fasttune.analysis.charts import Chart

NONE = "–"


@dataclass(frozen=True)
class Row:
    """A row of a table; `here` sets it off from the others."""

    cells: tuple[str, ...]
    here: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its headings; the first cell of a row is its name."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    numbers: bool = True


@dataclass(frozen=True)
class Exchange:
    """A question with (who, answer, remarks) of each answer."""

    question: str
    said_by: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Bars:
    """A histogram: how often values occur."""

    name: str
    title: str
    x_label: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A titled part of a page: a text, a table, charts, answers, a remark, commands to copy; each of them or none."""

    name: str
    title: str
    text: str = ""
    table: Table | None = None
    charts: tuple[Chart | Bars, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    note: str = ""
    commands: tuple[str, ...] = ()


def figure(value: float | None, form: str = ".3f") -> str:
    """A figure in a cell; a dash for none."""
    return NONE if value is None else format(value, form)
