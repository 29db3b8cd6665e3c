"""Frozen dataclasses as JSON and back: what a value becomes follows from the fields of its class alone.

A tuple is a list, a mapping has text as keys, a number may be written without a fraction. Keys that a class does not
know are passed over, because newer versions add some; keys that are missing take the default of their field, because
older versions had fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from raystage.safe_text import visible
from raystage.units import kind_of

# What reads a value. It gets the value and the path to it.
Reader = Callable[[Any, str], Any]

_KEY, _LEFT_OUT = "key in JSON", "left out of JSON"
# The metadata of a field that is not in JSON while its value is None or empty.
LEFT_OUT_IF_EMPTY = {_LEFT_OUT: True}


def json_key(key: str) -> dict[str, Any]:
    """The metadata of a field that has another name in JSON."""
    return {_KEY: key}


def to_json(value: Any) -> Any:
    """The value in dictionaries, lists and plain values. The keys of a dataclass stand in the order of its fields."""
    if is_dataclass(value):
        return {
            _key(one): to_json(found)
            for one in fields(value)
            if (found := getattr(value, one.name)) or not one.metadata.get(_LEFT_OUT)
        }
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def finite(value: Any) -> Any:
    """The same value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        return type(value)(**{one.name: finite(getattr(value, one.name)) for one in fields(value)})
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return type(value)(map(finite, value)) if isinstance(value, list | tuple) else value


def from_json(kind: Any, value: Any, where: str = "") -> Any:
    """The value of a type that `to_json` made `value` of. where: the path to it, for messages.

    kind: a dataclass, `tuple[X, ...]`, `Mapping[str, X]`, a union, `Any` or a plain type. Raises ValueError, which says
    where something else was found, what, and what was expected.
    """
    return _reader(kind)(value, where)


def _key(one: Field[Any]) -> str:
    return one.metadata.get(_KEY, one.name)


@cache
def _reader(kind: Any) -> Reader:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value, where: value
    if is_dataclass(kind):
        return _object_reader(kind)
    if origin in (UnionType, Union):
        return _union_reader(arguments)
    if origin is tuple:
        return _list_reader(arguments)
    if origin in (dict, Mapping):
        return _mapping_reader(arguments[1])
    return _plain_reader(kind)


def _object_reader(kind: type) -> Reader:
    hints = get_type_hints(kind)
    known = [(_key(one), one.name, _reader(hints[one.name]), _is_needed(one)) for one in fields(kind)]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _problem(value, where, "an object")
        found = {}
        for key, name, reader, is_needed in known:
            if key in value:
                found[name] = reader(value[key], _inside(where, key))
            elif is_needed:
                raise ValueError(f"{_inside(where, key)}: missing")
        return kind(**found)

    return read


def _is_needed(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _union_reader(kinds: tuple[Any, ...]) -> Reader:
    """The first type that fits. A type is the only one beside None in almost all cases, and names what is wrong."""
    others = [_reader(kind) for kind in kinds if kind is not NoneType]

    def read(value: Any, where: str) -> Any:
        if value is None and NoneType in kinds:
            return None
        for reader in others[:-1]:
            try:
                return reader(value, where)
            except ValueError:
                continue
        return others[-1](value, where)

    return read


def _list_reader(kinds: tuple[Any, ...]) -> Reader:
    """`tuple[X, ...]` is a list of any length, `tuple[X, Y]` one of two."""
    is_long = kinds[-1] is Ellipsis
    readers = [_reader(kind) for kind in kinds if kind is not Ellipsis]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list) or not (is_long or len(value) == len(readers)):
            raise _problem(value, where, "a list" if is_long else f"a list of {len(readers)}")
        of_each = readers * len(value) if is_long else readers
        return tuple(one(inner, f"{where}[{at}]") for at, (one, inner) in enumerate(zip(of_each, value, strict=True)))

    return read


def _mapping_reader(kind: Any) -> Reader:
    reader = _reader(kind)

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _problem(value, where, "an object")
        return {key: reader(inner, _inside(where, key)) for key, inner in value.items()}

    return read


# By type what may stand for it, and its name in messages.
_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a finite number"),
    bool: ((bool,), "true or false"),
}


def _plain_reader(kind: Any) -> Reader:
    types, name = _PLAIN[kind]

    def read(value: Any, where: str) -> Any:
        if type(value) not in types or (type(value) is float and not math.isfinite(value)):
            raise _problem(value, where, name)
        return value

    return read


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _problem(value: Any, where: str, expected: str) -> ValueError:
    """where: may hold keys of a file, and the message may be logged."""
    found = kind_of(value).removeprefix("the value ")
    return ValueError(visible(f"{where or 'the content'}: found {found}; expected {expected}"))
