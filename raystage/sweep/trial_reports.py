"""What the store has of a sweep's trials: the reports of their runs, and the records of their stages.

A sweep that goes on is noted again and again. Of what will not change, thousands of files after a while, only what the
sweep's own report says is kept, and the rest is read once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raystage.errors import RaystageError
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from raystage.storage.stored_files import REPORT_FILE
from raystage.sweep.report import TrialOutcome, needed_of

_logger = logging.getLogger(__name__)


class TrialReports:
    """The reports and records of the trials of sweep `name`."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._reports: dict[int, dict[str, Any]] = {}
        self._records: dict[str, StageRecord] = {}

    def reports(self, outcomes: Sequence[TrialOutcome]) -> dict[int, dict[str, Any]]:
        """By trial the report of its run, where there is one; of a trial at its end as it was read first."""
        read = {one.number: self._report(one.number) for one in outcomes}
        found = {number: report for number, report in read.items() if report is not None}
        ended = {one.number for one in outcomes if one.state == "FINISHED"}
        self._reports = {number: report for number, report in found.items() if number in ended}
        return found

    def _report(self, number: int) -> dict[str, Any] | None:
        if number in self._reports:
            return self._reports[number]
        try:
            report = self._store.read_run(f"{self._name}-{number}", REPORT_FILE)
        except RaystageError as error:
            _logger.warning("left out: %s", error)
            return None
        return None if report is None else needed_of(report)

    def records(self, reports: Iterable[Mapping[str, Any]]) -> dict[str, StageRecord]:
        """By key the finished stages of all trials, and those that they went on from, which are in no report where
        LAG's choice is; without their curves."""
        found: dict[str, StageRecord] = {}
        waiting = [stage["key"] for report in reports for stage in report["stages"]]
        while waiting:
            key = waiting.pop()
            if key not in found and (record := self._record(key)):
                found[key] = record
                waiting += [record.donor.key] if record.donor else []
        return found

    def _record(self, key: str) -> StageRecord | None:
        if key not in self._records and (record := self._store.readable_record(key)):
            self._records[key] = replace(record, train=(), evaluations=(), growth=None)
        return self._records.get(key)
