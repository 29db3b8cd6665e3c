"""How a sweep stands, kept in its folder while it goes, as a run's status is; and shown at the same time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from raystage.files.sealed_json import written
from raystage.run.status import SIGN_OF_LIFE_SECONDS, WRITE_SECONDS, read_status
from raystage.storage.processes import this_process
from raystage.storage.store import Store
from raystage.storage.stored_files import STATUS_FILE
from raystage.sweep.console import SweepDisplay
from raystage.sweep.report import TrialOutcome
from raystage.sweep.standing import INTERRUPTED, SweepStanding, Watcher
from raystage.sweep.trials import SweepPlan
from raystage.timers import Ticker

# An object store is asked for the files of all running trials each time.
REMOTE_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class SweepStatus:
    """Looks at the trials every few seconds; writes down and shows how they stand. outcomes: what Tune knows."""

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
        self._ticker = Ticker(
            "raystage-sweep-status", seconds or (WRITE_SECONDS if self._folder.is_local else REMOTE_SECONDS), self._look
        )

    def prepares(self, what: str) -> None:
        """What is being started, until the first trial trains."""
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
            except Exception as problem:  # no sweep ends for its status; Tune's trials change while they are looked at
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
        if new == before and time.monotonic() - written_at < SIGN_OF_LIFE_SECONDS:
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


def interrupted(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of a sweep whose driver goes on no more: none of them is running."""
    return [{**one, "state": INTERRUPTED} if one["state"] == "RUNNING" else one for one in trials]
