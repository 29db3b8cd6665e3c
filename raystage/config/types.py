"""The types of a schedule's numbers: read as people write them, each with its bounds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator

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


@dataclass(frozen=True)
class Workers:
    """How many workers a stage has: `most`, and no fewer than `least` where fewer than `most` fit on the cluster."""

    most: int
    least: int

    @classmethod
    def exactly(cls, count: int) -> Workers:
        return cls(count, count)

    @property
    def is_elastic(self) -> bool:
        return self.least < self.most

    def __str__(self) -> str:
        """'8', or '2 to 8'."""
        return f"{self.least} to {self.most}" if self.is_elastic else str(self.most)


def parse_workers(value: object) -> Workers:
    """A number, or {min: 2, max: 8}. Raises ValueError."""
    if isinstance(value, Workers):
        return value
    if not isinstance(value, dict):
        return Workers.exactly(_at_least_one(value))
    if set(value) != {"min", "max"}:
        raise ValueError(f"found {shown(value)}; expected a number of workers, or {{min: 2, max: 8}}")
    least, most = (_at_least_one(value[key]) for key in ("min", "max"))
    if least > most:
        raise ValueError(f"found a min of {least} above the max of {most}; expected it to be at most that")
    return Workers(most, least)


def _at_least_one(value: object) -> int:
    count = parse_count(value)
    if count < 1:
        raise ValueError(f"found {shown(value)}; expected more than 0")
    if count > MOST_WORKERS:
        raise ValueError(f"found {shown(value)}; expected at most {MOST_WORKERS:,}")
    return count


def _written(workers: Workers) -> int | dict[str, int]:
    """As it stands in a schedule."""
    return {"min": workers.least, "max": workers.most} if workers.is_elastic else workers.most


# Beyond anything that was ever trained, and few enough to be planned in seconds: a plan has a row for every layer and
# a map as long as every axis.
MOST_LAYERS = 10_000
MOST_UNITS = 2**20
MOST_HEADS = 2**14
MOST_EXPERTS = 4_096
MOST_WORDS = 2**24
MOST_CONTEXT = 2**30
MOST_WORKERS = 2**20
MOST_STAGES = 200
MOST_BUDGETS = 30

Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
Layers = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=MOST_LAYERS)]
Units = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_UNITS)]
Heads = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_HEADS)]
Experts = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_EXPERTS)]
Words = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_WORDS)]
Context = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_CONTEXT)]
WorkerCount = Annotated[Workers, PlainValidator(parse_workers), PlainSerializer(_written)]
CountOrZero = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
# Of training a stage again. Every one of them is planned before the run starts.
Attempts = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=100)]
# What every random generator that a seed may reach accepts; numpy's legacy one has 32 bits.
Seed = Annotated[int, BeforeValidator(parse_count), Field(ge=0, lt=2**32)]
# Of one run. Each trains the staged run and all of its baselines.
Seeds = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=100)]
Real = Annotated[float, BeforeValidator(parse_real)]
Positive = Annotated[float, BeforeValidator(parse_real), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(parse_real), Field(ge=0)]
Negative = Annotated[float, BeforeValidator(parse_real), Field(lt=0)]
Fraction = Annotated[float, BeforeValidator(parse_real), Field(ge=0, le=1)]
Share = Annotated[float, BeforeValidator(parse_real), Field(gt=0, lt=1)]
Beta = Annotated[float, BeforeValidator(parse_real), Field(ge=0, lt=1)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0)]
Span = Annotated[float, BeforeValidator(parse_span), Field(ge=0)]
Flag = Annotated[bool, BeforeValidator(parse_bool)]
Text = Annotated[str, Field(min_length=1, max_length=4_096)]


_NAME = re.compile(r"\w[\w.-]{0,99}")


# File systems take 255 bytes for a name, and files and trials get a little more than the name itself.
LONGEST_NAME_BYTES = 160


def check_name(name: str) -> str:
    """A name that can stand in a path and on a command line. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {shown(name)}; expected letters, digits, '_', and after the first '.' and '-'")
    if (size := len(name.encode())) > LONGEST_NAME_BYTES:
        raise ValueError(f"found {shown(name)}, {size} bytes; expected at most {LONGEST_NAME_BYTES} bytes in UTF-8")
    return name


Name = Annotated[str, AfterValidator(check_name)]
