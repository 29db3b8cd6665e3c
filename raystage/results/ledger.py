"""The compute of a run: what the saving counts, what it leaves out, and what was in the store already.

The saving is claimed for the staged run as if the store had been empty, and without evaluation. The bill is what was
computed: with baselines and evaluation, without what was found in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from raystage.config.schedule import Costs
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.costs import Cost, Use, cost_of, minus
from raystage.results.record import StageRecord
from raystage.results.tuning import compared


@dataclass(frozen=True)
class LedgerEntry(Cost):
    """One kind of work over all finished stages, each counted once however many runs share it, and its cost.

    flops_reused: the part of `flops` that was found in the store. is_claimed: whether the saving counts it.
    """

    what: str
    flops: int
    flops_reused: int
    is_claimed: bool


@dataclass(frozen=True)
class Ledger:
    """flops_claimed: what the saving counts. flops_spent: everything that was computed, without what was reused.

    claimed, billed: the cost of each. currency: of their money. baseline_flops_apart: of the finished baselines, as if
    each had been trained alone; the saving compares with these.
    """

    entries: tuple[LedgerEntry, ...]
    flops_claimed: int
    flops_spent: int
    claimed: Cost
    billed: Cost
    currency: str | None
    baseline_flops_apart: int


class NetCost(NamedTuple):
    """Of several stages together. seconds: wall-clock time. duration: of training, in the unit of the stages."""

    flops: int
    seconds: float
    duration: int


def net_cost(records: Iterable[StageRecord]) -> NetCost:
    """The cost of stages together; what one of them took over from another counts once."""
    by_key = {record.key: record for record in records}
    prefixes = [record.prefix for record in by_key.values() if record.prefix and record.prefix.key in by_key]

    def net(field: str) -> float:
        spent = sum(getattr(record, field) for record in by_key.values())
        return spent - sum(getattr(prefix, field) for prefix in prefixes)

    return NetCost(net("flops"), net("seconds"), net("duration"))


class _Work(NamedTuple):
    """One kind of work in a stage. seconds: wall-clock time."""

    flops: int
    seconds: float
    energy_joules: float | None


_Measure = Callable[[StageRecord], _Work]


@dataclass(frozen=True)
class _Done:
    """The work of one kind in a stage, and the number of its devices."""

    work: _Work
    num_workers: int
    gpus_per_worker: int
    is_reused: bool

    @property
    def use(self) -> Use:
        worker_seconds = self.work.seconds * self.num_workers
        return Use(worker_seconds, worker_seconds * self.gpus_per_worker, self.work.energy_joules)


@dataclass(frozen=True)
class _Kind:
    """One kind of work over all finished stages, before it becomes an entry."""

    what: str
    is_claimed: bool
    done: tuple[_Done, ...]

    def entry(self, prices: Costs) -> LedgerEntry:
        return LedgerEntry(
            **asdict(cost_of(_use(self.done), prices)),
            what=self.what,
            flops=sum(one.work.flops for one in self.done),
            flops_reused=sum(one.work.flops for one in self.done if one.is_reused),
            is_claimed=self.is_claimed,
        )


def measure_ledger(
    plan: Plan,
    records: Mapping[str, StageRecord],
    states: Mapping[str, str],
    given_up: Sequence[StagePlan] = (),
) -> Ledger:
    """The ledger of the finished stages.

    records, states: by stage key, as `build_report` takes them. given_up: stages of rejected attempts. Tuned values
    that came out worse and further seeds were spent and are not claimed.
    """
    plan = compared(plan, records)
    kinds = _kinds(plan, records, states, given_up)
    entries = tuple(kind.entry(plan.costs) for kind in kinds)
    claimed = [one for kind in kinds if kind.is_claimed for one in kind.done]
    billed = [one for kind in kinds for one in kind.done if not one.is_reused]
    return Ledger(
        entries=entries,
        flops_claimed=sum(entry.flops for entry in entries if entry.is_claimed),
        flops_spent=sum(entry.flops - entry.flops_reused for entry in entries),
        claimed=cost_of(_use(claimed), plan.costs),
        billed=cost_of(_use(billed), plan.costs),
        currency=plan.costs.currency,
        baseline_flops_apart=sum(_flops_alone(run, records) for run in plan.baselines),
    )


def _kinds(
    plan: Plan, records: Mapping[str, StageRecord], states: Mapping[str, str], given_up: Sequence[StagePlan]
) -> list[_Kind]:
    staged = _distinct(plan.staged.stages, records)
    baselines = _distinct_of(plan.baselines, records, staged)
    members = _distinct_of(plan.teaching(plan.staged), records, staged)
    tried = _distinct([stage for stage in given_up if stage.key not in members], records)
    beside = _distinct_of(plan.branches, records, staged | members)
    of_ensembles = {stage.key for one in plan.ensembles for stage in one.members}
    others = {key: stage for key, stage in beside.items() if key in of_ensembles}
    branches = {key: stage for key, stage in beside.items() if key not in of_ensembles}
    tuning = _distinct_of(plan.pilots(), records, staged | baselines)
    seeds = _distinct_of(plan.known_runs(), records, staged | baselines | tuning | members | beside)

    def kind(what: str, stages: Mapping[str, StagePlan], work: _Measure, is_claimed: bool) -> _Kind:
        done = [_done(stage, records[key], work, states.get(key) == "REUSED") for key, stage in stages.items()]
        return _Kind(what, is_claimed, tuple(done))

    net = _net_work([records[key] for key in (*staged, *members, *tried)], (*members, *tried))
    return [
        kind("training the stages", staged, _training, is_claimed=True),
        kind("growing", staged, _growing, is_claimed=True),
        *([kind("training members that stages learn from", members, net, is_claimed=True)] if members else []),
        *([kind("attempts that were given up", tried, net, is_claimed=True)] if tried else []),
        kind("evaluating the stages", staged, _evaluation, is_claimed=False),
        *([kind("training other members", others, _whole, is_claimed=False)] if others else []),
        *([kind("evaluating members", members | others, _evaluation, is_claimed=False)] if members or others else []),
        *([kind("training delivered models", branches, _whole, is_claimed=False)] if branches else []),
        *([kind("evaluating delivered models", branches, _evaluation, is_claimed=False)] if branches else []),
        kind("training the baselines", baselines, _training, is_claimed=False),
        kind("evaluating the baselines", baselines, _evaluation, is_claimed=False),
        *([kind("tuning", tuning, _whole, is_claimed=False)] if plan.variants else []),
        *([kind("further seeds", seeds, _whole, is_claimed=False)] if plan.further_seeds else []),
        *(
            [kind("evaluating tuning and seeds", tuning | seeds, _evaluation, is_claimed=False)]
            if tuning or seeds
            else []
        ),
    ]


def _done(stage: StagePlan, record: StageRecord, work: _Measure, is_reused: bool) -> _Done:
    return _Done(work(record), record.num_workers, stage.training.gpus_per_worker, is_reused)


def _net_work(records: Sequence[StageRecord], tried: Iterable[str]) -> _Measure:
    """The cost of a stage beside the staged run, without the part that another stage took over from it. tried: their
    keys."""
    keys, given_up = {record.key for record in records}, set(tried)
    taken = [
        (record.prefix.key if record.prefix.key in given_up else record.key, record.prefix)
        for record in records
        if record.prefix and record.prefix.key in keys
    ]

    def net(record: StageRecord) -> _Work:
        flops, seconds, joules = record.flops, record.seconds, record.energy_joules
        for prefix in (prefix for key, prefix in taken if key == record.key):
            flops, seconds, joules = flops - prefix.flops, seconds - prefix.seconds, minus(joules, prefix.energy_joules)
        return _Work(flops, seconds, joules)

    return net


def _use(done: Iterable[_Done]) -> Use:
    return sum((one.use for one in done), Use())


def _distinct(stages: Iterable[StagePlan], records: Mapping[str, StageRecord]) -> dict[str, StagePlan]:
    """The finished stages by key, each once."""
    return {stage.key: stage for stage in stages if stage.key in records}


def _distinct_of(
    runs: Iterable[RunPlan], records: Mapping[str, StageRecord], others: Mapping[str, StagePlan]
) -> dict[str, StagePlan]:
    """The finished stages of runs, without those in `others`."""
    found = _distinct((stage for run in runs for stage in run.stages), records)
    return {key: stage for key, stage in found.items() if key not in others}


def _flops_alone(run: RunPlan, records: Mapping[str, StageRecord]) -> int:
    return sum(records[key].flops for key in _distinct(run.stages, records))


def _training(record: StageRecord) -> _Work:
    """Training alone; the totals of a record contain the growth."""
    grown = _growing(record)
    return _Work(
        record.flops - grown.flops,
        record.seconds - grown.seconds,
        minus(record.energy_joules, grown.energy_joules),
    )


def _growing(record: StageRecord) -> _Work:
    """FLOPs of the fit, where the operator fits anything."""
    growth = record.growth
    return _Work(growth.flops, growth.seconds, growth.energy_joules) if growth else _Work(0, 0.0, 0.0)


def _whole(record: StageRecord) -> _Work:
    """Training and growth."""
    return _Work(record.flops, record.seconds, record.energy_joules)


def _evaluation(record: StageRecord) -> _Work:
    return _Work(record.evaluation_flops, record.evaluation_seconds, record.evaluation_energy_joules)
