"""Dataclasses to JSON and back, with every type checked.

dataclass, Mapping[str, X] <-> object    tuple[X, ...] <-> array    Literal, union, str, int, float, bool, None
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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


def from_json(kind: Any, value: Any, name: str = "") -> Any:
    """The value of a type from its JSON: a dataclass, tuple[X, ...], Mapping[str, X], Literal, union or plain type.

    `name` is the dotted name of the field. A whole number stands for a float as well; fields that a dataclass does not
    have are left out. Raises ValueError with the name of the field that is missing or does not fit its type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for member in arguments:
            with contextlib.suppress(ValueError):
                return from_json(member, value, name)
    elif origin is tuple and isinstance(value, list):
        return tuple(from_json(arguments[0], inner, f"{name}[{index}]") for index, inner in enumerate(value))
    elif origin in (Mapping, dict) and isinstance(value, dict):
        return {key: from_json(arguments[1], inner, f"{name}.{key}") for key, inner in value.items()}
    elif is_dataclass(kind) and isinstance(value, dict):
        return dataclass_from_json(kind, value, name)
    elif kind is Any or (origin is Literal and value in arguments) or fits_plain(kind, value):
        return value
    raise ValueError(name)


def fits_plain(kind: Any, value: Any) -> bool:
    """Whether a value is of a plain type itself (a bool is no int), or a whole number where a float is meant; a whole
    number of more than 64 bits is neither, for no figure of a run has so many and no float holds it."""
    if type(value) is int and kind in (int, float):
        return value.bit_length() <= 64
    return type(value) is kind


def dataclass_from_json(kind: Any, document: dict[str, Any], name: str) -> Any:
    """A dataclass from a JSON object. Raises ValueError as `from_json` does."""
    hints, values = field_types(kind), {}
    for each in fields(kind):
        key = each.name.rstrip("_")
        full_name = f"{name}.{key}" if name else key
        if each.metadata.get("flat"):
            values[each.name] = from_json(hints[each.name], document, name)
        elif key in document:
            values[each.name] = from_json(hints[each.name], document[key], full_name)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(full_name)
    return kind(**values)


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """{field: type} of a dataclass, whose annotations are strings."""
    return get_type_hints(kind)
