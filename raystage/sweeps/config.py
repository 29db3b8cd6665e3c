"""What the user writes to search over schedules: a sweep, typed and frozen.

Everything that can be wrong with a sweep, or with the schedule that it varies, is refused when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from raystage.config import yaml_file
from raystage.config.schedule import Schedule, is_schedule, is_sweep, parse
from raystage.config.schedule import load as load_schedule
from raystage.config.section import Section, explain
from raystage.config.types import Count, Name, Positive, Seed, Text
from raystage.errors import InputError
from raystage.sweeps.scheduler import Scheduler
from raystage.sweeps.space import Space, SpaceEntry, grid_points, read_space
from raystage.units import shown

# What an override of the schedule begins with, among those of the sweep.
_OF_SCHEDULE = "schedule."
MOST_TRIALS = 10_000  # planning them takes some seconds
ALGORITHMS = ("grid", "random", "optuna")
# The metrics of an objective, and whether lower or higher is better.
METRICS = {
    "eval_loss": "min",
    "compute_saved": "max",
    "flops_to_loss": "min",
    "seconds_to_loss": "min",
    "eval_loss_at_flops": "min",
}
# The key that a metric needs besides its name.
NEEDS = {"flops_to_loss": "target", "seconds_to_loss": "target", "eval_loss_at_flops": "at"}


class Search(Section):
    """How points of the space are chosen."""

    algorithm: Literal[ALGORITHMS] = "grid"
    """`grid` takes all points of listed values, `random` draws points, `optuna` draws them by what trials came to."""
    num_trials: Count | None = None
    """The number of trials; all points of a grid, and required with the other algorithms."""
    max_concurrent: Count = 1
    """The number of trials at a time."""
    seed: Seed = 0
    """The seed by which points are drawn."""


class Objective(Section):
    """What a trial is judged by."""

    metric: Literal[tuple(METRICS)] = "eval_loss"
    """The figure of a trial that counts."""
    mode: Literal["min", "max"] | None = None
    """Which way is better. It follows from the metric; another value is refused."""
    target: Positive | None = None
    """The held-out loss to reach, in nats per token, or as the
    objective measures it; for `flops_to_loss` and `seconds_to_loss`."""
    at: Count | None = None
    """The FLOPs at which the loss is taken; for `eval_loss_at_flops`."""
    source: Name | None = None
    """The source of a mixture whose held-out loss counts, in place of the mean over the mixture. Where weights vary,
    it makes trials comparable. Not for `compute_saved`."""

    @property
    def name(self) -> str:
        """What its figures are kept under: the metric, and of which source."""
        return self.metric if self.source is None else f"{self.metric}/{self.source}"

    @property
    def better(self) -> str:
        """Which direction is better: "min" or "max"."""
        return METRICS[self.metric]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode not in (None, self.better):
            better = "lower" if self.better == "min" else "higher"
            raise ValueError(f"found mode: {self.mode}, but {self.metric} is better the {better} it is; expected "
                             f"mode: {self.better}")  # fmt: skip
        needed = NEEDS.get(self.metric)
        for field, example in (("target", "1.5"), ("at", "1e12")):
            if field == needed and getattr(self, field) is None:
                raise ValueError(
                    f"found no {field}, which {self.metric} needs; expected for example {field}: {example}"
                )
            if field != needed and getattr(self, field) is not None:
                owners = " or ".join(metric for metric, need in NEEDS.items() if need == field)
                raise ValueError(f"found {field}, which {self.metric} takes none of; expected it with {owners}")
        if self.source is not None and self.metric == "compute_saved":
            raise ValueError("found source with compute_saved, which compares whole runs; expected it with a loss")
        return self


class EqualFlops(Section):
    """All trials take the same FLOPs: the length of one stage follows from that."""

    flops: Count | None = None
    """The FLOPs of a trial; those of the schedule as written unless given."""
    stage: Text | None = None
    """The name of the stage whose length follows; the last one unless given."""


def _as_equal_flops(value: object) -> object:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


EqualFlopsEntry = Annotated[
    EqualFlops | None, BeforeValidator(_as_equal_flops, json_schema_input_type=bool | EqualFlops | None)
]


class Constraints(Section):
    """What holds for all trials."""

    equal_flops: EqualFlopsEntry = None
    """All trials take the same FLOPs: `true`, or a mapping."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


Objectives = Annotated[
    tuple[Objective, ...],
    BeforeValidator(_as_list, json_schema_input_type=Objective | Annotated[list[Objective], Field(min_length=1)]),
    Field(min_length=1),
]


class Sweep(Section):
    """A sweep: a search over variants of one schedule."""

    name: Annotated[Name, Field(examples=["when-to-grow"])]
    """The name of the sweep."""
    schedule: Annotated[Text, Field(examples=["../schedules/quickstart.yaml"])]
    """The schedule that varies, by its path from the sweep's folder."""
    space: Annotated[
        dict[str, SpaceEntry], Field(min_length=1, examples=['{"stages[0].until.tokens": {grid: [250K, 500K]}}'])
    ]
    """By path in the schedule what varies. A stage itself may be `present` or `absent`."""
    search: Search = Search()
    """How points of the space are chosen."""
    scheduler: Scheduler = Scheduler()
    """Which trials end early."""
    objective: Objectives = (Objective(),)
    """What trials are judged by: one, or a list of them."""
    constraints: Constraints = Constraints()
    """What holds for all trials."""
    _file: str = PrivateAttr(default="")
    _base: dict[str, Any] = PrivateAttr(default_factory=dict)
    _schedule_file: Path = PrivateAttr(default=Path())
    _points: Space = PrivateAttr(default=Space(()))

    @property
    def file(self) -> str:
        return self._file

    @property
    def base(self) -> dict[str, Any]:
        """The content of the schedule, as plain values."""
        return self._base

    @property
    def schedule_file(self) -> Path:
        return self._schedule_file

    @property
    def points(self) -> Space:
        """The space, checked against the schedule."""
        return self._points

    @property
    def source(self) -> str | None:
        """The source whose loss trials are compared by, on the way and at their end: that of the first objective."""
        return self.objective[0].source

    @property
    def judges_savings(self) -> bool:
        """Whether each trial runs to its end and is judged by its saving alone, which seeds and tuned values belong
        to."""
        return self.scheduler.name == "none" and all(one.metric == "compute_saved" for one in self.objective)

    @property
    def needs_baselines(self) -> bool:
        """Whether trials are held against training from scratch."""
        return any(one.metric == "compute_saved" for one in self.objective)


def load_any(path: str | Path, overrides: tuple[str, ...] = ()) -> Schedule | Sweep:
    """The schedule or the sweep in the file at `path`, with `KEY=VALUE` overrides applied. Raises InputError."""
    content = yaml_file.read_mapping(Path(path))
    return load(path, overrides, content) if is_sweep(content) else load_schedule(path, overrides, content)


def load(path: str | Path, overrides: tuple[str, ...] = (), content: dict | None = None) -> Sweep:
    """The sweep in the file at `path`, with `KEY=VALUE` overrides applied: of its own keys, and after `schedule.` of
    keys of the schedule that it varies.

    content: what was read of the file, where it was read already. Raises InputError: one message, for the first thing
    that is wrong, in the sweep or in the schedule it varies.
    """
    file = Path(path)
    content = yaml_file.read_mapping(file) if content is None else content
    if is_schedule(content):
        raise InputError(f"found a schedule; expected a sweep, or the command: raystage run {path}", file=str(file))
    try:
        for override in overrides:
            if not override.startswith(_OF_SCHEDULE):
                yaml_file.apply_override(content, override)
        of_schedule = [one.removeprefix(_OF_SCHEDULE) for one in overrides if one.startswith(_OF_SCHEDULE)]
        return _load(content, file, of_schedule)
    except InputError as error:
        raise error.inside(str(file)) from None


def _load(content: dict, file: Path, of_schedule: Sequence[str]) -> Sweep:
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        raise _as_written(explain(error, Sweep), content) from None
    schedule_file = file.parent / Path(sweep.schedule).expanduser()
    if not schedule_file.is_file():
        problem = f"found {shown(sweep.schedule)}, but there is no file {schedule_file}"
        raise InputError(f"{problem}; expected a schedule, by its path from the sweep's folder", key="schedule")
    base = _read_schedule(schedule_file, of_schedule)
    # Absolute: a trial runs in a process of its own, elsewhere.
    sweep._file, sweep._base, sweep._schedule_file = str(file), base, schedule_file.absolute()
    sweep._points = read_space(sweep.space, base, schedule_file.parent)
    _check_together(sweep)
    return sweep


def _as_written(error: InputError, content: dict) -> InputError:
    """In the error, the key of a single objective has no index, as in the file."""
    if isinstance(content.get("objective"), dict) and error.key:
        return InputError(error.problem, key=error.key.replace("objective[0]", "objective"))
    return error


def _read_schedule(file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The content of the file with overrides applied, which must be a valid schedule by itself. Raises InputError."""
    content = yaml_file.read_mapping(file)
    if is_sweep(content):
        raise InputError("is a sweep itself; expected a schedule", key="schedule", file=str(file))
    try:
        for override in overrides:
            yaml_file.apply_override(content, override)
        parse(content, file.parent)
    except InputError as error:
        raise error.inside(str(file)) from None
    return content


def _check_together(sweep: Sweep) -> None:
    """Checks that need more than one section. Raises InputError."""
    search = sweep.search
    if search.algorithm == "grid":
        points = sum(1 for _ in islice(grid_points(sweep.points), MOST_TRIALS + 1))
        if points > MOST_TRIALS:
            problem = f"found a grid of more than {MOST_TRIALS:,} points; expected fewer, or algorithm: random"
            raise InputError(problem, key="space")
        if search.num_trials not in (None, points):
            problem = f"found {search.num_trials}, but the grid has {points} points; expected {points}"
            raise InputError(f"{problem}, or another algorithm", key="search.num_trials")
    elif search.num_trials is None:
        problem = f"missing; expected how many trials, for algorithm: {search.algorithm}"
        raise InputError(problem, key="search.num_trials")
    elif search.num_trials > MOST_TRIALS:
        problem = f"found {shown(search.num_trials)}; expected at most {MOST_TRIALS:,}"
        raise InputError(problem, key="search.num_trials")
    metrics = [one.metric for one in sweep.objective]
    for index, one in enumerate(sweep.objective):
        if one.name in [other.name for other in sweep.objective[:index]]:
            raise InputError(f"found {one.name} a second time; expected each once", key=f"objective[{index}]")
    _check_comparable(sweep)
    if sweep.needs_baselines and not sweep.base.get("baseline"):
        problem = f"found compute_saved, but {sweep.schedule} has no baseline to hold trials against"
        key = "objective" if len(metrics) == 1 else f"objective[{metrics.index('compute_saved')}]"
        raise InputError(f"{problem}; expected one there", key=f"{key}.metric")
    if sweep.constraints.equal_flops is not None:
        _check_equal_flops(sweep)


def _check_comparable(sweep: Sweep) -> None:
    """Refuse to judge trials by the mean over mixtures whose weights vary: each would have a yardstick of its own."""
    varied = next((path for path in sweep.space if re.search(r"\bdata\.mixture\b", path)), None)
    judged = next((one for one in sweep.objective if one.source is None and one.metric != "compute_saved"), None)
    if varied is not None and judged is not None:
        problem = f"missing, and the space varies {varied}: {judged.metric} would be a mean by each trial's own weights"
        where = "" if len(sweep.objective) == 1 else f"[{sweep.objective.index(judged)}]"
        raise InputError(f"{problem}; expected the source whose held-out loss counts", key=f"objective{where}.source")


def _check_equal_flops(sweep: Sweep) -> None:
    """Check that a stage can take the FLOPs that are left and that nothing else fixes its length."""
    names = [stage["name"] for stage in sweep.base["stages"]]
    taker = sweep.constraints.equal_flops.stage or names[-1]
    key = "constraints.equal_flops.stage"
    if taker not in names:
        raise InputError(f"found {shown(taker)}; expected one of {', '.join(names)}", key=key)
    stage = f"stages[{names.index(taker)}]"
    if stage in sweep.space:
        problem = f"{taker} takes what is left of the FLOPs, but may be absent; expected a stage that is always there"
        raise InputError(problem, key=key)
    for path in sweep.space:
        if path.startswith(f"{stage}.until"):
            problem = f"the length of {taker} follows from constraints.equal_flops; expected another path"
            raise InputError(f"{problem}, or another constraints.equal_flops.stage", key=f"space.{path}")
