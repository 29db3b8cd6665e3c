"""The report of a sweep: what every view of it reads, and what report.json holds.

The fields stand in the order of the keys of the file. A figure that is not finite is None, as in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, LEFT_OUT_IF_EMPTY, from_json, json_key, unit_key
from raystage.results.record import Prefix
from raystage.results.seeds import Interval
from raystage.units import TOKENS, Unit


@dataclass(frozen=True, kw_only=True)
class ObjectiveRow:
    """What trials are judged by, as the sweep's file has it. target: a loss. at: FLOPs. source: of a mixture."""

    metric: str
    mode: str | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    target: float | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    at: int | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    source: str | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)

    @property
    def name(self) -> str:
        """What its figures are kept under."""
        return self.metric if self.source is None else f"{self.metric}/{self.source}"


@dataclass(frozen=True, kw_only=True)
class TrialStage:
    """A stage of a trial, as the report of its run has it."""

    name: str
    key: str
    state: str
    duration: int | None = field(metadata=unit_key())
    flops: int | None
    seconds: float | None
    eval_loss: float | None
    trained_for: str | None = None
    prefix: Prefix | None = field(default=None, metadata=json_key("donor"))
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial. name: of its run. error: why it failed.

    eval_loss, flops: at its last evaluation; FLOPs are counted from the start of its run. objectives: by metric, only
    of a finished trial. compute_saved: None where it was not measured. interval: the same over several seeds, whose
    mean it is then. rank: from 1, of finished trials.
    is_pareto: whether no other trial is better in one objective and no worse in the others.
    """

    number: int
    name: str
    state: str
    error: str | None
    config: Mapping[str, Any]
    stages: tuple[TrialStage, ...]
    eval_loss: float | None
    flops: int | None
    objectives: Mapping[str, float | None]
    compute_saved: float | None
    rank: int | None = None
    is_pareto: bool = False
    interval: Interval | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """flops_claimed: what the trials would have cost apart. flops_spent: what was trained for them, each stage once.

    sharing_factor: the first by the second; None where nothing was trained. seconds: wall-clock since the first start.
    """

    flops_claimed: int
    flops_spent: int
    sharing_factor: float | None
    stages_trained: int
    stages_claimed: int
    trials: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The trial with rank 1. schedule: as a user would write it."""

    number: int
    name: str
    config: Mapping[str, Any]
    objectives: Mapping[str, float | None]
    schedule: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """A sweep at any time, finished or not.

    trials: by number. pays_for_itself_after: the number of runs of the best schedule that save what the search cost;
    None if no saving is known. importance: by path its share in what separates the better half of the trials from the
    rest.
    """

    name: str
    kind: Literal["sweep"] = "sweep"
    state: str
    objective: tuple[ObjectiveRow, ...]
    trials: tuple[TrialRow, ...]
    search: SearchCost
    best: BestTrial | None
    pays_for_itself_after: float | None
    importance: Mapping[str, float] = field(default_factory=dict)


def sweep_report_from_json(content: Mapping[str, Any]) -> SweepReport:
    """The report in a sweep's report.json.

    Raises ValueError, which says where something else was found, what, and what was expected.
    """
    found = from_json(SweepReport, content)
    if not found.objective:
        raise ValueError("objective: found none; expected one or more")
    return found
