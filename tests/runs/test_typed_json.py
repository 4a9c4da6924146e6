"""Dataclasses to JSON and back: every type that the documents use, and what does not fit one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from fasttune.runs.typed_json import as_json, from_json


@dataclass(frozen=True)
class Point:
    """A dataclass that others hold."""

    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Shape:
    """One field of each kind."""

    points: tuple[Point, ...]
    kind: Literal["open", "closed"]
    centre: Point | None
    from_: int | str
    size: Point = field(metadata={"flat": True})
    names: Mapping[str, int] = field(default_factory=dict)
    extra: Any = None


SHAPE = Shape((Point(1.0), Point(2.0, 3.0)), "closed", None, "a", Point(5.0, 6.0), {"é": 1}, {"any": [1, None]})
JSON: dict[str, Any] = {
    "points": [{"x": 1.0, "y": 0.0}, {"x": 2.0, "y": 3.0}], "kind": "closed", "centre": None, "from": "a", "x": 5.0, "y": 6.0,
    "names": {"é": 1}, "extra": {"any": [1, None]},
}  # fmt: skip


def test_there_and_back() -> None:
    assert as_json(SHAPE) == JSON
    assert from_json(Shape, JSON) == SHAPE


def test_members_of_a_union() -> None:
    assert from_json(Shape, JSON | {"centre": {"x": 1, "y": 2}, "from": 3}).centre == Point(1, 2)
    assert (
        from_json(int | str, "3") == "3"
        and from_json(str | float, 0.1) == 0.1
        and from_json(float | None, None) is None
    )


def test_defaults_stand_for_what_is_left_out_and_unknown_fields_are_left_out() -> None:
    short: dict[str, Any] = {"points": [], "kind": "open", "centre": None, "from": 1, "x": 1.0, "later": 7}
    assert from_json(Shape, short) == Shape((), "open", None, 1, Point(1.0))


def test_a_whole_number_is_a_float_and_stays_what_it_is() -> None:
    """So that a step in a line of figures is not written as 5.0 the next time."""
    value = from_json(Mapping[str, float], {"step": 5})["step"]
    assert value == 5 and type(value) is int


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"points": {}}, "points"), ({"points": [{"x": 1.0}, {"y": 1.0}]}, r"points\[1\].x"), ({"points": None}, "points"),
        ({"kind": "round"}, "kind"), ({"kind": 1}, "kind"), ({"centre": 5}, "centre"), ({"centre": {"y": 1.0}}, "centre"),
        ({"from": None}, "from"), ({"from": 1.5}, "from"), ({"from": True}, "from"), ({"x": "5"}, "x"), ({"x": None}, "x"),
        ({"names": []}, "names"), ({"names": {"a": "b"}}, "names.a"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}$"):
        from_json(Shape, JSON | changed)


def test_a_missing_field_is_named() -> None:
    for key in ("points", "kind", "centre", "from", "x"):
        with pytest.raises(ValueError, match=f"^{key}$"):
            from_json(Shape, {name: value for name, value in JSON.items() if name != key})
