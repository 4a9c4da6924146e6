"""Mistakes in JSON are named: each by its code, with the column and a remedy."""

from __future__ import annotations

import json

import pytest

from fasttune.data.json_errors import extra_text, is_cut_off, spread_over_lines, syntax_error


def failure(text: str) -> json.JSONDecodeError:
    """What the parser raises for a text."""
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"a": 1,}', "json-trailing-comma"),
        ("{'a': 1}", "json-single-quotes"),
        ("{“a”: 1}", "json-full-width"),
        ('{"a"：1}', "json-full-width"),
        ('{"a": 1 // one', "json-comment"),
        ('{"a": None}', "json-python-value"),
        ('{"a": "b\tc"}', "json-control-character"),
        (r'{"a": "C:\data"}'.replace(r"\\", "\\"), "json-escape"),
        ('{"a": "b', "json-cut-off"),
        ('{"a": [1, 2', "json-cut-off"),
        ("{a: 1}", "bad-json"),
    ],
)
def test_a_mistake_has_its_code(text: str, code: str) -> None:
    problem = failure(text)
    finding = syntax_error("t.jsonl", 3, 3, problem)
    assert (finding.code, finding.level, finding.where) == (code, "error", "t.jsonl:3")
    assert finding.why == f"column {problem.colno}: {problem.msg}" and finding.fix


def test_lines_that_are_cut_off_together_are_named() -> None:
    finding = syntax_error("t.jsonl", 3, 5, failure('{"a": "b'))
    assert finding.what == "the JSON is cut off; lines 3 to 5 can't be read"


@pytest.mark.parametrize(("text", "cut"), [('{"a": ', True), ('{"a": "b', True), ('{"a": 1,}', False), ("{a}", False)])
def test_what_is_cut_off_is_valid_so_far(text: str, cut: bool) -> None:
    assert is_cut_off(failure(text)) is cut


@pytest.mark.parametrize(
    ("rest", "remedy"),
    [
        (", ", "drop the comma"),
        ('{"a": 2}', "on a line of its own"),
        ("[1]", "as an object"),
        ("x", "one object a line and nothing else"),
    ],
)
def test_text_after_a_value(rest: str, remedy: str) -> None:
    finding = extra_text("t.jsonl:3", rest)
    assert finding.code == "json-extra-text" and remedy in finding.fix


def test_objects_over_several_lines() -> None:
    one, several = spread_over_lines("t", [(1, 4)], 1), spread_over_lines("t", [(2, 4), (5, 9)], 3)
    assert one.what == "the file is one object spread over lines 1 to 4"
    assert several.what == "2 objects are spread over several lines, the first over lines 2 to 4"
    assert (several.code, several.where) == ("json-pretty-printed", "t:2")
