"""Reads the micro batches of the next steps in a thread, while a step is computed.

What is read, and in which order, is what it would be without the thread. So nothing here changes a result.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from raystage.train.reading.micro_batches import StepBatches

# Micro batches that lie ready. One would do if reading always took as long.
DEPTH = 2


@dataclass(frozen=True)
class _Failed:
    """Takes the place of what could not be read."""

    error: BaseException


class ReadAhead:
    """steps: of a stage, in their order. It is gone through in the thread, up to `depth` micro batches before they are
    asked for. waited_seconds: how long those who asked have waited.

    An error in `steps` is raised where the step would begin, or the micro batch, that could not be read.
    """

    def __init__(self, steps: Iterable[StepBatches], depth: int = DEPTH) -> None:
        self.waited_seconds = 0.0
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(steps,), name="raystage-reading", daemon=True)
        self._thread.start()

    def next_step(self) -> StepBatches:
        """The next step. All micro batches of the step before must have been taken."""
        step = self._take()
        return replace(step, micro_batches=(self._take() for _ in range(step.number)))

    def close(self) -> None:
        """End the thread, whatever it has still to read. Returns when it has ended."""
        self._is_over.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(0.01)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _take(self) -> Any:
        began = time.monotonic()
        found = self._ready.get()
        self.waited_seconds += time.monotonic() - began
        if isinstance(found, _Failed):
            self._ready.put(found)  # whoever asks again is told again
            raise found.error
        return found

    def _drain(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            pass

    def _read(self, steps: Iterable[StepBatches]) -> None:
        try:
            for found in _one_by_one(steps):
                self._ready.put(found)
                if self._is_over.is_set():
                    return
            self._ready.put(_Failed(EOFError("asked for more steps than there are")))
        except Exception as error:
            self._ready.put(_Failed(error))


def _one_by_one(steps: Iterable[StepBatches]) -> Iterator[Any]:
    """Each step without its micro batches, then these."""
    for step in steps:
        yield replace(step, micro_batches=())
        yield from step.micro_batches
