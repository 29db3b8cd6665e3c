"""Dataclasses as JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from raystage.files.typed_json import LEFT_OUT_IF_EMPTY, finite, from_json, json_key, to_json


@dataclass(frozen=True)
class Inner:
    number: int
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: tuple[Inner, ...]
    pair: tuple[str, int] = ("", 0)
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    first: Inner | None = field(default=None, metadata=json_key("donor"))
    is_rare: bool | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    anything: Any = None


WHOLE = Outer("x", (Inner(1, 0.5), Inner(2)), ("a", 3), {"b": Inner(4, 1)}, Inner(5), True, {"c": [1, None]})
CONTENT = {
    "name": "x",
    "inner": [{"number": 1, "share": 0.5}, {"number": 2, "share": None}],
    "pair": ["a", 3],
    "by_name": {"b": {"number": 4, "share": 1}},
    "donor": {"number": 5, "share": None},
    "is_rare": True,
    "anything": {"c": [1, None]},
}


def test_a_value_is_the_same_from_json_byte_by_byte() -> None:
    text = json.dumps(CONTENT)
    assert json.dumps(to_json(WHOLE)) == text
    assert from_json(Outer, json.loads(text)) == WHOLE
    assert type(from_json(Outer, CONTENT).by_name["b"].share) is int  # 1 is not written as 1.0


def test_what_is_empty_may_be_left_out_and_what_is_missing_has_its_default() -> None:
    small = Outer("x", ())
    assert "is_rare" not in to_json(small)
    assert to_json(small)["donor"] is None
    assert from_json(Outer, {"name": "x", "inner": [], "of a newer version": 1}) == small


def test_what_json_does_not_have_is_none() -> None:
    found = finite(Outer("x", (Inner(1, math.nan),), anything={"a": (math.inf, 1.5)}))
    assert found == Outer("x", (Inner(1, None),), anything={"a": (None, 1.5)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "name: found 3; expected text"),
        ({"inner": None}, "inner: found nothing; expected a list"),
        ({"inner": [{"number": True}]}, "inner[0].number: found true; expected a whole number"),
        ({"inner": [{"number": 1}, {}]}, "inner[1].number: missing"),
        ({"inner": [{"number": 1, "share": math.nan}]}, "inner[0].share: found nan; expected a finite number"),
        ({"inner": [[]]}, "inner[0]: found a list; expected an object"),
        ({"pair": ["a"]}, "pair: found a list; expected a list of 2"),
        ({"by_name": {"\x1b": []}}, r"by_name.\x1b: found a list; expected an object"),
        ({"by_name": 2}, "by_name: found 2; expected an object"),
        ({"donor": "x"}, "donor: found 'x'; expected an object"),
        ({"is_rare": 1}, "is_rare: found 1; expected true or false"),
    ],
)
def test_another_value_is_one_message(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        from_json(Outer, CONTENT | change)
    assert str(raised.value) == said


def test_another_whole_is_one_message() -> None:
    with pytest.raises(ValueError, match="the content: found a list; expected an object"):
        from_json(Outer, [])
