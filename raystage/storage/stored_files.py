"""The JSON files of a store: for each kind of file the keys that readers rely on, and the types of their values.

Further keys are accepted, since newer versions add some. Keys that newer versions added are not required.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from raystage.errors import DamagedFile
from raystage.files.sealed_json import body_of, without_lists
from raystage.files.typed_json import with_field_names
from raystage.models.manifest import check_model
from raystage.results.record import StageRecord
from raystage.results.report import RunReport, report_from_json
from raystage.results.sweep_report import SweepReport, sweep_report_from_json
from raystage.safe_text import visible
from raystage.units import TOKENS, Unit, shortened, shown

RUN_FILE, REPORT_FILE, STATUS_FILE = "run.json", "report.json", "status.json"
SWEEP_FILE, TRIAL_FILE = "sweep.json", "trial.json"

Found = TypeVar("Found")

_CHECKPOINT = re.compile(r"(checkpoints/)?\w[\w.-]*")
_STRICT = ConfigDict(strict=True, extra="allow")

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=10**30)]
StageKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
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
    unit: NotRequired[str]
    tokens: NotRequired[MaybeNumber]
    samples: NotRequired[MaybeNumber]
    loss: NotRequired[float | None]
    eval_loss: NotRequired[float | None]
    lr: NotRequired[float | None]
    speed: NotRequired[MaybeNumber]
    samples_per_second: NotRequired[MaybeNumber]
    seconds_left: NotRequired[MaybeNumber]
    attempts: NotRequired[MaybeCount]
    restarts: NotRequired[MaybeCount]
    checkpoints: NotRequired[str | None]
    last_checkpoint: NotRequired[str | None]
    waiting_for: NotRequired[str | None]
    interrupted_by: NotRequired[str | None]


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
    speed: NotRequired[MaybeNumber]
    samples_per_second: NotRequired[MaybeNumber]
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
    key: StageKey


class NamedRuns(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    runs: list[NamedRow]


class NamedModels(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    models: list[NamedRow]


class NamedMembers(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    members: list[NamedRow]


class ReportFile(TypedDict):
    """report.json, as far as it is read without being shown."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: NotRequired[str]
    state: NotRequired[str]
    kind: NotRequired[str]
    stages: NotRequired[list[NamedRow]]
    baseline: NotRequired[NamedRuns]
    delivered: NotRequired[NamedModels | None]
    members: NotRequired[list[NamedMembers]]


# --- records ------------------------------------------------------------------------------------


class _OneModel(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    single: str
    checkpoints: NotRequired[list[str]]


class RecordHead(TypedDict):
    """record.json, as far as a listing shows it."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")  # type: ignore[misc]
    key: str
    parent_key: str | None
    name: str
    tokens: NotRequired[Count]
    samples: NotRequired[Count]
    unit: NotRequired[Unit]
    eval_loss: Number
    checkpoint: str
    best_checkpoints: NotRequired[list[str]]
    average: NotRequired[_OneModel | None]
    adapter: NotRequired[_OneModel | None]


# --- checks -------------------------------------------------------------------------------------

_KINDS = {RUN_FILE: RunFile, REPORT_FILE: ReportFile, STATUS_FILE: StatusFile, SWEEP_FILE: SweepNote}
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def check_file(kind: str, content: Mapping[str, Any]) -> None:
    """Raises ValueError where `content` is not what a file of this kind holds; it says what was found and expected.

    kind: the name of the file. One that is not known here may hold anything.
    """
    if kind in _KINDS:
        _check(_KINDS[kind], content)


def report_from(content: Mapping[str, Any], place: str) -> RunReport:
    """The report of a run that `content` of `place` is. Raises DamagedFile."""
    return _report(report_from_json, content, place)


def sweep_report_from(content: Mapping[str, Any], place: str) -> SweepReport:
    """The report of a sweep that `content` of `place` is. Raises DamagedFile."""
    return _report(sweep_report_from_json, content, place)


def _report(read: Callable[[Mapping[str, Any]], Found], content: Mapping[str, Any], place: str) -> Found:
    try:
        return read(content)
    except ValueError as error:
        raise DamagedFile(damaged_report(place, error)) from None


def damaged_report(place: str, error: object) -> str:
    return f"{place}: damaged ({error}), or by another version of raystage; the run's own command writes it anew"


def record_from(content: dict[str, Any], key: str) -> StageRecord:
    """The record of stage `key`. Raises ValueError, TypeError or KeyError where `content` is none."""
    _check(StageRecord, with_field_names(StageRecord, content))
    check_model(content["shape"])
    record = StageRecord.from_json(content)
    if record.key != key:
        raise ValueError(f"key: found {record.key[:12]}; expected its own stage's, {key[:12]}")
    for place in record.needed_checkpoints:
        if not _CHECKPOINT.fullmatch(place):
            raise ValueError(f"checkpoint: found {shown(place)}; expected checkpoints/ and a name")
    for name, value in vars(record).items():
        if type(value) in (int, float) and not name.endswith("loss") and not value >= 0:
            raise ValueError(f"{name}: found {value}; expected 0 or more")
    return record


def record_head(text: bytes, key: str) -> dict[str, Any] | None:
    """What a listing says of the finished stage `key`, from a record whose checksum is right. None for any other file:
    `record_from` says what is wrong with it."""
    body = body_of(text)
    if body is None:
        return None
    try:
        head = _adapter(RecordHead).validate_json(without_lists(body, ("train", "evaluations")))
    except ValidationError:
        return None
    unit, average = head.get("unit", TOKENS), head.get("average") or {}
    single = (average or head.get("adapter") or {}).get("single", head["checkpoint"])
    needed = (head["checkpoint"], single, *head.get("best_checkpoints", ()), *average.get("checkpoints", ()))
    if head["key"] != key or unit not in head or not all(map(_CHECKPOINT.fullmatch, needed)):
        return None
    return {
        "parent_key": head["parent_key"],
        "needed": tuple(dict.fromkeys(place.rsplit("/", 1)[-1] for place in needed)),
        "name": head["name"],
        "duration": head[unit],
        "unit": unit,
        "eval_loss": head["eval_loss"],
    }


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))


def _check(kind: Any, content: Mapping[str, Any]) -> None:
    """Checked as JSON, where a list stands for a tuple and a mapping for a dataclass."""
    try:
        _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        # Keys of a file may be long, and the message may be logged.
        where = visible(shortened(".".join(map(str, first["loc"])), 200))
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
