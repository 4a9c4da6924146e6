"""A value against the type and the bounds of its setting: what is taken, what is refused, and how both are worded."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any, Literal

import pytest

from fasttune.recipe.schema import Key
from fasttune.recipe.toml_file import REFUSED
from fasttune.recipe.values import (
    Entry,
    as_toml,
    choices,
    convert,
    describe,
    example_line,
    near_name,
    refusal,
)

Sizes = Literal["small", "large"]


def key(hint: Any, default: Any = 1, **more: Any) -> Key:
    values: dict[str, Any] = {"help": "what it is", "bounds": {}, "most": "", "prose": False, "example": ""}
    return Key("train.size", hint, default, **{**values, **more})


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 3, 3),
        (int, 3.0, REFUSED),
        (int, True, REFUSED),
        (int, "3", REFUSED),
        (float, 3, 3.0),
        (float, True, REFUSED),
        (float, float("nan"), REFUSED),
        (float, float("inf"), REFUSED),
        (float, 10**400, REFUSED),
        (bool, False, False),
        (bool, 0, REFUSED),
        (str, "", ""),
        (str, 1, REFUSED),
        (Sizes, "small", "small"),
        (Sizes, "medium", REFUSED),
        (int | Sizes, "large", "large"),
        (int | Sizes, 7, 7),
        (float | None, None, None),
        (tuple[str, ...], "a", ("a",)),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[Sizes, ...], ["small", "medium"], REFUSED),
        (tuple[str, ...], 3, REFUSED),
        (tuple[str, ...], [], ()),
    ],
)
def test_convert(hint: Any, value: Any, expected: Any) -> None:
    found = convert(hint, value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("setting", "value", "code", "fix"),
    [
        (key(int, bounds={"≥": 1, "<": 9}), 9, "out-of-range", "the default is size = 1"),
        (key(int), "3", "wrong-type", "write it without quotes: size = 3"),
        (key(int), 3.0, "wrong-type", "write it without a decimal point: size = 3"),
        (key(str, "a"), 3, "wrong-type", 'write it in quotes: size = "3"'),
        (key(int), [1], "wrong-type", "the default is size = 1"),
        (key(Sizes, "small"), "Small", "unknown-choice", 'did you mean "small"?'),
        (key(Sizes, "small"), "huge", "unknown-choice", 'the default is size = "small"'),
        (key(str, MISSING, example="x"), " ", "empty-value", 'for example size = "x"'),
        (key(tuple[str, ...], ()), ["a", ""], "empty-value", "the default is size = []"),
        (key(tuple[str, ...], ("a",), filled=True), [], "empty-value", 'the default is size = ["a"]'),
        (key(str, "a", filled=True), "", "empty-value", 'the default is size = "a"'),
        (key(str, "a"), "a" * 4097, "value-too-long", 'the default is size = "a"'),
        (key(tuple[str, ...], ()), ["a", "a"], "repeated-value", "keep one of them"),
        (key(float | None, None), "often", "wrong-type", "leave it out to have none"),
    ],
)
def test_a_refused_value_has_a_code_and_a_remedy(setting: Key, value: Any, code: str, fix: str) -> None:
    finding = refusal(Entry("train.size", value, "a.toml:7: train.size", "recipe"), setting)
    assert finding is not None
    assert (finding.code, finding.level, finding.where, finding.fix) == (code, "error", "a.toml:7: train.size", fix)


@pytest.mark.parametrize(("value", "why"), [(0, "what it is"), (8, "why no more"), (9, "why no more")])
def test_a_number_above_its_bound_is_refused_with_the_reason_of_the_bound(value: int, why: str) -> None:
    bounded = key(int, bounds={"≥": 1, "<": 8}, most="why no more")
    finding = refusal(Entry("train.size", value, "a.toml", "recipe"), bounded)
    assert finding is not None and finding.why == why


def test_only_prose_is_longer_than_a_path() -> None:
    assert refusal(Entry("train.size", "a" * 4097, "a.toml", "recipe"), key(str, "", prose=True)) is None


def test_line_breaks_are_for_prose_only() -> None:
    entry = Entry("train.size", "two\nlines", "a.toml", "recipe")
    finding = refusal(entry, key(str, ""))
    assert finding is not None and finding.code == "control-character"
    assert refusal(entry, key(str, "", prose=True)) is None


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (int | Literal["auto"], 'a whole number or "auto"'),
        (float | None, "a number"),
        (Sizes, 'one of "small", "large"'),
        (tuple[Sizes, ...], 'a list from "small", "large"'),
        (tuple[str, ...], "a text or a list of texts"),
        (bool, "true or false"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_choices_of_nested_types() -> None:
    assert choices(tuple[Sizes, ...]) == choices(int | Sizes) == ["small", "large"] and choices(int) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("好", '"好"'),
        (1e-4, "0.0001"),
        (("a", 1), '["a", 1]'),
        ({"a": 1}, "a table"),
        ([{"a": 1}], "a list of tables"),
    ],
)
def test_values_as_toml(value: Any, text: str) -> None:
    assert as_toml(value) == text


def test_the_most_similar_name() -> None:
    assert near_name("lerning_rate", ["epochs", "learning_rate"]) == "learning_rate"
    assert near_name("verbose", ["epochs", "learning_rate"]) == ""


def test_an_example_is_the_default_or_a_valid_line() -> None:
    assert example_line(key(int, 8)) == "the default is size = 8"
    assert example_line(key(str, MISSING, example="x")) == 'for example size = "x"'


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("hint", "value", "shown"),
    [
        (int, 16**100_000, "a number of about 120412 digits"),
        (str, 16**100_000, "a number of about 120412 digits"),
        (int, LONG, f'"{LONG[:99]}…'),
        (Sizes, ["small"] * 5000, '["small", "small"'),
        (Sizes, {"a": 1}, "a table"),
        (int, 1e41, "1e+41"),
    ],
    ids=["whole", "text", "digits", "list", "table", "float"],  # pytest writes numbers too
)
def test_a_huge_value_is_named_in_short(hint: Any, value: Any, shown: str) -> None:
    """Python refuses to write a number of more than 4,300 digits, and a message is no place for megabytes."""
    setting = key(hint, "small" if hint is Sizes else 1, bounds={"≤": 1024} if hint is int else {})
    finding = refusal(Entry("train.size", value, "a.toml", "recipe"), setting)
    assert finding is not None and shown in finding.what
    assert len(finding.what) < 250 and len(finding.fix) < 250 and "1000000" not in finding.fix


def test_bytes_of_another_encoding_on_the_command_line_are_refused() -> None:
    for hint, value in ((str, "caf\udce9"), (tuple[str, ...], ["a", "\udcff"])):
        finding = refusal(Entry("train.size", value, "--set", "override"), key(hint, "", prose=True))
        assert finding is not None and finding.code == "not-utf-8"
