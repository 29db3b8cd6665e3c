"""JSON files that show whether they are complete: the last key of the object is the checksum of everything before it.

Files without a checksum are accepted: older versions wrote none, and people may write files by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import xxhash

# Larger than any file of a store; larger files are not read.
LARGEST_BYTES = 2**28
DEEPEST = 100
LONGEST_NUMBER_DIGITS = 40
# One half of a surrogate pair; as raw bytes the decoder refuses it.
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_SEAL = b', "checksum": "xxh3_128:'


class NoObject(ValueError):
    """Valid JSON that raystage did not write."""


def sealed(text: bytes) -> bytes:
    """A JSON object whose last key is the checksum of everything before it."""
    return _with_seal(text.removesuffix(b"}"))


def written(content: dict[str, Any]) -> bytes:
    """The content of such a file, for people in lines: one for each key, and one for each value of a list or an object.

    What is deeper stands in one line: Python's encoder takes three to four times as long for indented text.
    """
    lines = (f" {json.dumps(key)}: {_in_lines(value)}" for key, value in content.items())
    return sealed(_enclosed("{}", lines, 0).encode()) + b"\n"


def unsealed(text: bytes) -> dict[str, Any]:
    """The content of such a file, without the checksum. Raises ValueError, which says what is wrong with it."""
    text = text.strip()
    try:
        content = json.loads(text.decode())
    except RecursionError:
        raise ValueError(f"found more than {DEEPEST} levels; expected fewer") from None
    if not isinstance(content, dict):
        raise NoObject(f"found {_kind(content)}; expected a JSON object")
    if "checksum" in content:
        del content["checksum"]
        if _with_seal(text.rpartition(_SEAL)[0]) != text:
            raise ValueError("it does not match its checksum")
    _check_values(content, has_halves=_HALF_CHARACTER.search(text) is not None)
    return content


def body_of(text: bytes) -> bytes | None:
    """The object in a file whose checksum is right, unread and without the checksum; None for every other file."""
    text = text.strip()
    body, found, _ = text.rpartition(_SEAL)
    return body + b"}" if found and _with_seal(body) == text else None


def without_lists(body: bytes, keys: Iterable[str]) -> bytes:
    """An object as `written` lays it out, with these lists of it empty: they are cut out unread. In text that is laid
    out otherwise they stay."""
    for key in keys:  # a line of its own that is indented by one can only be the object's own
        before, found, after = body.partition(f'\n "{key}": [\n'.encode())
        if found:
            body = before + f'\n "{key}": []'.encode() + after.partition(b"\n ]")[2]
    return body


def _in_lines(value: Any) -> str:
    if not value or not isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, list):
        return _enclosed("[]", (f"  {json.dumps(one)}" for one in value), 1)
    return _enclosed("{}", (f"  {json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()), 1)


def _enclosed(brackets: str, lines: Iterable[str], indent: int) -> str:
    """Lines between brackets; the last bracket is indented."""
    first, last = brackets
    inner = ",\n".join(lines)
    return f"{first}\n{inner}\n{' ' * indent}{last}"


def _with_seal(body: bytes) -> bytes:
    return body + _SEAL + xxhash.xxh3_128_hexdigest(body).encode() + b'"}'


def _check_values(content: dict[str, Any], has_halves: bool) -> None:
    """Refuse values that raystage never writes and other code fails on: text that is not Unicode, numbers beyond
    floats, too deep nesting."""
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
                inner += one if has_halves else ()
            elif isinstance(one, list):
                inner += one
            elif has_halves and isinstance(one, str):
                _check_text(one)
            elif type(one) is int and abs(one) >= 10**LONGEST_NUMBER_DIGITS:
                raise ValueError(f"found a number of more than {LONGEST_NUMBER_DIGITS} digits; expected fewer")
        if not inner:
            return
        level = inner
    raise ValueError(f"found more than {DEEPEST} levels; expected fewer")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"found {text[:40]!a}; expected text without half characters") from None


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
