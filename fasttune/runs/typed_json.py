"""Dataclasses to JSON and back, with every type checked.

dataclass, Mapping[str, X] <-> object    tuple[X, ...] <-> array    Literal, union, str, int, float, bool, None
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Reader = Callable[[Any], Any]  # JSON -> a value; raises ValueError with the name of the part that does not fit


def as_json(value: Any) -> Any:
    """A document as JSON has it.

    Tuples become lists, a field `from_` is written as `from`, and the fields of a `flat` dataclass stand among those of
    the dataclass that holds it.
    """
    if is_dataclass(value) and not isinstance(value, type):
        document: dict[str, Any] = {}
        for each in fields(value):
            inner = as_json(getattr(value, each.name))
            document |= inner if each.metadata.get("flat") else {each.name.rstrip("_"): inner}
        return document
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def from_json(kind: Any, value: Any) -> Any:
    """The value of a type from its JSON: a dataclass, tuple[X, ...], Mapping[str, X], Literal, union or plain type.

    A whole number stands for a float as well; fields that a dataclass does not have are left out. Raises ValueError
    with the dotted name of the field that is missing or does not fit its type.
    """
    return reader(kind)(value)


@functools.cache
def reader(kind: Any) -> Reader:
    """What turns JSON into a value of a type. Made once a type: `fasttune runs` reads hundreds of documents."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return functools.partial(read_member, [reader(member) for member in arguments])
    if origin is tuple:
        return functools.partial(read_tuple, reader(arguments[0]))
    if origin in (Mapping, dict):
        return functools.partial(read_mapping, reader(arguments[1]))
    if origin is Literal:
        return functools.partial(read_literal, arguments)
    if is_dataclass(kind):
        return functools.partial(read_dataclass, kind)
    return functools.partial(read_plain, kind)


def read_member(members: Sequence[Reader], value: Any) -> Any:
    """The value as the first member of a union that it fits."""
    for member in members:
        with contextlib.suppress(ValueError):
            return member(value)
    raise ValueError


def read_tuple(read: Reader, value: Any) -> Any:
    """An array, each of its values by the same reader."""
    if not isinstance(value, list):
        raise ValueError
    return tuple(read_inner(read, inner, f"[{index}]") for index, inner in enumerate(value))


def read_mapping(read: Reader, value: Any) -> Any:
    """An object whose values are all of one type."""
    if not isinstance(value, dict):
        raise ValueError
    return {key: read_inner(read, inner, key) for key, inner in value.items()}


def read_literal(values: tuple[Any, ...], value: Any) -> Any:
    """One of the values that are allowed."""
    if value not in values:
        raise ValueError
    return value


def read_plain(kind: Any, value: Any) -> Any:
    """A text, number, bool or None as it is."""
    if kind is not Any and not fits_plain(kind, value):
        raise ValueError
    return value


def read_dataclass(kind: Any, document: Any) -> Any:
    """A dataclass from an object."""
    if not isinstance(document, dict):
        raise ValueError
    values = {}
    for each in json_fields(kind):
        if each.is_flat:
            values[each.name] = each.read(document)
        elif each.key in document:
            values[each.name] = read_inner(each.read, document[each.key], each.key)
        elif each.is_needed:
            raise ValueError(each.key)
    return kind(**values)


def read_inner(read: Reader, value: Any, name: str) -> Any:
    """A part of a document. Raises ValueError with its name before that of the part in it which does not fit."""
    try:
        return read(value)
    except ValueError as problem:
        inner = str(problem)
        raise ValueError(f"{name}.{inner}" if inner and inner[0] != "[" else name + inner) from None


@dataclass(frozen=True)
class JsonField:
    """A field of a dataclass, and its key in JSON; one that is flat has its own fields among the dataclass's."""

    name: str
    key: str
    read: Reader
    is_flat: bool
    is_needed: bool


@functools.cache
def json_fields(kind: Any) -> tuple[JsonField, ...]:
    """The fields of a dataclass, whose annotations are strings."""
    hints = get_type_hints(kind)
    return tuple(
        JsonField(
            each.name,
            each.name.rstrip("_"),
            reader(hints[each.name]),
            bool(each.metadata.get("flat")),
            each.default is MISSING and each.default_factory is MISSING,
        )
        for each in fields(kind)
    )


def fits_plain(kind: Any, value: Any) -> bool:
    """Whether a value is of a plain type itself (a bool is no int), or a whole number where a float is meant; a whole
    number of more than 64 bits is neither, for no figure of a run has so many and no float holds it."""
    if type(value) is int and kind in (int, float):
        return value.bit_length() <= 64
    return type(value) is kind
