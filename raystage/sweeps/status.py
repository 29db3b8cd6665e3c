"""The status of a sweep: shown while it runs, and written to the sweep's folder as a run's status is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from raystage.files.retry import brief
from raystage.files.sealed_json import written
from raystage.runs.status import HEARTBEAT_SECONDS, WRITE_SECONDS, read_status
from raystage.storage.processes import this_process
from raystage.storage.store import Store
from raystage.storage.stored_files import STATUS_FILE
from raystage.sweeps.reports.build import TrialOutcome
from raystage.sweeps.standing import SweepStanding, Watcher, interrupted
from raystage.sweeps.trials import SweepPlan
from raystage.timers import RepeatingTimer

# Each look reads the status files of all running trials, from an object store one request each.
REMOTE_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class SweepDisplay(Protocol):
    """say: report an event. show: show the present state. Both are called from several threads."""

    def say(self, line: str) -> None: ...

    def show(self, standing: SweepStanding) -> None: ...

    def close(self) -> None: ...


class SweepStatus:
    """Looks at the trials every few seconds, and writes and shows their state. outcomes: what Tune knows."""

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        command: str,
        outcomes: Callable[[], Sequence[TrialOutcome]],
        display: SweepDisplay,
        seconds: float | None = None,
    ) -> None:
        self._plan, self._store, self._command, self._outcomes, self._display = plan, store, command, outcomes, display
        self._folder = store.run_folder(plan.sweep.name)
        self._began = time.time()
        self._process = this_process()
        self._watcher = Watcher(plan, lambda name: read_status(store.run_folder(name)), self._began)
        self._doing: str | None = None
        self._written: tuple[float, object] = 0.0, None
        self._has_warned = False
        self._lock = threading.Lock()
        self._look()
        self._ticker = RepeatingTimer(
            "raystage-sweep-status",
            seconds or (WRITE_SECONDS if self._folder.is_local else REMOTE_SECONDS),
            brief(self._look),
        )

    def prepares(self, what: str) -> None:
        """What is being started, shown until the first trial trains."""
        self._doing = what
        self._display.say(what)

    def ended(self, error: BaseException | None) -> None:
        self._ticker.stop()
        is_interrupted = isinstance(error, KeyboardInterrupt)
        state = "FINISHED" if error is None else "ABORTED" if is_interrupted else "ERRORED"
        self._look(state, None if error is None or is_interrupted else str(error) or type(error).__name__)

    def _look(self, state: str = "RUNNING", error: str | None = None) -> None:
        with self._lock:
            try:
                standing = self._watcher.look(self._outcomes(), time.time(), self._doing)
                self._write(standing, state, error)
            except Exception as problem:  # a status must not end a sweep; Tune's trials change during the look
                if not self._has_warned:
                    _logger.warning("%s/%s: %s", self._folder.uri, STATUS_FILE, problem)
                self._has_warned = True
                return
        if state == "RUNNING":
            self._display.show(standing)

    def _write(self, standing: SweepStanding, state: str, error: str | None) -> None:
        facts = standing.to_json()
        written_at, before = self._written
        new = (state, {**facts, "seconds_left": None})
        if new == before and time.monotonic() - written_at < HEARTBEAT_SECONDS:
            return
        content = {
            "name": self._plan.sweep.name,
            "kind": "sweep",
            "state": state,
            "error": error,
            "process": self._process.to_json(),
            "started_at": self._began,
            "updated_at": time.time(),
            "command": self._command,
            "store": self._store.folder.uri,
            "stages": [],
            **facts,
            "trials": interrupted(facts["trials"]) if state != "RUNNING" else facts["trials"],
        }
        self._folder.write_whole(STATUS_FILE, written(content))
        self._written = time.monotonic(), new
