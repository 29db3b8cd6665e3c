"""Frozen dataclasses as JSON and back: what a value becomes follows from the fields of its class alone.

A tuple is a list, a mapping has text as keys, a number may be written without a fraction. Keys that a class does not
know are passed over, because newer versions add some; keys that are missing take the default of their field, because
older versions had fewer.

A field that counts progress has the name of the unit in its key (`unit_key`): `tokens` or `samples`. The unit is that
of the nearest object around it with a field `unit`, and tokens where none says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raystage.safe_text import visible
from raystage.units import TOKENS, UNITS, kind_of

# What reads a value. It gets the value and the path to it.
Reader = Callable[[Any, str], Any]

_KEY, _LEFT_OUT = "key in JSON", "left out of JSON"
# The metadata of a field that is not in JSON while its value is None or empty, or that of its default.
LEFT_OUT_IF_EMPTY = {_LEFT_OUT: "empty"}
LEFT_OUT_IF_DEFAULT = {_LEFT_OUT: "default"}


def json_key(key: str) -> dict[str, Any]:
    """The metadata of a field that has another name in JSON."""
    return {_KEY: key}


def unit_key(pattern: str = "{}") -> dict[str, Any]:
    """The metadata of a field whose name in JSON has the unit in it: "start_{}" is start_tokens or start_samples."""
    return {_KEY: pattern}


def to_json(value: Any, unit: str = TOKENS) -> Any:
    """The value in dictionaries, lists and plain values. The keys of a dataclass stand in the order of its fields."""
    if is_dataclass(value):
        unit = getattr(value, "unit", unit)
        return {
            _key(one).format(unit): to_json(found, unit)
            for one in fields(value)
            if not _is_left_out(one, found := getattr(value, one.name))
        }
    if isinstance(value, Mapping):
        return {key: to_json(inner, unit) for key, inner in value.items()}
    return [to_json(inner, unit) for inner in value] if isinstance(value, list | tuple) else value


def _is_left_out(one: Field[Any], value: Any) -> bool:
    rule = one.metadata.get(_LEFT_OUT)
    if rule == "default":
        return value == one.default
    return rule == "empty" and (value is None or (hasattr(value, "__len__") and not len(value)))


def with_field_names(kind: Any, value: Any) -> Any:
    """A value of JSON with the names of fields in place of their keys, in all objects of a dataclass. Nothing is
    checked: what is not of its type stays as it is."""
    if is_dataclass(kind) and isinstance(value, dict):
        names, hints = {key: one.name for one in fields(kind) for key in _keys(one)}, _hints(kind)
        return {names.get(key, key): with_field_names(hints.get(names.get(key)), inner) for key, inner in value.items()}
    if get_origin(kind) in (UnionType, Union) and isinstance(value, dict):
        return with_field_names(next((one for one in get_args(kind) if is_dataclass(one)), None), value)
    if get_origin(kind) in (tuple, list) and isinstance(value, list):
        return [with_field_names(get_args(kind)[0], inner) for inner in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


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


def _keys(one: Field[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_key(one).format(unit) for unit in UNITS))


@cache
def _reader(kind: Any) -> Reader:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value, where: value
    if is_dataclass(kind):
        return _object_reader(kind)
    if origin in (UnionType, Union):
        return _union_reader(arguments)
    if origin is Literal:
        return _word_reader(arguments)
    if origin is tuple:
        return _list_reader(arguments)
    if origin in (dict, Mapping):
        return _mapping_reader(arguments[1])
    return _plain_reader(kind)


def _object_reader(kind: type) -> Reader:
    hints = _hints(kind)
    known = [(_keys(one), one.name, _reader(hints[one.name]), _is_needed(one)) for one in fields(kind)]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _problem(value, where, "an object")
        found = {}
        for keys, name, reader, is_needed in known:
            key = next((one for one in keys if one in value), None)
            if key is not None:
                found[name] = reader(value[key], _inside(where, key))
            elif is_needed:
                raise ValueError(f"{_inside(where, keys[0])}: missing")
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


def _word_reader(words: tuple[str, ...]) -> Reader:
    def read(value: Any, where: str) -> Any:
        if value not in words:
            raise _problem(value, where, " or ".join(words))
        return value

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
