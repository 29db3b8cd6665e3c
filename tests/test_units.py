from __future__ import annotations

import pytest

from raystage.units import (
    format_bytes,
    format_count,
    format_seconds,
    kind_of,
    parse_bool,
    parse_count,
    parse_duration,
    parse_real,
    parse_seconds,
    shown,
)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (400000, 400000),
        ("400000", 400000),
        ("400_000", 400000),
        ("400K", 400000),
        ("400k", 400000),
        ("0.4M", 400000),
        (" 400 K ", 400000),
        (4e5, 400000),
        ("4e5", 400000),
        ("1.5B", 1500000000),
        ("1.5G", 1500000000),
        ("1.1M", 1100000),
        ("2.3T", 2300000000000),  # 2299999999999.9995 in binary fractions
        ("4.35E", 4350000000000000000),
        ("9007199254740993", 9007199254740993),  # 2^53 + 1
        (10**27, 10**27),
        ("064", 64),
        (0, 0),
        ("-5", -5),
    ],
)
def test_counts(written: object, count: int) -> None:
    assert parse_count(written) == count
    assert type(parse_count(written)) is int


@pytest.mark.parametrize(
    "written",
    ["", "K", "ten", "10X", "10KK", "1e", "1.5", 1.5, "1.0005K", "1:30", "0x10", "1e9999999999", "1e28", 10**400, "inf",
     float("nan"), float("inf"), True, None, [1], {}, b"1"],
)  # fmt: skip
def test_no_counts(written: object) -> None:
    with pytest.raises(ValueError, match=r"^found .*; expected "):
        parse_count(written)


@pytest.mark.parametrize(("written", "number"), [("3e-4", 3e-4), ("0.1", 0.1), (3, 3.0), (".5", 0.5), ("-1e-3", -1e-3)])
def test_reals(written: object, number: float) -> None:
    assert parse_real(written) == number
    assert type(parse_real(written)) is float


@pytest.mark.parametrize("written", ["1K", "fast", "1e400", 10**400, float("nan"), float("-inf"), False, None, []])
def test_no_reals(written: object) -> None:
    with pytest.raises(ValueError, match=r"^found .*; expected "):
        parse_real(written)


@pytest.mark.parametrize(
    ("written", "flag"), [(True, True), ("yes", True), ("On", True), (False, False), ("no", False)]
)
def test_flags(written: object, flag: bool) -> None:
    assert parse_bool(written) is flag


@pytest.mark.parametrize("written", [0, 1, 2, "maybe", None, [True]])
def test_no_flags(written: object) -> None:
    with pytest.raises(ValueError, match=r"^found .*; expected true or false$"):
        parse_bool(written)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        (False, "false"),
        ("a\nb", r"'a\nb'"),
        (1.5, "1.5"),
        ("x" * 99, f"'{'x' * 56}..."),
    ],
)
def test_values_in_messages_are_short_lines(value: object, text: str) -> None:
    assert shown(value) == text


def test_kinds() -> None:
    assert [kind_of(value) for value in ({}, [], None, 5)] == ["a mapping", "a list", "nothing", "the value 5"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.5, "0.5"), (999, "999"), (999.4, "999"), (999.6, "1K"), (401408, "401K"), (999_499, "999K"),
     (999_999, "1M"), (1.5e9, "1.5B"), (1e12, "1T"), (2.5e15, "2.5P"), (3e18, "3E"), (-401408, "-401K")],
)  # fmt: skip
def test_format_count(number: float, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1010, "1010 B"), (1023.7, "1 KiB"), (1536, "1.5 KiB"), (1020 * 1024, "1020 KiB"),
     (1.5 * 2**30, "1.5 GiB"), (2**40, "1 TiB"), (5000 * 2**40, "5000 TiB")],
)  # fmt: skip
def test_format_bytes(number: float, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (0.4, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (3700, "1:01:40")]
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), (" 1.5d ", 129600), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "-1h", "h", "1 hour", "1w", "nan", "1h 30m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a time such as 30m, 1h or 2d$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(90, 90), ("90", 90), (0.5, 0.5), ("1e3", 1000), ("30s", 30), ("1.5h", 5400), ("2 m", 120), ("1d", 86400)],
)
def test_seconds_are_a_number_or_a_time(written: object, seconds: float) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "1h 30m", True, None, [5], "nan", float("inf")])
def test_what_is_no_time(written: object) -> None:
    with pytest.raises(ValueError, match=r"^found .*; expected seconds, or a time such as 30s, 5m or 2h$"):
        parse_seconds(written)
