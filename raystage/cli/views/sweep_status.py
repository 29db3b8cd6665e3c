"""What `raystage status` shows of a sweep: its trials, and whether the driver of the sweep still lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from raystage.reports.columns import STATE_STYLES, WholeTable, name_column, number_column
from raystage.storage.store import Store
from raystage.storage.stored_files import REPORT_FILE, SWEEP_FILE
from raystage.sweeps.space import describe
from raystage.sweeps.standing import WAITING, interrupted
from raystage.units import TOKENS, format_count, format_seconds, format_speed, unit_of


def is_sweep(status: Mapping[str, Any]) -> bool:
    return status.get("kind") == "sweep"


def from_sweep_files(store: Store, name: str) -> dict[str, Any] | None:
    """The status of a sweep that kept no status file, from its report. None if there is no sweep."""
    begun = store.read_run(name, SWEEP_FILE)
    if begun is None:
        return None
    report = store.read_run(name, REPORT_FILE) or {}
    state = report.get("state") or "ERRORED"
    trials = [
        {"number": row["number"], "name": row["name"], "state": row["state"], "config": row["config"],
         "eval_loss": row["eval_loss"], "error": row["error"]}
        for row in report.get("trials", ())
    ]  # fmt: skip
    return {
        "kind": "sweep", "state": "INTERRUPTED" if state == "RUNNING" else state, "started_at": begun.get("started_at"),
        "command": begun.get("command"), "stages": [], "trials": interrupted(trials), "doing": None, "best": None,
        "seconds_left": None, "flops_done": None, "flops_total": None, "flops_claimed": None,
    }  # fmt: skip


def judged(status: Mapping[str, Any]) -> dict[str, Any]:
    """If the driver has ended, no trial is running."""
    goes_on = status["state"] == "RUNNING" and status.get("is_alive") is not False
    trials = status["trials"] if goes_on else interrupted(status["trials"])
    return {**status, "trials": trials, "counts": dict(Counter(one["state"] for one in trials))}


def place_of(status: Mapping[str, Any]) -> str:
    """'3/12 trials': how many have finished."""
    return f"{status['counts'].get('FINISHED', 0)}/{len(status['trials'])} trials"


def trial_table(status: Mapping[str, Any]) -> RenderableType:
    """Every trial of a sweep; those that wait in one line at the end."""
    columns = (
        number_column("trial"), name_column("state"), number_column("eval"), name_column("stage"),
        number_column("step"), number_column("loss"), number_column("tok/s"), name_column("config"),
    )  # fmt: skip
    begun = [one for one in status["trials"] if one["state"] != WAITING]
    rows = [[_state(cell) if index == 1 else cell for index, cell in enumerate(_cells(one))] for one in begun]
    waiting = [str(one["number"]) for one in status["trials"] if one["state"] == WAITING]
    parts: list[RenderableType] = [WholeTable(None, columns, rows)] if rows else []
    if waiting:
        parts.append(Text(f"{WAITING}: trials {', '.join(waiting)}", style="dim"))
    return Group(*parts, "", *map(Text, _lines(status)))


def _lines(status: Mapping[str, Any]) -> list[str]:
    best, lines = status.get("best"), []
    if status.get("doing") and status["state"] == "RUNNING":
        lines.append(status["doing"])
    if best:
        lines.append(f"best so far: trial {best['number']}, {best['metric']} {best['value']:.4g}")
    if status.get("flops_done") is not None:
        total = f" of {status['flops_total']:.2e}" if status["flops_total"] is not None else ""
        apart = f" ({status['flops_claimed']:.2e} if trained apart)" if status["flops_claimed"] else ""
        lines.append(f"{status['flops_done']:.2e}{total} FLOPs{apart}")
    if status["state"] == "RUNNING" and status.get("is_alive") is not False:
        left = status.get("seconds_left")
        lines.append("time left: unknown" if left is None else f"time left: {format_seconds(left)}")
    return [*lines, *(f"trial {one['number']} failed: {one['error']}" for one in status["trials"] if one.get("error"))]


def _cells(trial: Mapping[str, Any]) -> list[str]:
    unit = unit_of(trial)

    def known(name: str, as_text: Any) -> str:
        return "-" if trial.get(name) is None else as_text(trial[name])

    return [
        str(trial["number"]),
        trial["state"],
        known("eval_loss", "{:.3f}".format),
        known("stage", str),
        known("step", lambda step: f"{step}/{trial['steps']}"),
        known("loss", "{:.3f}".format),
        known(f"{unit}_per_second", lambda speed: format_speed(speed, unit) if unit != TOKENS else format_count(speed)),
        describe(trial.get("config") or {}),
    ]


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))
