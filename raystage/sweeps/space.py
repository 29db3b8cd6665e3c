"""The space of a sweep: which keys of a schedule vary, over which values, and when they count.

A point of the space is a config: for each path that counts there, a value as it was written. This module does not know
what a value means; the schedule parses it in its place, so that `250K` means what it means in a schedule.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from raystage.config import yaml_file
from raystage.config.schedule import Schedule, parse
from raystage.config.section import Section, check_path
from raystage.config.types import COUNT, OrText
from raystage.errors import InputError
from raystage.units import parse_count, parse_real, shown

PRESENT, ABSENT = "present", "absent"
LISTED, RANGES = ("grid", "choice"), ("uniform", "loguniform", "integer", "log_integer")

Config = dict[str, Any]


def _parse_bound(value: object) -> float:
    """An end of a range: a real number or a count. Raises ValueError."""
    try:
        return parse_real(value)
    except ValueError:
        return float(parse_count(value))


Values = Annotated[tuple[Any, ...], Field(min_length=1)]
Bound = Annotated[float, BeforeValidator(_parse_bound), OrText(COUNT)]
WholeBound = Annotated[int, BeforeValidator(parse_count), OrText(COUNT)]
Range = Annotated[tuple[Bound, ...], Field(min_length=2, max_length=2)]
Whole = Annotated[tuple[WholeBound, ...], Field(min_length=2, max_length=2)]


class SpaceEntry(Section):
    """What one path varies over: exactly one of these kinds. Both ends of a range can be drawn."""

    grid: Values | None = None
    """Values, all of which are tried."""
    choice: Values | None = None
    """Values, of which one is drawn."""
    uniform: Range | None = None
    """A range `[low, high]` of numbers."""
    loguniform: Range | None = None
    """A range of numbers above 0, drawn evenly over their logarithm."""
    integer: Whole | None = None
    """A range of whole numbers."""
    log_integer: Whole | None = None
    """A range of whole numbers above 0, drawn evenly over their logarithm."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Other paths of the space, each with the value, or the list of values, under which this path varies."""

    @property
    def kind(self) -> str:
        return next(kind for kind in (*LISTED, *RANGES) if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple:
        """The values, or the two ends."""
        return getattr(self, self.kind)

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [kind for kind in (*LISTED, *RANGES) if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(f"found {found}; expected exactly one of {', '.join((*LISTED, *RANGES))}")
        values = self.values
        if self.kind in LISTED:
            again = [value for index, value in enumerate(values) if value in values[:index]]
            if again:
                raise ValueError(f"found {shown(again[0])} a second time; expected each value once")
        elif values[0] >= values[1]:
            raise ValueError(f"found {values[0]:g} to {values[1]:g}; expected the lower end first")
        elif self.kind.startswith("log") and values[0] <= 0:
            raise ValueError(f"found {values[0]:g}; expected more than 0 under {self.kind}")
        return self


@dataclass(frozen=True)
class Dimension:
    """An entry with its path and all that it counts under.

    when: paths, each with its values. after_any: stages one of which has to be there, since what grows needs
    something to grow from; empty where there always is something.
    """

    path: str
    kind: str
    values: tuple
    when: tuple[tuple[str, tuple], ...] = ()
    after_any: tuple[str, ...] = ()

    def counts(self, config: Mapping[str, Any]) -> bool:
        """Whether it has a value beside those of `config`, which has all that it depends on."""
        met = all(path in config and config[path] in values for path, values in self.when)
        return met and (not self.after_any or any(config.get(path) == PRESENT for path in self.after_any))

    @property
    def depends_on(self) -> set[str]:
        return {path for path, _ in self.when} | set(self.after_any)

    def drawn(self, generator: random.Random) -> Any:
        if self.kind in LISTED:
            return generator.choice(self.values)
        low, high = self.values
        match self.kind:
            case "uniform":
                return generator.uniform(low, high)
            case "loguniform":
                return _inside(math.exp(generator.uniform(math.log(low), math.log(high))), low, high)
            case "integer":
                return generator.randint(low, high)
        # Every whole number has the stretch of half a unit to both sides.
        return _inside(round(math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))), low, high)


def _inside(value: Any, low: Any, high: Any) -> Any:
    """What rounding brought beyond an end, at the end."""
    return min(max(value, low), high)


@dataclass(frozen=True)
class Space:
    """dimensions: each stands after those that it depends on, else in the order of the file."""

    dimensions: tuple[Dimension, ...]

    @property
    def ranges(self) -> tuple[Dimension, ...]:
        return tuple(one for one in self.dimensions if one.kind in RANGES)


# --- points -----------------------------------------------------------------------------------


def grid_points(space: Space) -> Iterator[Config]:
    """Every point of a space of listed values, each once. The last path varies fastest. Raises InputError."""
    for dimension in space.ranges:
        problem = f"found {dimension.kind}, of which a grid has no points; expected grid or choice"
        raise InputError(f"{problem}, or search: {{algorithm: random}}", key=_key(dimension.path))
    yield from _points(space.dimensions, {})


def _points(dimensions: tuple[Dimension, ...], config: Config) -> Iterator[Config]:
    if not dimensions:
        yield config
    elif dimensions[0].counts(config):
        for value in dimensions[0].values:
            yield from _points(dimensions[1:], {**config, dimensions[0].path: value})
    else:
        yield from _points(dimensions[1:], config)


def sample(space: Space, generator: random.Random) -> Config:
    """A random point. The same state of the generator gives the same point on any machine."""
    config: Config = {}
    for dimension in space.dimensions:
        if dimension.counts(config):
            config[dimension.path] = dimension.drawn(generator)
    return config


def applied(content: dict, config: Mapping[str, Any]) -> dict:
    """The plain content of a schedule with a config applied; `content` itself does not change.

    Indices are those of the file as written. Absent stages are removed last. If another stage becomes the first one by
    that, it does not grow, unless the schedule says what it starts from. Raises InputError if a path leads nowhere.
    """
    changed = dict(content)
    gone: set[int] = set()
    for path, value in sorted(config.items(), key=lambda item: len(item[0])):  # a section before what is in it
        stage = _stage_of(path)
        if stage is None:
            yaml_file.set_value(changed, yaml_file.parse_path(path), value, _key(path))
        elif value == ABSENT:
            gone.add(stage)
    if gone:
        changed["stages"] = _without(changed["stages"], gone, starts_from="init" in changed)
    return changed


def _without(stages: list[dict], gone: set[int], starts_from: bool) -> list[dict]:
    left = [stage for index, stage in enumerate(stages) if index not in gone]
    if 0 in gone and left and not starts_from:
        left[0] = {key: value for key, value in left[0].items() if key != "grow"}
    return left


def _stage_of(path: str) -> int | None:
    """The index in `stages[1]`, a stage that may be there or not; None for any other path."""
    steps = yaml_file.parse_path(path)
    return steps[1] if len(steps) == 2 and steps[0] == "stages" and isinstance(steps[1], int) else None


def _key(path: str) -> str:
    return f"space.{path}"


# --- what can be wrong with it ----------------------------------------------------------------


def read_space(entries: Mapping[str, SpaceEntry], content: dict, beside: Path | None = None) -> Space:
    """The space that entries make over a schedule's content. Raises InputError, with the key in the sweep file.

    Every listed value, and of ranges the ends and one in between, is laid over the schedule by itself (with what it
    depends on) and must leave it one that can be read.
    """
    entries = {
        yaml_file.with_stage_index(path, content, _key(path)): entry.model_copy(
            update={
                "when": {
                    yaml_file.with_stage_index(other, content, _key(path)): values
                    for other, values in entry.when.items()
                }
            }
        )
        for path, entry in entries.items()
    }
    for path in entries:
        _check_entry(path, entries, content)
    space = Space(_ordered([_dimension(path, entries, content) for path in entries]))
    optional = [path for path in entries if _stage_of(path) is not None]
    if len(optional) == len(content["stages"]):
        problem = "every stage may be absent; expected one that is always there"
        raise InputError(problem, key=_key(optional[-1]))
    for dimension in space.dimensions:
        _try_values(dimension, space, content, beside)
    return space


def _check_entry(path: str, entries: Mapping[str, SpaceEntry], content: dict) -> None:
    """That its path is one of a schedule, and what it depends on one of the space."""
    steps, entry = yaml_file.parse_path(path), entries[path]
    if not steps:
        raise InputError("expected a path such as stages[1].until.tokens", key=_key(path))
    try:
        check_path(steps, Schedule)
    except InputError as error:
        raise InputError(_told(error, path), key=_key(path)) from None
    if steps[0] == "stages" and len(steps) > 1 and steps[1] >= len(content["stages"]):
        problem = f"found [{steps[1]}], but stages has {len(content['stages'])} entries, counted from 0"
        raise InputError(problem, key=_key(path))
    if _stage_of(path) is not None and (entry.kind not in LISTED or set(map(str, entry.values)) - {PRESENT, ABSENT}):
        problem = f"found {entry.kind}: {shown(list(entry.values))}"
        raise InputError(f"{problem}; expected choice: [present, absent] for a whole stage", key=_key(path))
    for other, values in entry.when.items():
        _check_condition(f"{_key(path)}.when", path, other, _as_tuple(values), entries)


def _check_condition(key: str, path: str, other: str, values: tuple, entries: Mapping[str, SpaceEntry]) -> None:
    if other not in entries or other == path:
        close = difflib.get_close_matches(other, [known for known in entries if known != path], 1)
        hint = f"; did you mean {close[0]!r}?" if close else "; expected another path of the space"
        raise InputError(f"found {shown(other)}{hint}", key=key)
    if entries[other].kind not in LISTED:
        raise InputError(f"{other} is a range; expected a path with a list of values", key=key)
    known = entries[other].values
    for value in values:
        if value not in known:
            close = difflib.get_close_matches(str(value), [str(one) for one in known], 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(map(str, known))}"
            raise InputError(f"found {shown(value)}, which {other} never is{hint}", key=key)


def _as_tuple(values: Any) -> tuple:
    return tuple(values) if isinstance(values, list) else (values,)


def _dimension(path: str, entries: Mapping[str, SpaceEntry], content: dict) -> Dimension:
    """With what follows by itself: keys of a stage count where it is there."""
    entry, steps = entries[path], yaml_file.parse_path(path)
    when = [(other, _as_tuple(values)) for other, values in entry.when.items()]
    after_any: tuple[str, ...] = ()
    if steps[0] == "stages" and len(steps) > 2:
        if f"stages[{steps[1]}]" in entries:
            when.append((f"stages[{steps[1]}]", (PRESENT,)))
        earlier = tuple(f"stages[{index}]" for index in range(steps[1]))
        if steps[2] == "grow" and "init" not in content and all(stage in entries for stage in earlier):
            after_any = earlier
    return Dimension(path, entry.kind, entry.values, tuple(when), after_any)


def _ordered(dimensions: list[Dimension]) -> tuple[Dimension, ...]:
    """Each after those that it depends on. Raises InputError where two depend on each other."""
    ordered: list[Dimension] = []
    left = list(dimensions)
    while left:
        known = {one.path for one in ordered}
        following = next((one for one in left if one.depends_on <= known), None)
        if following is None:
            circle = ", ".join(one.path for one in left)
            raise InputError(f"found {circle}, which count only under each other", key=f"{_key(left[0].path)}.when")
        ordered.append(following)
        left.remove(following)
    return tuple(ordered)


def _try_values(dimension: Dimension, space: Space, content: dict, beside: Path | None) -> None:
    beneath = _least_config(dimension, {one.path: one for one in space.dimensions})
    values = list(dimension.values)
    if dimension.kind in RANGES:
        values.append(dimension.drawn(random.Random(0)))
    for value in values:
        try:
            parse(applied(content, {**beneath, dimension.path: value}), beside)
        except InputError as error:
            raise InputError(_told(error, dimension.path, value), key=_key(dimension.path)) from None


def _least_config(dimension: Dimension, dimensions: Mapping[str, Dimension]) -> Config:
    """What has to be set for `dimension` to count, and no more."""
    config: Config = {}
    for path, values in dimension.when:
        config |= _least_config(dimensions[path], dimensions)
        config[path] = values[0]
    return config


def _told(error: InputError, path: str, value: object = None) -> str:
    """What is wrong with a path of the schedule, said of an entry of the space."""
    if error.key in (None, path, _key(path)):
        return error.problem
    return (
        f"with {shown(value)}: {error.key}: {error.problem}" if value is not None else f"{error.key}: {error.problem}"
    )


def describe(config: Mapping[str, Any]) -> str:
    """A config in a message: 'stages[0].until.tokens=250K, stages[1].grow.operator=stack'."""
    return ", ".join(f"{path}={format_value(value)}" for path, value in config.items())


def format_value(value: Any) -> str:
    """As it was written; what was drawn with four figures, and structure cut short."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else shown(value)
