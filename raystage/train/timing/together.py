"""Work that may take one worker hours and others nothing, such as tokenizing on a node that is new.

A collective that waits for it would end with an error after the limit of its process group, and a worker that waits in
it sends no heartbeats. So the work goes on in a thread, and all workers ask each other about once a second whether all
are done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed

from raystage.train.collectives import all_gather_objects, portable
from raystage.train.heartbeat import HEARTBEAT_SECONDS, Heartbeat

Result = TypeVar("Result")


def done_together(work: Callable[[], Result], heartbeat: Heartbeat, poll_seconds: float = HEARTBEAT_SECONDS) -> Result:
    """What `work` gives, when all workers have theirs. Collective. If it fails on one worker, this raises on all of
    them, without waiting for the others' work."""
    task = _Task(work)
    while True:
        task.join(poll_seconds)
        are_done, has_failed = _standing(not task.is_alive(), task.error is not None)
        if has_failed:
            raise _error_of_all(task.error)
        if are_done:
            return task.result
        heartbeat.goes_on()


class _Task(threading.Thread):
    """error: what `work` raised. result: what it gave."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(name="raystage-work", daemon=True)
        self._work = work
        self.result: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # raised on all workers
            self.error = error


def _standing(is_done: bool, has_failed: bool) -> tuple[bool, bool]:
    """Whether all workers are done, and whether one has failed."""
    found = torch.tensor([int(is_done), int(not has_failed)], device=get_accelerator().current_device_name())
    distributed.all_reduce(found, op=distributed.ReduceOp.MIN)
    are_done, have_not_failed = found.tolist()
    return bool(are_done), not have_not_failed


def _error_of_all(own: Exception | None) -> Exception:
    """Of a worker that has failed its own; of the others that of the first one."""
    found = all_gather_objects(own and portable(own))
    return own or next(error for error in found if error is not None)
