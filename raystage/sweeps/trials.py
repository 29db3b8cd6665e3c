"""The trials of a sweep, planned before anything runs: each one's config, schedule and stages, and what they share."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from raystage.config import yaml_file
from raystage.config.loading.known import KnownSections
from raystage.config.schedule import Schedule, parse
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.planning.inputs import Sources
from raystage.plans.plan import Plan, RunPlan
from raystage.sweeps.config import Sweep
from raystage.sweeps.scheduler import Extent
from raystage.sweeps.space import ABSENT, PRESENT, Config, applied, describe, format_value, grid_points, sample
from raystage.sweeps.tree import Chain, Tree, build

# After so many repeated draws in a row, the space is assumed to have no other points.
MOST_REPEATS = 1_000


@dataclass(frozen=True)
class Trial:
    """One point of the space. content: its schedule as plain values, as it could be in a file beside the sweep's
    schedule. plan: without baselines, unless an objective needs them."""

    number: int
    config: Config
    content: dict[str, Any]
    plan: Plan


@dataclass(frozen=True)
class SweepPlan:
    """tree: of the staged runs. baselines: of all other runs, if an objective needs them: those from scratch, tuned
    values, further seeds.

    is_foreseen: whether these are the trials that will run. Optuna chooses trials while results come in; its plan holds
    random points of the same space.
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    tree: Tree
    baselines: Tree | None

    @property
    def trees(self) -> tuple[Tree, ...]:
        """Of all runs."""
        return (self.tree,) if self.baselines is None else (self.tree, self.baselines)

    def keys(self) -> set[str]:
        """Of the stages of all runs."""
        return {key for tree in self.trees for key in tree.nodes}

    @property
    def is_foreseen(self) -> bool:
        return self.sweep.search.algorithm != "optuna"

    @property
    def repeats(self) -> int:
        """How many trials have exactly the stages of another trial."""
        return len(self.trials) - len({trial.plan.staged.stages[-1].key for trial in self.trials})


def plan_sweep(sweep: Sweep, finished: Collection[str] = frozenset(), with_code: bool = True) -> SweepPlan:
    """All trials of a sweep and their tree. finished: keys of stages that the store has. with_code: whether functions
    that the schedules name are imported. Raises InputError."""
    planner = Planner(sweep, with_code)
    with _no_collection():
        trials = tuple(planner.trial(number, config) for number, config in enumerate(configs(sweep)))
        chains = [Chain(trial.plan.staged.stages, _settings(sweep, trial.config)) for trial in trials]
        baselines = [_bare(run) for trial in trials for run in trial.plan.runs() if run is not trial.plan.staged]
        return SweepPlan(sweep, trials, build(chains, finished), build(baselines, finished) if baselines else None)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switches the garbage collector off: everything made here stays, and searching it for cycles takes a quarter of
    the time of ten thousand trials."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def configs(sweep: Sweep) -> list[Config]:
    """Every point of the grid, or as many different points as there are trials, drawn with the seed."""
    if sweep.search.algorithm == "grid":
        return list(grid_points(sweep.points))
    drawn: dict[str, Config] = {}
    generator, repeats = random.Random(sweep.search.seed), 0
    while len(drawn) < sweep.search.num_trials:
        config = sample(sweep.points, generator)
        repeats = repeats + 1 if repr(config) in drawn else 0
        drawn.setdefault(repr(config), config)
        if repeats > MOST_REPEATS:
            problem = f"found {sweep.search.num_trials}, but the space has {len(drawn)} points"
            expected = f"expected at most {len(drawn)}, or algorithm: grid"
            raise InputError(f"{problem}; {expected}", key="search.num_trials", file=sweep.file)
    return list(drawn.values())


class Planner:
    """Makes trials of configs. Their inputs are looked up once for all trials."""

    def __init__(self, sweep: Sweep, with_code: bool = True) -> None:
        self.sweep = sweep
        self._sources, self._known = Sources(with_code=with_code), KnownSections()
        equal = sweep.constraints.equal_flops
        self._flops = None
        if equal is not None:
            try:
                self._flops = equal.flops or self._plan(sweep.base).staged.flops
            except InputError as error:
                raise error.inside(str(sweep.schedule_file)) from None

    def trial(self, number: int, config: Config) -> Trial:
        """The trial of one point. Raises InputError if its schedule is not valid."""
        try:
            content = applied(self.sweep.base, config) | {"name": f"{self.sweep.name}-{number}"}
            if self._flops is not None:
                content = self._with_equal_flops(content)
            found = Trial(number, config, content, self._plan(content))
        except InputError as error:
            place = f"{error.key}: " if error.key else ""
            problem = f"trial {number} ({describe(config)}): {place}{error.problem}"
            raise InputError(problem, file=self.sweep.file) from None
        _check_scheduler(self.sweep, found.plan)
        return found

    def _plan(self, content: dict[str, Any]) -> Plan:
        if not self.sweep.needs_baselines:
            content = {key: value for key, value in content.items() if key != "baseline"}
        schedule = self._known.read(content, partial(parse, beside=self.sweep.schedule_file.parent))
        _check_single(self.sweep, schedule)
        return make_plan(schedule, sources=self._sources)

    def _with_equal_flops(self, content: dict[str, Any]) -> dict[str, Any]:
        """The stage that takes what is left has as many whole steps as the FLOPs of all trials allow."""
        stages = content["stages"]
        name = self.sweep.constraints.equal_flops.stage or self.sweep.base["stages"][-1]["name"]
        index = next(index for index, stage in enumerate(stages) if stage["name"] == name)
        run = self._plan(content).staged
        taker = run.stages[index]
        others = run.flops - taker.training_flops
        steps = taker.step_costs.steps_for(self._flops - others + 1) - 1
        if steps < 1:
            problem = f"found {others:,} FLOPs without stage {name}, of {self._flops:,} in all"
            raise InputError(f"{problem}; expected some left for it", key="constraints.equal_flops")
        changed = [*stages[:index], {**stages[index], "until": {"steps": steps}}, *stages[index + 1 :]]
        return {**content, "stages": changed}


def _check_single(sweep: Sweep, schedule: Schedule) -> None:
    """Refuse schedules that would repeat a trial whose figure comes from one run: a sweep varies values and seeds
    itself. A saving is that of all seeds, with the best values of either side."""
    _check_deliveries(schedule)
    if sweep.judges_savings:
        return
    beside = "in the schedule of a sweep that is not judged by compute_saved alone, or that ends trials early"
    if schedule.seeds > 1:
        problem = f"found {schedule.seeds} {beside}"
        raise InputError(f"{problem}; expected 1, and seed in the sweep's space", key="seeds")
    if schedule.baseline is not None and schedule.baseline.tune:
        paths = ", ".join(schedule.baseline.tune)
        problem = f"found {paths} {beside}"
        raise InputError(f"{problem}; expected none, and its values in the sweep's space", key="baseline.tune")


def _check_deliveries(schedule: Schedule) -> None:
    """Refuse models beside the run: a sweep trains what trials are compared by, and nothing else."""
    for index, stage in enumerate(schedule.stages):
        if stage.ensemble is not None:
            problem = "found in the schedule of a sweep, which trains no members"
            raise InputError(f"{problem}; expected none, and ensemble in the schedule of the best trial",
                             key=f"stages[{index}].ensemble")  # fmt: skip
        if stage.deliver is not None:
            problem = "found in the schedule of a sweep, which delivers no models"
            raise InputError(f"{problem}; expected none, and deliver in the schedule of the best trial",
                             key=f"stages[{index}].deliver")  # fmt: skip


def _check_scheduler(sweep: Sweep, plan: Plan) -> None:
    """Refuse lengths in another unit than that of the trials: no trial would ever reach them."""
    units = {stage.unit for stage in plan.staged.stages}
    counts = f"trials that count {' and '.join(sorted(units, reverse=True))}"
    grace, after = sweep.scheduler.grace, sweep.scheduler.after_growth
    if grace is not None and grace.axis != "flops" and units != {grace.axis}:
        expected = "flops" if len(units) > 1 else f"{units.pop()} or flops"
        raise InputError(f"found {grace.axis} for {counts}; expected {expected}",
                         key=f"scheduler.grace.{grace.axis}", file=sweep.file)  # fmt: skip
    if after is not None and units != {after.unit}:
        expected = "name: asha with a grace in flops" if len(units) > 1 else units.pop()
        raise InputError(f"found {after.unit} for {counts}; expected {expected}",
                         key=f"scheduler.after_growth.{after.unit}", file=sweep.file)  # fmt: skip
    if grace is not None:
        _check_comparable(sweep, grace, plan)
    _check_source(sweep, plan)


def _check_source(sweep: Sweep, plan: Plan) -> None:
    """Refuse a source on which a trial is not evaluated: at its end, and, if it may end early, on the way."""
    stages = plan.staged.stages if sweep.scheduler.name != "none" else plan.staged.stages[-1:]
    for index, one in enumerate(sweep.objective):
        for stage in stages if one.source is not None else ():
            names = [part.name for part in stage.evaluated if part.name]
            if one.source not in names:
                known = ", ".join(names) or "none, for it has no mixture"
                problem = f"found {one.source!r}, on which stage {stage.name!r} is not evaluated (its sources: {known})"
                expected = "expected one of them, or the source there with weight: 0"
                where = "" if len(sweep.objective) == 1 else f"[{index}]"
                raise InputError(f"{problem}; {expected}", key=f"objective{where}.source", file=sweep.file)


def _check_comparable(sweep: Sweep, grace: Extent, plan: Plan) -> None:
    """Refuse a first rung at which the trial is still judged by another loss than at its end."""
    stages = plan.staged.stages
    judge = stages[-1].objective.judge.name
    before = [stage for stage in stages if stage.objective.judge.name != judge]
    if not before:
        return
    end = before[-1].end_flops if grace.axis == "flops" else before[-1].end
    if grace.count <= end:
        problem = f"found {grace.count}, where a trial is still judged by the loss of {before[-1].objective.judge.name}"
        raise InputError(f"{problem}; expected more than {end}, from where on it is judged by that of {judge}",
                         key=f"scheduler.grace.{grace.axis}", file=sweep.file)  # fmt: skip


def _settings(sweep: Sweep, config: Config) -> tuple[tuple[str, ...], ...]:
    """What a config says of each of its stages: of the run as a whole, of the stage, of stages before it that are not
    there."""
    of_run: list[str] = []
    of_stage: dict[int, list[str]] = {}
    for path, value in config.items():
        first, *steps = yaml_file.parse_path(path)
        if first != "stages" or not steps:
            of_run.append(f"{path}={format_value(value)}")
        elif steps[1:]:
            of_stage.setdefault(steps[0], []).append(f"{yaml_file.dotted(steps[1:])}={format_value(value)}")
    found: list[tuple[str, ...]] = []
    for index, stage in enumerate(sweep.base["stages"]):
        if config.get(f"stages[{index}]", PRESENT) == ABSENT:
            of_run.append(f"without {stage['name']}")
        else:
            found.append((*of_stage.get(index, ()), *of_run))
    return tuple(found)


def _bare(run: RunPlan) -> Chain:
    return Chain(run.stages, tuple(() for _ in run.stages))
