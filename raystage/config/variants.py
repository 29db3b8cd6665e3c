"""The schedules that a tuned baseline and further seeds need: the written one with other values, or with another seed.

`baseline.tune` lists values of the file's training section: optimizer, batch, warm-up and decay of the rate. Every
combination is tried, on both sides of the comparison, and the values as written are always among them. A tuned value
holds for a whole run: a stage that sets a tuned path itself is refused. The seeds are the written one and those after
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from operator import attrgetter
from typing import Any

from raystage.config.schedule import Baseline, Schedule
from raystage.config.section import Section
from raystage.config.stage import NOTHING_REQUIRED, Stage
from raystage.errors import InputError
from raystage.units import shown

# By path ("training.optimizer.lr") the tuned values of a run; empty where nothing is tuned.
Values = tuple[tuple[str, Any], ...]

MOST_COMBINATIONS = 100
MOST_RUNS = 1_000  # staged runs and baselines, all planned before the first one starts
_SEEDS = 2**32


def written_values(schedule: Schedule) -> Values:
    """The tuned values as written."""
    return tuple((path, attrgetter(path)(schedule)) for path in _tune(schedule))


def other_values(schedule: Schedule) -> tuple[Values, ...]:
    """All other combinations, in the order of the lists."""
    tune, written = _tune(schedule), written_values(schedule)
    points = (tuple(zip(tune, point, strict=True)) for point in product(*_lists(schedule)))
    return tuple(values for values in points if values != written)


def _lists(schedule: Schedule) -> list[tuple[Any, ...]]:
    """The values of every path. The written value is added where a list does not have it."""
    pairs = zip(_tune(schedule).values(), written_values(schedule), strict=True)
    return [values if own in values else (*values, own) for values, (_, own) in pairs]


def with_values(schedule: Schedule, values: Values) -> Schedule:
    """The schedule with these values in its training section."""
    for path, value in values:
        schedule = _with_value(schedule, path.split("."), value)
    return schedule


def _with_value(section: Any, path: list[str], value: Any) -> Any:
    field, *rest = path
    return section.model_copy(update={field: _with_value(getattr(section, field), rest, value) if rest else value})


def with_seed(schedule: Schedule, more: int) -> Schedule:
    """The schedule with its seed, and the seeds of its stages, higher by `more`."""
    stages = tuple(
        stage if stage.seed is None else stage.model_copy(update={"seed": stage.seed + more})
        for stage in schedule.stages
    )
    return schedule.model_copy(update={"seed": schedule.seed + more, "stages": stages})


def label(values: Values) -> str:
    """Values as a part of a run's name: 'lr-0.004', 'lr-0.004-betas-0.9-0.95'."""
    return "-".join(f"{path.rpartition('.')[2]}-{_as_name(value)}" for path, value in values)


def _as_name(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_variants(schedule: Schedule) -> None:
    """Refuse a schedule that cannot be repeated with other values or seeds. Raises InputError."""
    tune = _tune(schedule)
    if schedule.seeds > 1 and schedule.baseline is None:
        problem = f"found {schedule.seeds} without a baseline to compare every seed's run with"
        raise InputError(f"{problem}; expected a baseline section beside it, or 1", key="seeds")
    if schedule.seeds == 1 and not tune:
        return
    beside = "baseline.tune" if tune else "seeds"
    for index, stage in enumerate(schedule.stages):
        _check_stage(stage, f"stages[{index}]", beside, tune)
    if tune:
        _check_untuned(schedule.baseline, "baseline", tune)
    _check_seeds(schedule)
    # Counted without making them: three lists of a thousand values would fill the memory.
    count = math.prod(map(len, _lists(schedule)))
    if count > MOST_COMBINATIONS:
        problem = f"found {count} combinations of values; expected at most {MOST_COMBINATIONS}"
        raise InputError(problem, key="baseline.tune")
    runs = (count + schedule.seeds - 1) * (1 + schedule.baseline.num_budgets)
    if runs > MOST_RUNS:
        problem = f"found {runs:,} runs, of {count} combinations and {schedule.seeds} seeds with all budgets"
        raise InputError(f"{problem}; expected at most {MOST_RUNS:,}", key=beside)


def _check_stage(stage: Stage, key: str, beside: str, tune: dict[str, tuple[Any, ...]]) -> None:
    """Refuse gates: they may stop a run, and every one of these runs has to be finished to be compared."""
    if tune and stage.deliver is not None:
        problem = "found beside baseline.tune, which may choose other values than those that are delivered"
        raise InputError(f"{problem}; expected the values that were chosen, without tune", key=f"{key}.deliver")
    if stage.ensemble is not None:
        problem = f"found beside {beside}, each of whose runs would need members of its own"
        raise InputError(f"{problem}; remove it, or {beside}", key=f"{key}.ensemble")
    gates = {
        "accept": stage.accept is not None,
        "on_reject": stage.on_reject is not None,
        "grow.require": stage.grow is not None and stage.grow.require != NOTHING_REQUIRED,
    }
    for gate, is_there in gates.items():
        if is_there:
            problem = f"found beside {beside}, whose runs have all to be finished to be compared"
            raise InputError(f"{problem}; remove it, or {beside}", key=f"{key}.{gate}")
    _check_untuned(stage, key, tune)


def _check_untuned(section: Stage | Baseline, key: str, tune: Iterable[str]) -> None:
    where = "the baseline" if isinstance(section, Baseline) else "a stage"
    for path in tune:
        if _sets(section, path.split(".")):
            found = f"found {shown(attrgetter(path)(section))} in {where}, which baseline.tune would leave as it is"
            expected = "expected it in the file's training section alone, where it is tuned for the whole run"
            raise InputError(f"{found}; {expected}", key=f"{key}.{path}")


def _sets(section: Section, path: list[str]) -> bool:
    """Whether a path leads to something that the user wrote."""
    field, *rest = path
    return field in section.model_fields_set and (not rest or _sets(getattr(section, field), rest))


def _check_seeds(schedule: Schedule) -> None:
    seeds = {"seed": schedule.seed, **{f"stages[{i}].seed": stage.seed for i, stage in enumerate(schedule.stages)}}
    for key, seed in seeds.items():
        if seed is not None and seed + schedule.seeds > _SEEDS:
            problem = f"found {seed} with {schedule.seeds} seeds from it on"
            raise InputError(f"{problem}; expected at most {_SEEDS - schedule.seeds}", key=key)


def _tune(schedule: Schedule) -> dict[str, tuple[Any, ...]]:
    return schedule.baseline.tune if schedule.baseline is not None else {}
