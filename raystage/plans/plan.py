"""The types of a plan: the runs that its stages make up, and the plan of a whole schedule.

The unit is `StagePlan` (`plans.stage`): training under one set of values. A stage of the schedule is one of them. A
baseline run is one or several: under a wsd rate the baselines of all budgets share a trunk, whose parts have equal keys
and so are trained once. `planning.build` makes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from raystage.config.schedule import NO_COSTS, Costs
from raystage.config.variants import Values
from raystage.plans.stage import StagePlan
from raystage.units import Unit


@dataclass(frozen=True)
class RunPlan:
    """A chain of stages that ends in a finished model."""

    name: str
    stages: tuple[StagePlan, ...]

    @property
    def unit(self) -> Unit:
        """That of its last stage."""
        return self.stages[-1].unit

    @property
    def duration(self) -> int:
        """Of the stages that count in the unit of the last one."""
        return self.durations[self.unit]

    @property
    def durations(self) -> dict[Unit, int]:
        """By unit the length of the stages that count in it."""
        found: dict[Unit, int] = {}
        for stage in self.stages:
            found[stage.unit] = found.get(stage.unit, 0) + stage.duration
        return found

    @property
    def flops(self) -> int:
        return sum(stage.flops for stage in self.stages)


@dataclass(frozen=True)
class Delivery:
    """A finished model that a stage of the schedule delivers: what `run` ends with.

    stage: its name. run: the staged run up to that stage, then a decay of the rate, if one is needed.
    """

    stage: str
    run: RunPlan

    @property
    def model(self) -> StagePlan:
        """The stage that ends with the delivered model."""
        return self.run.stages[-1]

    @property
    def decays(self) -> bool:
        """Whether the model is a branch of the staged run; else it is what its stage ends with."""
        return self.model.name != self.stage

    @property
    def branches_at(self) -> StagePlan:
        """The stage of the staged run that the model comes from."""
        return self.run.stages[-2 if self.decays else -1]


@dataclass(frozen=True)
class EnsemblePlan:
    """A stage with several members. first: the stage itself, in the staged run. runs: of the other members; each ends
    with the member. vary: what differs, as written. is_measured: whether the run measures it."""

    first: StagePlan
    runs: tuple[RunPlan, ...]
    vary: str
    is_measured: bool

    @property
    def members(self) -> tuple[StagePlan, ...]:
        return (self.first, *(run.stages[-1] for run in self.runs))


@dataclass(frozen=True)
class Variant:
    """The staged run and its baselines, with other tuned values or with another seed.

    staged_values, baseline_values: the tuned values of each side; of the latter one for each baseline.
    """

    seed: int
    staged_values: Values
    baseline_values: tuple[Values, ...]
    staged: RunPlan
    baselines: tuple[RunPlan, ...]


@dataclass(frozen=True)
class Choice:
    """The best of the tuned values: for the staged run, and for the baseline of every budget."""

    staged: Values
    baseline: tuple[Values, ...]


@dataclass(frozen=True)
class Plan:
    """The staged run and its baselines as written, and everything else that is trained to compare them.

    costs: prices, for the report. values: the tuned values as written. variants: other values, on the written seed.
    further_seeds: one variant for each further seed. They train the best values of each side; until these are known
    (`is_chosen`), the written values stand in their place. values_from: where the values of the baseline come from, in
    the user's words. scratch_flops: of the last stage's model over the length of the whole staged run; None where its
    stages count in two units, whose lengths cannot be added up. deliveries: the models that stages deliver.
    ensembles: of stages with several members.
    """

    name: str
    staged: RunPlan
    baselines: tuple[RunPlan, ...]
    scratch_flops: int | None
    costs: Costs = NO_COSTS
    seed: int = 0
    values: Values = ()
    variants: tuple[Variant, ...] = ()
    further_seeds: tuple[Variant, ...] = ()
    is_chosen: bool = True
    values_from: str | None = None
    deliveries: tuple[Delivery, ...] = ()
    ensembles: tuple[EnsemblePlan, ...] = ()

    @property
    def predicted_saving(self) -> float | None:
        """1 - staged FLOPs / FLOPs of the last stage's model from scratch at equal length."""
        return None if self.scratch_flops is None else 1 - self.staged_flops / self.scratch_flops

    @property
    def candidates(self) -> tuple[Variant, ...]:
        """All values that are compared on the written seed, the written ones first."""
        values = (self.values,) * len(self.baselines)
        return (Variant(self.seed, self.values, values, self.staged, self.baselines), *self.variants)

    def runs(self) -> tuple[RunPlan, ...]:
        """All runs, in the order in which they are trained."""
        return (*self.branches, *self.compared_runs())

    @property
    def branches(self) -> tuple[RunPlan, ...]:
        """The runs that begin as the staged run does and end in a model of their own, in the order of the stages that
        they leave it at. They are trained first: a stage delivers its model, and its members are trained, before the
        next stage begins."""
        decays = {one.stage: (one.run,) for one in self.deliveries if one.decays}
        members = {one.first.name: one.runs for one in self.ensembles}
        names = [stage.name for stage in self.staged.stages]
        return tuple(run for name in names for run in (*decays.get(name, ()), *members.get(name, ())))

    def teaching(self, run: RunPlan) -> tuple[RunPlan, ...]:
        """The members that a run cannot do without: those that its stages learn from, and whom these learn from."""
        of_members = [one for ensemble in self.ensembles for one in ensemble.runs]
        found, waiting = set(), [run]
        while waiting:
            taught = [stage for stage in waiting.pop().stages if stage.teacher]
            keys = {one.key for stage in taught for one in stage.teacher.all}
            new = [one for one in of_members if one.stages[-1].key in keys and one.name not in found]
            found |= {one.name for one in new}
            waiting += new
        return tuple(one for one in of_members if one.name in found)

    @property
    def staged_flops(self) -> int:
        """FLOPs of the staged run with the members that its stages learn from."""
        return flops_shared((self.staged, *self.teaching(self.staged)))

    def compared_runs(self) -> tuple[RunPlan, ...]:
        """The runs that the saving follows from."""
        return (*self.pilots(), *_runs_of(self.further_seeds))

    def pilots(self) -> tuple[RunPlan, ...]:
        """Of these the runs of the written seed."""
        return (self.staged, *self.baselines, *_runs_of(self.variants))

    def known_runs(self) -> tuple[RunPlan, ...]:
        """The runs whose values are known."""
        return self.runs() if self.is_chosen else (*self.branches, *self.pilots())

    def ensemble_of(self, key: str) -> EnsemblePlan | None:
        """The ensemble that the stage with this key is a member of."""
        return next((one for one in self.ensembles if key in [member.key for member in one.members]), None)

    def variant_of(self, name: str) -> Variant:
        """The variant that has the run of that name. That of a branch is the schedule as written."""
        named = (
            one
            for one in (*self.candidates, *self.further_seeds)
            if name in (one.staged.name, *(run.name for run in one.baselines))
        )
        return next(named, self.candidates[0])

    def kind_of(self, name: str) -> str:
        """What the run of that name is: `staged`, `baseline` or `branch`."""
        if any(run.name == name for run in self.branches):
            return "branch"
        return "staged" if self.variant_of(name).staged.name == name else "baseline"

    def stages_by_key(self) -> dict[str, StagePlan]:
        """The stages of all runs, each once."""
        return {stage.key: stage for run in self.runs() for stage in run.stages}

    def stage_keys(self) -> list[str]:
        """The keys of all stages of all runs, in order; one for each run that has the stage."""
        return [stage.key for run in self.runs() for stage in run.stages]

    def flops_left(self, finished: Collection[str]) -> int:
        """FLOPs of all stages that are not finished, each stage counted once."""
        return sum(stage.flops for key, stage in self.stages_by_key().items() if key not in finished)

    def baseline_flops_shared(self) -> int:
        """FLOPs of the baselines with each shared stage counted once."""
        return flops_shared(self.baselines)


def flops_shared(runs: Iterable[RunPlan]) -> int:
    """FLOPs of runs with each stage counted once."""
    return sum({stage.key: stage.flops for run in runs for stage in run.stages}.values())


def _runs_of(variants: Sequence[Variant]) -> tuple[RunPlan, ...]:
    """Baselines first: they all need the same workers, which are those of the run before."""
    baselines = tuple(run for one in variants for run in one.baselines)
    return (*baselines, *(one.staged for one in variants))
