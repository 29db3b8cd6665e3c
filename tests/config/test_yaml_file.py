"""What is wrong with a file is in test_bad_input; here is what a good one means."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from raystage.config.yaml_file import apply_override, dotted, parse_path, read_mapping


def read(text: str, folder: Path) -> dict:
    (folder / "a.yaml").write_text(text)
    return read_mapping(folder / "a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("400_000", 400000),
        ("-7", -7),
        (".inf", math.inf),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("400K", "400K"),
        ("=", "="),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    found = read(f"a: {text}", tmp_path)["a"]
    assert (found, type(found)) == (value, type(value))


def test_anchors_and_merges(tmp_path: Path) -> None:
    content = read("a: {b: &b {<<: &c {x: 1, y: 1}, x: 2}}\nd: {<<: *b, z: 3}\ne: {<<: [*b, *c]}", tmp_path)
    assert content == {"a": {"b": {"x": 2, "y": 1}}, "d": {"x": 2, "y": 1, "z": 3}, "e": {"x": 2, "y": 1}}


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read("\ufeffa: 1", tmp_path) == {"a": 1}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("a=2", {"a": 2, "b": [{"c": 1}, {"c": 1}]}),
        ("a=", {"a": None, "b": [{"c": 1}, {"c": 1}]}),
        ("a=x=y", {"a": "x=y", "b": [{"c": 1}, {"c": 1}]}),
        (" a =[1, 3e-4]", {"a": [1, 3e-4], "b": [{"c": 1}, {"c": 1}]}),
        ("new.deep=1", {"a": 1, "b": [{"c": 1}, {"c": 1}], "new": {"deep": 1}}),
        ("b[1].c=2", {"a": 1, "b": [{"c": 1}, {"c": 2}]}),
        ("b[0]={}", {"a": 1, "b": [{}, {"c": 1}]}),
        ("b[1].d.e=2", {"a": 1, "b": [{"c": 1}, {"c": 1, "d": {"e": 2}}]}),
    ],
)
def test_overrides(override: str, changed: dict, tmp_path: Path) -> None:
    """The entries of b are one value under an anchor: changing one leaves the other."""
    content = read("a: 1\nb: [&c {c: 1}, *c]", tmp_path)
    apply_override(content, override)
    assert content == changed


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("a", ["a"]),
        ("a.b_c.d-e", ["a", "b_c", "d-e"]),
        ("stages[12].until.tokens", ["stages", 12, "until", "tokens"]),
        ("a[0][1]", ["a", 0, 1]),
        *(
            (wrong, [])
            for wrong in ("", ".a", "a.", "a..b", "a.[0]", "[0]", "a[0]b", "a[-1]", "a[b]", "a b", "0a", "a[0")
        ),
    ],
)
def test_paths(path: str, steps: list) -> None:
    assert parse_path(path) == steps
    assert not steps or dotted(steps) == path
