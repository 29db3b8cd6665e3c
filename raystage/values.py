"""The types of a schedule's numbers: read as people write them, each with its bounds."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator, Field

from raystage.units import parse_bool, parse_count, parse_real, parse_seconds, shown


def parse_span(value: object) -> float:
    """A stretch of a run: below 1 a fraction of it, above 1 a number of tokens. Raises ValueError."""
    try:
        number = parse_real(value)
    except ValueError:
        number = math.inf
    if abs(number) < 1:
        return number
    try:
        tokens = parse_count(value)
    except ValueError:
        raise ValueError(f"found {shown(value)}; expected a fraction below 1, or tokens such as 50K") from None
    if tokens == 1:
        raise ValueError(f"found {shown(value)}, one token or all of the run; expected a fraction below 1, or tokens")
    return tokens


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
CountOrZero = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
# Of training a stage again. Every one of them is planned before the run starts.
Attempts = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=100)]
# What every random generator that a seed may reach accepts; numpy's legacy one has 32 bits.
Seed = Annotated[int, BeforeValidator(parse_count), Field(ge=0, lt=2**32)]
Positive = Annotated[float, BeforeValidator(parse_real), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(parse_real), Field(ge=0)]
Negative = Annotated[float, BeforeValidator(parse_real), Field(lt=0)]
Fraction = Annotated[float, BeforeValidator(parse_real), Field(ge=0, le=1)]
Share = Annotated[float, BeforeValidator(parse_real), Field(gt=0, lt=1)]
Beta = Annotated[float, BeforeValidator(parse_real), Field(ge=0, lt=1)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0)]
Span = Annotated[float, BeforeValidator(parse_span), Field(ge=0)]
Flag = Annotated[bool, BeforeValidator(parse_bool)]
Text = Annotated[str, Field(min_length=1)]
