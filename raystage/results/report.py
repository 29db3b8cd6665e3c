"""The report of a run: what every view of it reads, and what report.json holds.

The fields stand in the order of the keys of the file. A loss or another figure that is not finite is None, as in JSON.
Fields with a default are those that files of older versions lack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raystage.config.schedule import Costs
from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, LEFT_OUT_IF_EMPTY, from_json, json_key, to_json, unit_key
from raystage.objectives.plan import NEXT_TOKEN
from raystage.plans.gates import Rejection
from raystage.results.branches.family import DeliveredFamily
from raystage.results.branches.members import EnsembleMembers
from raystage.results.costs import Use, cost_of
from raystage.results.data.data_use import DataRow
from raystage.results.endings import AdapterRecord, AverageRecord
from raystage.results.ledger import Ledger
from raystage.results.record import Certificate, Evaluation, GrowthRecord, Prefix, TrainPoint
from raystage.results.savings import Savings
from raystage.results.scoring import ScoringRecord
from raystage.results.seeds import Interval, OverSeeds
from raystage.results.tuning import Tuning
from raystage.units import TOKENS, Unit

# --- a stage, or a budget of the baseline -----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint(Evaluation):
    """An evaluation in its run. run_seconds: from the start of the run; None where an earlier stage is not finished."""

    loss: float | None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    sources: Mapping[str, float | None] = field(default_factory=dict, metadata=LEFT_OUT_IF_EMPTY)
    run_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingPoint(TrainPoint):
    """A point of the training curve in its run; run_seconds as for an evaluation."""

    loss: float | None
    lr: float | None = None
    gradient_norm: float | None = None
    speed: float | None = field(default=None, metadata=unit_key("{}_per_second"))
    run_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class CertificateRow(Certificate):
    eval_loss_before: float | None
    eval_loss_after: float | None
    max_logit_difference: float | None
    moment_norms: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GrowthRow(GrowthRecord):
    certificate: CertificateRow


@dataclass(frozen=True, kw_only=True)
class AverageRow(AverageRecord):
    """gain: how much lower the loss of the average is than that of the last checkpoint."""

    eval_loss: float | None
    single_eval_loss: float | None
    best_eval_loss: float | None
    gain: float | None


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """What a stage and a chain of stages have in common. Totals are None until every stage is finished.

    duration, steps, flops: of the row alone; the duration is in `unit`. seconds: of growing, training and saving.
    metrics: the schedule's own, at the end. average: of the last checkpoints, where the row ends with a try of it.
    scoring: of its documents by the loss of a model, whose cost is part of the row's.
    """

    name: str
    key: str
    state: str
    num_params: int
    num_layers: int
    num_workers: int
    resizes: int | None = None
    zero_stage: int
    duration: int | None = field(metadata=unit_key())
    steps: int | None
    flops: int | None
    seconds: float | None
    worker_seconds: float | None
    evaluation_seconds: float | None = None
    evaluation_flops: int | None = None
    peak_memory_bytes: int | None
    eval_loss: float | None
    perplexity: float | None = None
    accuracy: float | None = None
    metrics: Mapping[str, float | None] | None = None
    evaluations: tuple[EvaluationPoint, ...]
    train: tuple[TrainingPoint, ...]
    growth: GrowthRow | None
    average: AverageRow | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    scoring: ScoringRecord | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    adapter: AdapterRecord | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    compiled_graphs: int | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)  # by torch, with training.compile
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)
    loss_unit: str = field(default=NEXT_TOKEN.entry.loss_unit, metadata=LEFT_OUT_IF_DEFAULT)


@dataclass(frozen=True, kw_only=True)
class StageRow(ResultRow):
    """A stage. start_...: where it begins, counted from the start of the run. stopped_by: what ended it, in a sentence.
    trained_for: the run that finished it. prefix: the shorter version that it continued."""

    start: int = field(default=0, metadata=unit_key("start_{}"))
    start_flops: int = 0
    start_seconds: float | None = None
    stopped_by: str | None = None
    trained_for: str | None = None
    prefix: Prefix | None = field(default=None, metadata=json_key("donor"))


@dataclass(frozen=True, kw_only=True)
class BudgetRow(ResultRow):
    """One budget of the baseline. Stages that budgets share count in full: each is what it would cost alone."""

    budget: int = field(metadata=unit_key("budget_{}"))
    length_per_parameter: float = field(metadata=unit_key("{}_per_parameter"))


@dataclass(frozen=True)
class BaselinePart:
    """A row for each budget. data: what they read where the stages read different texts, `last` or `staged`."""

    runs: tuple[BudgetRow, ...]
    data: str | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)


# --- the other parts --------------------------------------------------------------------------


@dataclass(frozen=True)
class SavingsPart(Savings):
    """The savings of the schedule's own seed. With several seeds also those over all, and the verdict is theirs."""

    seeds: OverSeeds | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)

    @property
    def interval(self) -> Interval | None:
        """The mean of the compute saved over the seeds with its interval; None with one seed, or where one of them has
        no figure."""
        return self.seeds and self.seeds.compute_saved

    @property
    def share(self) -> float | None:
        """The compute saved: the mean where there are several seeds."""
        return self.compute_saved if self.seeds is None else self.interval and self.interval.mean


@dataclass(frozen=True)
class SeedRow:
    """One of several seeds, with the savings of that seed alone."""

    seed: int
    staged_eval_loss: float | None
    compute_saved: float | None
    loss_difference_at_equal_flops: float | None


@dataclass(frozen=True)
class TaskFigure:
    """A metric of a downstream task, with its standard error."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """By metric its figure, over so many examples."""

    metrics: Mapping[str, TaskFigure]
    num_examples: int
    num_fewshot: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageTasks:
    """What downstream tasks found of a stage, by task. seconds: of all tasks of the last call."""

    stage: str | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    key: str
    seconds: float | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    lm_eval: str | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    tasks: Mapping[str, TaskResult]


@dataclass(frozen=True, kw_only=True)
class EnsembleRow:
    """A model on the held-out data of an ensemble. key: of a member that is a stage of the store. training_flops: of
    its stage and all stages before, each once; None where that is not known. forward_flops: of one token or sample."""

    name: str
    key: str | None
    eval_loss: float | None
    accuracy: float | None
    training_flops: int | None
    forward_flops: int


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What was found of several models on the held-out data of a stage. prediction: of all members together. weights:
    of the model with the mean of their weights; None where their shapes differ. seconds: of measuring."""

    name: str
    stage: str
    key: str
    members: tuple[EnsembleRow, ...]
    prediction: EnsembleRow
    weights: EnsembleRow | None
    seconds: float
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)
    loss_unit: str = field(default=NEXT_TOKEN.entry.loss_unit, metadata=LEFT_OUT_IF_DEFAULT)

    @property
    def rows(self) -> tuple[EnsembleRow, ...]:
        return (*self.members, self.prediction, *((self.weights,) if self.weights else ()))


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run at any time, finished or not.

    stages: of the staged run; if values were tuned, of the best ones. attempts, given_up: what gates rejected, and the
    finished stages that led there. length_per_parameter: tokens or samples, of the staged run. delivered: the models
    that stages deliver. members: of its ensembles. warnings: what makes the savings open to doubt. environment: when,
    where and with what the run was made, by name. downstream, ensembles: what `raystage evaluate` found, by stage, and
    `raystage ensemble` or the run itself, by name; kept in files of their own. unit: of the last stage, in which the
    baselines count.
    """

    name: str
    state: str
    stages: tuple[StageRow, ...]
    attempts: tuple[Rejection, ...] = ()
    given_up: tuple[StageRow, ...] = ()
    baseline: BaselinePart
    tuning: Tuning | None = None
    seeds: tuple[SeedRow, ...] = ()
    length_per_parameter: float = field(metadata=unit_key("{}_per_parameter"))
    savings: SavingsPart
    ledger: Ledger | None = None
    delivered: DeliveredFamily | None = field(default=None, metadata=LEFT_OUT_IF_EMPTY)
    members: tuple[EnsembleMembers, ...] = field(default=(), metadata=LEFT_OUT_IF_EMPTY)
    warnings: tuple[str, ...]
    data: tuple[DataRow, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    downstream: Mapping[str, StageTasks] = field(default_factory=dict, metadata=LEFT_OUT_IF_EMPTY)
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict, metadata=LEFT_OUT_IF_EMPTY)
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)


# --- from a file ------------------------------------------------------------------------------


def report_from_json(content: Mapping[str, Any]) -> RunReport:
    """The report in a report.json of this version or an older one.

    Raises ValueError, which says where something else was found, what, and what was expected.
    """
    found = from_json(RunReport, _of_this_version(content))
    if not found.stages:
        raise ValueError("stages: found none; expected one or more")
    if not found.savings.verdict:
        raise ValueError("savings.verdict: found no text; expected a sentence")
    return found


def _of_this_version(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with what older versions left out or wrote in another form.

    A part that is not of its kind stays as it is: reading it says what is wrong.
    """
    newer = dict(content)
    for key, renew in (("tuning", _tuning), ("ledger", _ledger), ("savings", _savings)):
        if isinstance(part := content.get(key), dict):
            newer[key] = renew(part)
    return newer


def _tuning(part: dict[str, Any]) -> dict[str, Any]:
    """Once there was one best value for all budgets, by the last of them."""
    return {key: _each(side, "rows", _with_marks) if isinstance(side, dict) else side for key, side in part.items()}


def _with_marks(row: dict[str, Any]) -> dict[str, Any]:
    losses = row.get("eval_losses")
    last = losses[-1] if isinstance(losses, list) and losses else None
    return _each(row, "eval_losses", lambda loss: {"is_best": row.get("is_best") and loss is last, **loss})


def _ledger(part: dict[str, Any]) -> dict[str, Any]:
    """Once there were no costs."""
    nothing = to_json(cost_of(Use(energy_joules=None), Costs()))
    known = {"claimed": nothing, "billed": nothing, "currency": None, **part}
    return _each(known, "entries", lambda entry: {**nothing, **entry})


def _savings(part: dict[str, Any]) -> dict[str, Any]:
    """Once it was not said what an interval covers."""
    seeds = part.get("seeds")
    return {**part, "seeds": {"covers": "", **seeds}} if isinstance(seeds, dict) else part


def _each(part: dict[str, Any], key: str, renew: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The part with each object in its list `key` renewed."""
    rows = part.get(key)
    if not isinstance(rows, list):
        return part
    return {**part, key: [renew(row) if isinstance(row, dict) else row for row in rows]}
