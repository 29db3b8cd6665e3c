"""The JSON files of a store: for each kind of file the keys that readers rely on, and the types of their values.

Further keys are accepted, since newer versions add some. Keys that newer versions added are not required.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from raystage.models.manifest import check_model
from raystage.results.record import StageRecord
from raystage.safe_text import visible
from raystage.units import shown

RUN_FILE, REPORT_FILE, STATUS_FILE = "run.json", "report.json", "status.json"
SWEEP_FILE, TRIAL_FILE = "sweep.json", "trial.json"

_CHECKPOINT = re.compile(r"(checkpoints/)?\w[\w.-]*")
_STRICT = ConfigDict(strict=True, extra="allow")

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
MaybeNumber = Number | None
# Files are named after stages: a name is no path.
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]{1,255}$")]
MaybeCount = Count | None


# --- runs ---------------------------------------------------------------------------------------


class StageState(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    run: str
    name: str
    key: str
    state: str


class RunFile(TypedDict):
    """run.json: what a driver writes for later ones."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    state: str
    stages: NotRequired[list[StageState]]
    started_at: NotRequired[MaybeNumber]
    updated_at: NotRequired[MaybeNumber]
    wandb_run_ids: NotRequired[dict[str, str]]
    written_keys: NotRequired[list[str]]
    discarded_keys: NotRequired[list[str]]
    schedule_as_set: NotRequired[dict[str, Any]]


class StageStatus(StageState):
    step: NotRequired[MaybeCount]
    steps: NotRequired[MaybeCount]
    tokens: NotRequired[MaybeNumber]
    loss: NotRequired[float | None]
    eval_loss: NotRequired[float | None]
    lr: NotRequired[float | None]
    tokens_per_second: NotRequired[MaybeNumber]
    seconds_left: NotRequired[MaybeNumber]
    attempts: NotRequired[MaybeCount]
    restarts: NotRequired[MaybeCount]
    checkpoints: NotRequired[str | None]
    last_checkpoint: NotRequired[str | None]
    waiting_for: NotRequired[str | None]


class TrialStatus(TypedDict):
    """A trial in the status of its sweep."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    number: Count
    name: str
    state: str
    config: dict[str, Any]
    eval_loss: MaybeNumber
    stage: NotRequired[str | None]
    step: NotRequired[MaybeCount]
    steps: NotRequired[MaybeCount]
    loss: NotRequired[MaybeNumber]
    tokens_per_second: NotRequired[MaybeNumber]
    error: NotRequired[str | None]


class StatusFile(TypedDict):
    """status.json: the state of a run. process: a damaged one counts as none (`process_of`)."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    state: str
    stages: list[StageStatus]
    updated_at: Number
    started_at: NotRequired[MaybeNumber]
    error: NotRequired[str | None]
    command: NotRequired[str | None]
    store: NotRequired[str | None]
    log: NotRequired[str | None]
    worker_logs: NotRequired[str | None]
    wandb_run_ids: NotRequired[dict[str, str]]
    trials: NotRequired[list[TrialStatus]]


class SweepNote(TypedDict):
    """sweep.json: what identifies a sweep."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    digest: str
    started_at: Number


# --- reports ------------------------------------------------------------------------------------


class NamedRow(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: FileName
    key: str


class NamedRuns(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    runs: list[NamedRow]


class ReportFile(TypedDict):
    """report.json, as far as it is read without being shown."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: NotRequired[str]
    state: NotRequired[str]
    kind: NotRequired[str]
    stages: NotRequired[list[NamedRow]]
    baseline: NotRequired[NamedRuns]


class GrowthRow(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    operator: str
    optimizer_state: str
    seconds: Number
    certificate: dict[str, Any]


class StoredPoint(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    tokens: Number
    steps: Number
    flops: Number
    seconds: Number
    loss: MaybeNumber
    run_seconds: NotRequired[MaybeNumber]


class ReportRow(TypedDict):
    """A stage, or a chain of stages of a baseline."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: str
    key: str
    state: str
    num_params: Count
    num_layers: Count
    num_workers: Count
    zero_stage: Count
    tokens: MaybeNumber
    steps: MaybeCount
    flops: MaybeNumber
    seconds: MaybeNumber
    worker_seconds: MaybeNumber
    peak_memory_bytes: MaybeNumber
    eval_loss: MaybeNumber
    growth: GrowthRow | None
    evaluations: list[StoredPoint]
    train: list[StoredPoint]
    perplexity: NotRequired[MaybeNumber]
    accuracy: NotRequired[MaybeNumber]
    metrics: NotRequired[dict[str, MaybeNumber] | None]
    stopped_by: NotRequired[str | None]


class BudgetRow(ReportRow):
    budget_tokens: Number
    tokens_per_parameter: Number


class BaselineRows(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    runs: list[BudgetRow]


class SavingsPart(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    verdict: Annotated[str, Field(min_length=1)]
    equal_loss_reached: bool | None
    at_eval_loss: MaybeNumber
    compute_saved: MaybeNumber
    speedup: MaybeNumber
    time_saved: MaybeNumber
    flops_staged: MaybeNumber
    flops_baseline: MaybeNumber
    tokens_saved: NotRequired[MaybeNumber]
    at_equal_flops: NotRequired[str | None]
    seeds: NotRequired[dict[str, Any] | None]


class RunReport(TypedDict):
    """report.json of a run, as far as it is shown."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: str
    state: str
    stages: Annotated[list[ReportRow], Field(min_length=1)]
    baseline: BaselineRows
    tokens_per_parameter: Number
    savings: SavingsPart
    warnings: list[str]
    attempts: NotRequired[list[dict[str, Any]]]
    given_up: NotRequired[list[ReportRow]]
    environment: NotRequired[dict[str, Any]]
    ledger: NotRequired[dict[str, Any] | None]
    seeds: NotRequired[list[dict[str, Any]]]
    tuning: NotRequired[dict[str, Any] | None]


class TrialRow(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    number: Count
    config: dict[str, Any]
    state: str
    rank: MaybeCount
    eval_loss: MaybeNumber
    flops: MaybeNumber
    objectives: dict[str, MaybeNumber]
    stages: list[dict[str, Any]]


class ObjectiveRow(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    metric: str


class SearchPart(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    flops_claimed: Number
    flops_spent: Number
    sharing_factor: MaybeNumber


class SweepReport(TypedDict):
    """report.json of a sweep, as far as it is shown."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: str
    state: str
    trials: list[TrialRow]
    objective: Annotated[list[ObjectiveRow], Field(min_length=1)]
    search: SearchPart
    best: dict[str, Any] | None
    importance: dict[str, Number]
    pays_for_itself_after: MaybeNumber


class Figure(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    value: Number
    stderr: MaybeNumber


class TaskRow(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    metrics: dict[str, Figure]
    num_examples: Count


class EvaluationFile(TypedDict):
    """evaluations/<stage>.json: the results of downstream tasks."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    key: str
    tasks: dict[str, TaskRow]


# --- checks -------------------------------------------------------------------------------------

_KINDS = {
    RUN_FILE: RunFile, REPORT_FILE: ReportFile, STATUS_FILE: StatusFile, SWEEP_FILE: SweepNote,
    "evaluation": EvaluationFile, "run": RunReport, "sweep": SweepReport,
}  # fmt: skip
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def check_file(kind: str, content: Mapping[str, Any]) -> None:
    """Raises ValueError where `content` is not what a file of this kind holds; it says what was found and expected.

    kind: the name of the file, or `evaluation`; `run`, `sweep`: a report with everything that is shown of it. A kind
    that is not known here may hold anything.
    """
    if kind in _KINDS:
        _check(_KINDS[kind], content)


def record_from(content: dict[str, Any], key: str) -> StageRecord:
    """The record of stage `key`. Raises ValueError, TypeError or KeyError where `content` is none."""
    _check(StageRecord, content)
    check_model(content["shape"])
    record = StageRecord.from_json(content)
    if record.key != key:
        raise ValueError(f"key: found {record.key[:12]}; expected its own stage's, {key[:12]}")
    for place in (record.checkpoint, *record.best_checkpoints):
        if not _CHECKPOINT.fullmatch(place):
            raise ValueError(f"checkpoint: found {shown(place)}; expected checkpoints/ and a name")
    for name, value in vars(record).items():
        if type(value) in (int, float) and not name.endswith("loss") and not value >= 0:
            raise ValueError(f"{name}: found {value}; expected 0 or more")
    return record


def _check(kind: Any, content: Mapping[str, Any]) -> None:
    """Checked as JSON, where a list stands for a tuple and a mapping for a dataclass."""
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = visible(".".join(map(str, first["loc"])))  # keys of a file: the message may be logged
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
