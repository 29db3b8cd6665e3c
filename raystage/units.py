"""Numbers as people write them (`500K`, `1.5B`, `3e-4`), and numbers formatted for people."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, get_args

from raystage.safe_text import without_secrets

# What a stage counts its progress in.
Unit = Literal["tokens", "samples"]
UNITS: tuple[Unit, ...] = get_args(Unit)
TOKENS: Unit = "tokens"
SAMPLES: Unit = "samples"

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
LARGEST_COUNT = 10**27  # all digits of a count up to here fit into the 28 that Decimal keeps

# At most three digits of exponent: no number here is larger, and 1e999999999 as an int would fill the memory.
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d{1,3})?)\s*([A-Za-z]?)\s*")


def parse_count(value: object) -> int:
    """A whole number from `400000`, `4e5`, `"400K"`, `"0.4M"`; suffixes are powers of 1,000.

    Raises ValueError where `value` is not a number, not whole, or beyond `LARGEST_COUNT`.
    """
    if type(value) is int and abs(value) <= LARGEST_COUNT:
        return value
    number = _parse_number(value, SUFFIXES, "a number such as 500000, 500K or 1.5B")
    if not number.is_finite() or (abs(number) <= LARGEST_COUNT and number != int(number)):
        raise ValueError(f"found {shown(value)}; expected a whole number such as 500000, 500K or 1.5B")
    if abs(number) > LARGEST_COUNT:
        raise ValueError(f"found {shown(value)}; expected at most {LARGEST_COUNT:.0e}")
    return int(number)


def parse_bytes(value: str) -> int:
    """A size from `5GB`, `500MB`, `1e6`; suffixes are powers of 1,000, as transformers counts. Raises ValueError."""
    expected = f"found {shown(value)}; expected a size such as 5GB or 500MB"
    try:
        size = parse_count(value.strip().upper().removesuffix("B"))
    except ValueError:
        raise ValueError(expected) from None
    if size < 1:
        raise ValueError(expected)
    return size


def parse_duration(text: str) -> float:
    """Seconds of `30m`, `1h`, `2d`, `90s`; 0 as well. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*|\s*0\s*", text)
    if match is None:
        raise ValueError(f"found {shown(text)}; expected a time such as 30m, 1h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match[1] else 0.0


def parse_seconds(value: object) -> float:
    """Seconds of a number such as `90`, or of `30s`, `5m`, `2h`, `1d`. Raises ValueError."""
    try:
        return parse_real(value)
    except ValueError:
        pass
    try:
        return parse_duration(str(value))
    except ValueError:
        raise ValueError(f"found {shown(value)}; expected seconds, or a time such as 30s, 5m or 2h") from None


def parse_real(value: object) -> float:
    """A finite number from `0.1`, `"3e-4"` (which YAML 1.1 reads as a string) or `3`. Raises ValueError."""
    number = value if type(value) is float else float(_parse_number(value, {"": 1}, "a number such as 0.1 or 3e-4"))
    if not math.isfinite(number):
        raise ValueError(f"found {shown(value)}; expected a finite number such as 0.1 or 3e-4")
    return number


def parse_bool(value: object) -> bool:
    """`true` or `false`; YAML 1.1's yes, no, on and off too. Raises ValueError."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"found {shown(value)}; expected true or false")


def _parse_number(value: object, suffixes: dict[str, int], expected: str) -> Decimal:
    """An exact decimal, unlike binary fractions: 2.3T is 2300000000000."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return Decimal(int(value) if isinstance(value, numbers.Integral) else str(float(value)))
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    # A small e is an exponent that lost its digits, not 10^18.
    suffix = "?" if match is None else match.group(2).upper() if match.group(2) != "e" else "?"
    if match is None or suffix not in suffixes:
        raise ValueError(f"found {shown(value)}; expected {expected}")
    return Decimal(match.group(1).replace("_", "")) * suffixes[suffix]


def shown(value: object) -> str:
    """A value from YAML in a message: one short line, in YAML's words rather than Python's."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = value[:200]  # no more is shown anyway
    return shortened(without_secrets(repr(value)), 60)


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters, the rest cut off."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: Exception) -> str:
    """Of what an error says; its class, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def kind_of(value: object) -> str:
    """The kind of a YAML value, for messages about structure."""
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return names.get(type(value), f"the value {shown(value)}")


def format_count(number: float) -> str:
    """Three figures and a suffix: 401408 -> '401K', 1.5e9 -> '1.5B'."""
    for suffix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= 0.9995 * size:  # below, three figures do not round up to the next suffix
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def format_speed(per_second: float, unit: Unit) -> str:
    """1200 -> '1.2K tok/s'."""
    return f"{format_count(per_second)} {'tok' if unit == TOKENS else unit}/s"


def unit_of(facts: Mapping[str, object]) -> Unit:
    """The unit that the keys of an object from a file count in."""
    return SAMPLES if SAMPLES in facts or f"{SAMPLES}_per_second" in facts else TOKENS


def format_bytes(number: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1023.5:
            return _three_figures(number, unit)
        number /= 1024
    return _three_figures(number, "TiB")


def _three_figures(number: float, unit: str) -> str:
    """1010 -> '1010': %.3g would write 1.01e+03."""
    return f"{number:.3g} {unit}" if abs(number) < 999.5 else f"{number:.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def format_flops(flops: float) -> str:
    """Three figures and a bare exponent: 5.05e12, 6.9e12."""
    mantissa, exponent = f"{flops:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_share(share: float) -> str:
    """0.2703 -> '27.0 %'."""
    return f"{100 * share:z.1f} %"


def format_difference(difference: float) -> str:
    """The difference of two losses, baseline minus staged run: 0.0123 -> '0.012 lower than'."""
    if f"{difference:z.3f}" == "0.000":
        return "the same as"
    return f"{abs(difference):.3f} {'lower' if difference > 0 else 'higher'} than"
