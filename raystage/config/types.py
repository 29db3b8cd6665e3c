"""The types of the values in a file: how each is written, what it is read as, its bounds, its JSON schema."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from raystage.config.section import Section
from raystage.models.families import TRAINED
from raystage.models.own import ANY
from raystage.units import parse_bool, parse_count, parse_real, parse_seconds, shown
from raystage.user_code import split_reference

# As `units` reads them: 500000, 500K, 1.5B, 4e5; 0.1, 3e-4; 90, 30m.
_DIGITS = r"[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][+-]?[0-9]{1,3})?"
COUNT = rf"^\s*{_DIGITS}\s*[KMBGTPEkmbgtp]?\s*$"
_REAL = rf"^\s*{_DIGITS}\s*$"
_SECONDS = rf"^\s*{_DIGITS}\s*[smhd]?\s*$"
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_FLAG = r"^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo]|[Oo][Nn]|[Oo][Ff][Ff])$"


@dataclass(frozen=True)
class OrText:
    """In the JSON schema of a value: it may also be written as text of this pattern."""

    pattern: str

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # pydantic writes the bounds of a value that a validator has read under their Python names.
        schema = {_BOUNDS.get(name, name): value for name, value in handler(core_schema).items()}
        return {**schema, "type": [schema["type"], "string"], "pattern": self.pattern}


def parse_span(value: object) -> float:
    """A span of a run: below 1 a fraction of it, above 1 a number of tokens. Raises ValueError."""
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


def parse_position(value: object) -> float:
    """A position in a run: up to 1 a fraction of it, above 1 a number of tokens. Raises ValueError."""
    try:
        number = parse_real(value)
    except ValueError:
        number = math.inf
    if abs(number) <= 1:
        return number
    try:
        return float(parse_count(value))
    except ValueError:
        raise ValueError(f"found {shown(value)}; expected a fraction up to 1, or tokens such as 50K") from None


@dataclass(frozen=True)
class Workers:
    """The number of workers of a stage: `most`, or at least `least` where fewer fit on the cluster."""

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
    """As a schedule has it."""
    return {"min": workers.least, "max": workers.most} if workers.is_elastic else workers.most


REST = "rest"  # the weight of the source that gets what the others leave
SELECTIVE = "selective"  # of what is computed again: all but what takes long


def parse_weight(value: object) -> float | str:
    """A share of a mixture from 0 to 1, or "rest". Raises ValueError."""
    if value == REST:
        return REST
    try:
        weight = parse_real(value)
    except ValueError:
        raise ValueError(f"found {shown(value)}; expected a share from 0 to 1, or rest") from None
    if not 0 <= weight <= 1:
        raise ValueError(f"found {shown(value)}; expected a share from 0 to 1, or rest")
    return weight


def parse_recomputed(value: object) -> bool | str:
    """Whether something is computed again, or "selective". Raises ValueError."""
    if value == SELECTIVE:
        return SELECTIVE
    try:
        return parse_bool(value)
    except ValueError:
        raise ValueError(f"found {shown(value)}; expected true, false or {SELECTIVE}") from None


# Larger than anything that was ever trained, and small enough to be planned in seconds: a plan has a row for every
# layer, and a map as long as every axis.
MOST_LAYERS = 10_000
MOST_UNITS = 2**20
MOST_HEADS = 2**14
MOST_EXPERTS = 4_096
MOST_WORDS = 2**24
MOST_CONTEXT = 2**30
MOST_PIXELS = 4096
MOST_WORKERS = 2**20
MOST_STAGES = 200
MOST_BUDGETS = 30
MOST_POINTS = 100

_WORKERS_SCHEMA = {
    "anyOf": [
        {"type": ["integer", "string"], "minimum": 1, "maximum": MOST_WORKERS, "pattern": COUNT},
        {
            "type": "object",
            "properties": {
                name: {"type": ["integer", "string"], "minimum": 1, "pattern": COUNT} for name in ("min", "max")
            },
            "required": ["min", "max"],
            "additionalProperties": False,
        },
    ]
}

Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0), OrText(COUNT)]
Layers = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=MOST_LAYERS), OrText(COUNT)]
Units = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_UNITS), OrText(COUNT)]
Heads = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_HEADS), OrText(COUNT)]
Experts = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_EXPERTS), OrText(COUNT)]
Words = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_WORDS), OrText(COUNT)]
Context = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MOST_CONTEXT), OrText(COUNT)]
DocumentBytes = Annotated[int, BeforeValidator(parse_count), Field(ge=256), OrText(COUNT)]
ZeroStage = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=3), OrText(COUNT)]
WorkerCount = Annotated[
    Workers, PlainValidator(parse_workers), PlainSerializer(_written), WithJsonSchema(_WORKERS_SCHEMA)
]
CountOrZero = Annotated[int, BeforeValidator(parse_count), Field(ge=0), OrText(COUNT)]
# Retries of a stage. Each of them is planned before the run starts.
Attempts = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=100), OrText(COUNT)]
# Every random generator that a seed may reach accepts these; numpy's legacy one has 32 bits.
Seed = Annotated[int, BeforeValidator(parse_count), Field(ge=0, lt=2**32), OrText(COUNT)]
# Seeds of one run. Each trains the staged run and all of its baselines.
Seeds = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=100), OrText(COUNT)]
Real = Annotated[float, BeforeValidator(parse_real), OrText(_REAL)]
Positive = Annotated[float, BeforeValidator(parse_real), Field(gt=0), OrText(_REAL)]
NotNegative = Annotated[float, BeforeValidator(parse_real), Field(ge=0), OrText(_REAL)]
Negative = Annotated[float, BeforeValidator(parse_real), Field(lt=0), OrText(_REAL)]
Fraction = Annotated[float, BeforeValidator(parse_real), Field(ge=0, le=1), OrText(_REAL)]
_WEIGHT_SCHEMA = {
    "anyOf": [{"type": ["number", "string"], "minimum": 0, "maximum": 1, "pattern": _REAL}, {"const": REST}]
}
Weight = Annotated[float | str, BeforeValidator(parse_weight), WithJsonSchema(_WEIGHT_SCHEMA)]
Share = Annotated[float, BeforeValidator(parse_real), Field(gt=0, lt=1), OrText(_REAL)]
PositiveShare = Annotated[float, BeforeValidator(parse_real), Field(gt=0, le=1), OrText(_REAL)]
Beta = Annotated[float, BeforeValidator(parse_real), Field(ge=0, lt=1), OrText(_REAL)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0), OrText(_SECONDS)]
Position = Annotated[float, BeforeValidator(parse_position), Field(ge=0), OrText(COUNT)]
Span = Annotated[float, BeforeValidator(parse_span), Field(ge=0), OrText(COUNT)]
Flag = Annotated[bool, BeforeValidator(parse_bool), OrText(_FLAG)]
_RECOMPUTED_SCHEMA = {"anyOf": [{"type": ["boolean", "string"], "pattern": _FLAG}, {"const": SELECTIVE}]}
Recomputed = Annotated[bool | str, BeforeValidator(parse_recomputed), WithJsonSchema(_RECOMPUTED_SCHEMA)]
Text = Annotated[str, Field(min_length=1, max_length=4_096)]


def _as_side(value: object) -> object:
    if isinstance(value, (list, tuple)):
        raise ValueError(f"found {shown(list(value))}; expected one number for height and width, such as 28")
    return value


def _as_family(value: object) -> object:
    """Refuses other names: they may be architectures of transformers, which need no table."""
    if value in TRAINED:
        return value
    close = difflib.get_close_matches(str(value), TRAINED, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    other = f"or {ANY} for any other architecture, with its config.json in model.config"
    listed = ", ".join(name for name in TRAINED if name != ANY)
    raise ValueError(f"found {shown(value)}; expected one of {listed}, {other}{hint}")


def _as_list(value: object) -> object:
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"found {shown(value)}; expected a file or folder, or a list of them")
    return [value] if isinstance(value, str) else value


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_classes(value: object) -> object:
    return _as_names(value, 2, "two or more different names of classes")


def _as_some_classes(value: object) -> object:
    return _as_names(value, 1, "different names of classes")


def _as_names(value: object, least: int, expected: str) -> object:
    if not isinstance(value, (list, tuple)) or 0 < len(value) < least or len(set(map(str, value))) < len(value):
        raise ValueError(f"found {shown(value)}; expected a list of {expected}")
    return [_as_text(one) for one in value]


Paths = Annotated[tuple[Text, ...], BeforeValidator(_as_list, json_schema_input_type=Text | list[Text])]
Classes = Annotated[tuple[Text, ...], BeforeValidator(_as_classes, json_schema_input_type=list[Text | int])]
SomeClasses = Annotated[tuple[Text, ...], BeforeValidator(_as_some_classes, json_schema_input_type=list[Text | int])]
EndToken = Annotated[Text, BeforeValidator(_as_text, json_schema_input_type=Text | int)]
ModelFamily = Annotated[Literal[TRAINED], BeforeValidator(_as_family)]
Pixels = Annotated[Annotated[Count, Field(le=MOST_PIXELS)] | None, BeforeValidator(_as_side)]

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


def check_reference(reference: str) -> str:
    """The place of a function of the user's own. Raises ValueError."""
    split_reference(reference)
    return reference


Reference = Annotated[str, AfterValidator(check_reference)]


class Duration(Section):
    """A length of training, in the unit that the stage's objective counts."""

    tokens: Annotated[Count | None, Field(examples=["50K"])] = None
    """The length in tokens."""
    samples: Annotated[Count | None, Field(examples=["5K"])] = None
    """The length in samples, for objectives that count samples."""

    @property
    def count(self) -> int:
        """In the stage's unit."""
        return self.tokens if self.samples is None else self.samples
