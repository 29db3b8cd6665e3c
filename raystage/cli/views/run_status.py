"""What `raystage status` shows: the status files of drivers, and whether these drivers still live."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from raystage.cli.views.sweep_status import from_sweep_files, is_sweep, judged, place_of, trial_table
from raystage.errors import DamagedFile, InputError, RaystageError
from raystage.reports.build import DONE
from raystage.reports.columns import STATE_STYLES, WholeTable
from raystage.reports.formats import KEY_DIGITS
from raystage.runs.status import process_of, silence
from raystage.storage.naming import known_run
from raystage.storage.processes import is_gone
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE, STATUS_FILE, TRIAL_FILE
from raystage.sweeps.standing import INTERRUPTED
from raystage.units import TOKENS, Unit, format_count, format_seconds, format_speed, unit_of

_RUN_FIELDS = ("error", "process", "started_at", "updated_at", "command", "log", "worker_logs")
_GOING = ("RUNNING", "RESTARTING")
_ENDED = ("FINISHED", "ERRORED", "ABORTED", INTERRUPTED)
# The state of a stage that had not started when its run ended.
NOT_STARTED = "NOT_STARTED"
_STAGE_FIELDS = (
    "step", "steps", "{unit}", "loss", "eval_loss", "lr", "{unit}_per_second", "seconds_left", "attempts", "restarts",
    "checkpoints", "last_checkpoint", "waiting_for", "interrupted_by",
)  # fmt: skip


def _empty_stage(unit: Unit) -> dict[str, None]:
    return dict.fromkeys(field.format(unit=unit) for field in _STAGE_FIELDS)


def status_of(store: Store, name: str, now: float) -> dict[str, Any]:
    """The status of a run. `is_alive`: whether its driver lives, None if the run has ended. `note`: why it may be dead.

    Raises InputError if there is no such run, RaystageError if its file is damaged.
    """
    return _status(store, known_run(store, name, "NAME"), now)


def _status(store: Store, name: str, now: float) -> dict[str, Any]:
    """A file without a checksum may hold what no run has. An error while it is shown means that it does."""
    try:
        found = _found_status(store, name, now)
        run_table(found, now), lines_below(found), runs_table([found], now)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        place = store.run_folder(name).uri
        problem = f"{place}: the status is damaged ({type(error).__name__}: {error})"
        raise DamagedFile(f"{problem}; the run's own command writes it anew") from None
    return found


def _found_status(store: Store, name: str, now: float) -> dict[str, Any]:
    found = _read(store, name, STATUS_FILE) or _from_run_file(store, name) or _from_sweep_files(store, name)
    if found is None:
        raise InputError(f"no run has been started in {store.run_folder(name).uri}", key="NAME")
    is_said_to_go_on = found["state"] == "RUNNING" and found["updated_at"] is not None
    process = process_of(found) if is_said_to_go_on else None
    reason = silence(process, found["updated_at"], now) if process else None
    found["is_alive"] = None if process is None else reason is None
    found["note"] = f"{reason}; continue with: {found['command']}" if reason else found["error"]
    if process and is_gone(process):
        found["state"] = INTERRUPTED
        found["stages"] = [row | {"state": INTERRUPTED} if row["state"] in _GOING else row for row in found["stages"]]
    if found["state"] in _ENDED:
        found["stages"] = [
            row | {"state": NOT_STARTED} if row["state"] == "SCHEDULING" else row for row in found["stages"]
        ]
    if is_sweep(found):
        return judged(found)
    trial = store.read_run(name, TRIAL_FILE)
    return {**found, "sweep": trial["sweep"]} if isinstance(trial, dict) and "sweep" in trial else found


def all_statuses(store: Store, now: float) -> list[dict[str, Any]]:
    """The status of every run of a store, the last changed first. A run that cannot be read is damaged."""
    found = []
    for name in store.run_names():
        try:
            found.append(_status(store, name, now))
        except InputError:
            continue  # a folder without a run
        except RaystageError as error:
            found.append({**dict.fromkeys(_RUN_FIELDS), "name": name, "state": "damaged", "store": store.folder.uri,
                          "wandb_run_ids": {}, "stages": [], "is_alive": None, "note": str(error)})  # fmt: skip
    return sorted(found, key=lambda status: -(status["updated_at"] or 0.0))


def _read(store: Store, name: str, file: str) -> dict[str, Any] | None:
    """A file of a run, with null for missing fields; None if there is no file. Raises RaystageError."""
    content = store.read_run(name, file)
    if content is None:
        return None
    stages = [{**_empty_stage(unit_of(row)), **row} for row in content.get("stages", ())]
    return {**dict.fromkeys(_RUN_FIELDS), "wandb_run_ids": {}, **content, "name": name, "stages": stages}


def _from_sweep_files(store: Store, name: str) -> dict[str, Any] | None:
    """The status of a sweep by a version that kept no status file."""
    try:
        found = from_sweep_files(store, name)
    except (ValueError, TypeError, KeyError) as error:
        place = store.run_folder(name).uri
        raise RaystageError(f"{place}: damaged ({error}); expected a sweep's JSON files. Run it again") from None
    fields = dict.fromkeys((*_RUN_FIELDS, "log", "process"))
    return found and {**fields, "wandb_run_ids": {}, "name": name, "store": store.folder.uri, **found}


def _from_run_file(store: Store, name: str) -> dict[str, Any] | None:
    """The status of a run by a version that kept no status file: only the states of its stages."""
    found = _read(store, name, RUN_FILE)
    if found is None:
        return None
    found.pop("schedule", None)
    return {**found, "store": store.folder.uri}


# --- for people -------------------------------------------------------------------------------


def runs_table(statuses: Sequence[Mapping[str, Any]], now: float) -> RenderableType:
    """A line for each run with its current stage, and for each sweep without its trials."""
    names = ("run", "state", "stage", "step", "loss", "eval", "left", "changed")
    sweeps = {status["name"] for status in statuses if is_sweep(status)}
    shown = [status for status in statuses if status.get("sweep") not in sweeps]
    return _whole(None, names, [_run_row(status, now) for status in shown])


def _run_row(status: Mapping[str, Any], now: float) -> list[str | Text]:
    if is_sweep(status):
        best = status["best"]["value"] if status.get("best") else None
        at_hand = {"step": "-", "loss": "-", "eval": "-" if best is None else f"best {best:.4g}"}
    else:
        at_hand = _at_hand(status)
    left, goes_on = status.get("seconds_left"), status["state"] == "RUNNING"
    return [
        status["name"], _state(status["state"]), place_of(status) if is_sweep(status) else _place(status),
        *(at_hand[name] for name in ("step", "loss", "eval")),
        format_seconds(left) if left is not None and goes_on else "-",
        _ago(status["updated_at"], now),
    ]  # fmt: skip


def notes(statuses: Sequence[Mapping[str, Any]]) -> list[str]:
    """The problems of runs, and how to continue them."""
    return [f"{status['name']}: {status['note']}" for status in statuses if status["note"]]


def run_table(status: Mapping[str, Any], now: float) -> RenderableType:
    """Every stage of one run, every trial of a sweep."""
    if is_sweep(status):
        return Group(_title(status, now), "", trial_table(status))
    units = {unit_of(row) for row in status["stages"]}
    done, speed = ("tokens", "tok/s") if units <= {TOKENS} else ("done", "speed")
    names = ("stage", "run", "state", "step", "loss", "eval", "left", "restarts", done, "rate", speed, "attempts",
             "key")  # fmt: skip
    rows = [_stage_row(row, names) for row in status["stages"]]
    left = [Text(line) for line in _time_left(status)]
    return Group(_title(status, now), *left, "", _whole(None, names, rows))


def _time_left(status: Mapping[str, Any]) -> list[str]:
    """The time left for the whole run, while it runs."""
    if status["state"] != "RUNNING" or status["is_alive"] is False:
        return []
    left, doing = status.get("seconds_left"), status.get("doing")
    known = "unknown" if left is None else format_seconds(left)
    return [*([doing] if doing else []), f"time left for the run, baselines included: {known}"]


def lines_below(status: Mapping[str, Any]) -> list[str]:
    """What is waited for, why nothing is trained, the problem if there is one, and where files are."""
    waiting = [f"{row['name']} waits for {row['waiting_for']}" for row in status["stages"] if row["waiting_for"]]
    stopped = [f"{row['name']}: {row['interrupted_by']}" for row in status["stages"] if row.get("interrupted_by")]
    places = (
        ("log", status["log"]),
        ("workers' logs", status["worker_logs"]),
        ("checkpoints", f"stages/KEY/checkpoints in {status['store']}" if status.get("store") else None),
        ("W&B runs", ", ".join(f"{run} {identity}" for run, identity in status["wandb_run_ids"].items())),
        ("command", status["command"]),
    )
    note = [status["note"]] if status["note"] else []
    return ["", *stopped, *waiting, *note, *(f"{what}: {place}" for what, place in places if place)]


def _title(status: Mapping[str, Any], now: float) -> Text:
    process = process_of(status)
    driver = f", {process}" if process else ""
    return Text.assemble(
        (status["name"], "bold"), " ", _state(status["state"]), f"{driver}, changed {_ago(status['updated_at'], now)}"
    )


def _stage_row(row: Mapping[str, Any], names: Sequence[str]) -> list[str | Text]:
    cells = _cells(row)
    return [_state(row["state"]) if name == "state" else cells[name] for name in names]


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    unit = unit_of(row)

    def known(name: str, as_text: Any) -> str:
        return "-" if row[name] is None else as_text(row[name])

    return {
        "run": row["run"],
        "stage": row["name"],
        "step": f"{row['step']}/{row['steps']}" if row["steps"] is not None else "-",
        "tokens": known(unit, format_count),
        "done": known(unit, lambda done: f"{format_count(done)} {unit}"),
        "loss": known("loss", lambda loss: f"{loss:.3f}"),
        "eval": known("eval_loss", lambda loss: f"{loss:.3f}"),
        "rate": known("lr", lambda lr: f"{lr:.2g}"),
        "tok/s": known(f"{unit}_per_second", format_count),
        "speed": known(f"{unit}_per_second", lambda speed: format_speed(speed, unit)),
        "left": known("seconds_left", format_seconds),
        "attempts": known("attempts", str),
        "restarts": known("restarts", str),
        "key": row["key"][:KEY_DIGITS],
    }


def _at_hand(status: Mapping[str, Any]) -> dict[str, str]:
    """The cells of the current stage of a run."""
    rows = status["stages"]
    return _cells(rows[_index_at_hand(rows)]) if rows else dict.fromkeys(("step", "loss", "eval", "left"), "-")


def _index_at_hand(rows: Sequence[Mapping[str, Any]]) -> int:
    """The index of the first stage that is not finished, else of the last."""
    return next((n for n, row in enumerate(rows) if row["state"] not in DONE), len(rows) - 1)


def _place(status: Mapping[str, Any]) -> str:
    """'2/3 medium': the current stage of a run."""
    rows = status["stages"]
    if not rows:
        return "-"
    index = _index_at_hand(rows)
    return f"{index + 1}/{len(rows)} {rows[index]['name']}"


def _ago(at: float | None, now: float) -> str:
    return "-" if at is None else f"{format_seconds(now - at)} ago"


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def _whole(title: str | None, names: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> WholeTable:
    return WholeTable(title, tuple(Column(name) for name in names), rows, make=_bare)


def _bare(title: str | None, columns: Iterable[Column]) -> Table:
    return Table(*columns, title=title, box=None, header_style="dim", padding=(0, 1, 0, 0))
