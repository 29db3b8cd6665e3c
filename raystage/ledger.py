"""Where the compute of a run went: what the saving counts, what it does not, what lay in the store already.

The saving is claimed for the staged run as if nothing had been there before, and without evaluation; the bill is
what was computed for it: baselines and evaluation too, but nothing that was found in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raystage.plan import Plan, RunPlan
from raystage.record import StageRecord

# (FLOPs, seconds) of one kind of work in a stage.
Work = Callable[[StageRecord], tuple[int, float]]


@dataclass(frozen=True)
class Entry:
    """One kind of work over all finished stages, each counted once however many runs share it.

    flops_reused: of `flops`, those of stages that were found in the store. worker_seconds: wall-clock times workers.
    is_claimed: whether the saving counts it.
    """

    what: str
    flops: int
    flops_reused: int
    worker_seconds: float
    is_claimed: bool


@dataclass(frozen=True)
class Ledger:
    """flops_claimed: what the saving counts. flops_spent: all that was computed, less what was reused.

    baseline_flops_apart: of the finished baselines, as if each had been trained alone, which is what the saving
    compares with.
    """

    entries: tuple[Entry, ...]
    flops_claimed: int
    flops_spent: int
    baseline_flops_apart: int


class NetCost(NamedTuple):
    """Of stages together. seconds: wall-clock; tokens: trained."""

    flops: int
    seconds: float
    tokens: int


def net_cost(records: Iterable[StageRecord]) -> NetCost:
    """What stages cost together: what one of them took over from another counts once."""
    by_key = {record.key: record for record in records}
    donors = [record.donor for record in by_key.values() if record.donor and record.donor.key in by_key]

    def net(field: str) -> float:
        spent = sum(getattr(record, field) for record in by_key.values())
        return spent - sum(getattr(donor, field) for donor in donors)

    return NetCost(net("flops"), net("seconds"), net("tokens"))


def measure_ledger(
    plan: Plan,
    records: Mapping[str, StageRecord],
    states: Mapping[str, str],
    given_up: Sequence[StageRecord] = (),
) -> Ledger:
    """Of the stages that are finished. records, states: by stage key, as `build_report` takes them. given_up: finished
    stages that were gone back on."""
    reused = {key for key, state in states.items() if state == "REUSED"}
    staged = _distinct([plan.staged], records)
    baselines = {key: one for key, one in _distinct(plan.baselines, records).items() if key not in staged}
    entries = (
        _entry("training the stages", staged, _training, reused, is_claimed=True),
        _entry("growing", staged, _growing, reused, is_claimed=True),
        *_given_up(staged, given_up, reused),
        _entry("evaluating the stages", staged, _evaluation, reused, is_claimed=False),
        _entry("training the baselines", baselines, _training, reused, is_claimed=False),
        _entry("evaluating the baselines", baselines, _evaluation, reused, is_claimed=False),
    )
    return Ledger(
        entries=entries,
        flops_claimed=sum(entry.flops for entry in entries if entry.is_claimed),
        flops_spent=sum(entry.flops - entry.flops_reused for entry in entries),
        baseline_flops_apart=sum(_flops_alone(run, records) for run in plan.baselines),
    )


def _given_up(
    staged: Mapping[str, StageRecord], given_up: Sequence[StageRecord], reused: set[str]
) -> tuple[Entry, ...]:
    """Attempts that led nowhere were spent all the same; what the stages took over from them is in theirs."""
    if not given_up:
        return ()
    flops, seconds, _ = net_cost([*staged.values(), *given_up])
    kept_flops, kept_seconds, _ = net_cost(staged.values())
    found = sum(record.flops for record in given_up if record.key in reused)
    workers = max(record.num_workers for record in given_up)
    return (
        Entry(
            "attempts that were given up",
            flops=flops - kept_flops,
            flops_reused=min(found, flops - kept_flops),
            worker_seconds=(seconds - kept_seconds) * workers,
            is_claimed=True,
        ),
    )


def _distinct(runs: Iterable[RunPlan], records: Mapping[str, StageRecord]) -> dict[str, StageRecord]:
    return {stage.key: records[stage.key] for run in runs for stage in run.stages if stage.key in records}


def _flops_alone(run: RunPlan, records: Mapping[str, StageRecord]) -> int:
    return sum(record.flops for record in _distinct([run], records).values())


def _entry(what: str, records: Mapping[str, StageRecord], work: Work, reused: set[str], is_claimed: bool) -> Entry:
    done = {key: work(record) for key, record in records.items()}
    return Entry(
        what,
        flops=sum(flops for flops, _ in done.values()),
        flops_reused=sum(flops for key, (flops, _) in done.items() if key in reused),
        worker_seconds=sum(seconds * records[key].num_workers for key, (_, seconds) in done.items()),
        is_claimed=is_claimed,
    )


def _training(record: StageRecord) -> tuple[int, float]:
    """(FLOPs, seconds) without growing, which a record's own totals contain."""
    flops, seconds = _growing(record)
    return record.flops - flops, record.seconds - seconds


def _growing(record: StageRecord) -> tuple[int, float]:
    """FLOPs of fitting, where the operator fits anything."""
    return (record.growth.flops, record.growth.seconds) if record.growth else (0, 0.0)


def _evaluation(record: StageRecord) -> tuple[int, float]:
    return record.evaluation_flops, record.evaluation_seconds
