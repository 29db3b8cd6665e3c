"""Which errors of a storage service pass by themselves, and how operations are retried.

Every operation on a file system goes through `retried`; only this module knows how long it is patient. The waiting time
is exponential with full jitter, so that workers that failed together do not retry together (Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import itertools
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from raystage.units import first_line, format_seconds

Result = TypeVar("Result")

_LOG = logging.getLogger("raystage.files")

# pyarrow distinguishes the errors of S3 only in their text: "AWS Error SLOW_DOWN during PutObject operation: ...". An
# answer without a body (to HEAD) has only its status: "AWS Error UNKNOWN (HTTP status 503)".
_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT)\b"
    r"|\(HTTP status (408|429|5\d\d)\)"
)
# Not the generator of the `random` module: a training may depend on its state.
_jitter = random.SystemRandom()


@dataclass(frozen=True)
class Retries:
    """seconds: after the end of the first attempt; no other begins later. The others are of the times between them."""

    seconds: float
    first_seconds: float = 0.2
    longest_seconds: float = 10.0

    def pauses(self, draw: Callable[[], float]) -> Iterator[float]:
        """The seconds to wait after each failed attempt; `draw` returns numbers in [0, 1)."""
        for failed in itertools.count():
            yield draw() * min(self.longest_seconds, self.first_seconds * 2 ** min(failed, 32))


# A service that is started anew is back within minutes, and so is a network that is mended. A run of weeks waits.
RETRIES = Retries(300.0)
# Of the first contact with a service, whose name or address may be wrong; and of what is done again and again anyway.
BRIEF = Retries(10.0)
# Once in this time it is said that a service does not answer.
_SAY_AGAIN_SECONDS = 60.0
_SAY_AFTER_SECONDS = 5.0
_said_at = float("-inf")
_retries: ContextVar[Retries | None] = ContextVar("retries", default=None)


def is_transient(error: OSError) -> bool:
    """Whether a retry may succeed: for a connection, a time-out, an overloaded service.

    A missing (404) or forbidden (403) object stays so, and so does a full disk.
    """
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or _TRANSIENT.search(str(error)) is not None


def retried(
    action: Callable[[], Result],
    retries: Retries | None = None,
    draw: Callable[[], float] = _jitter.random,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """The result of `action`, which may be called many times. Raises its last OSError.

    retries: `RETRIES` by default; `BRIEF` within what was made `brief`. That a service does not answer is logged
    once in a minute.
    """
    retries = retries or _retries.get() or RETRIES
    failed_at: float | None = None
    for pause in retries.pauses(draw):
        try:
            return action()
        except OSError as error:
            now = clock()
            failed_at = now if failed_at is None else failed_at
            waited = now - failed_at
            if not is_transient(error) or waited + pause > retries.seconds:
                raise
            if waited > _SAY_AFTER_SECONDS:
                _say(error, retries.seconds - waited, now)
        sleep(pause)
    raise AssertionError("pauses have no end")


def brief(action: Callable[[], Result]) -> Callable[[], Result]:
    """The same action, which is repeated at an interval and so need not be patient: whoever ends it waits for it."""

    def run() -> Result:
        token = _retries.set(BRIEF)
        try:
            return action()
        finally:
            _retries.reset(token)

    return run


def _say(error: OSError, seconds_left: float, now: float) -> None:
    global _said_at  # of this process: a service that does not answer, does not answer to many operations
    if now - _said_at >= _SAY_AGAIN_SECONDS:
        _said_at = now
        left = format_seconds(seconds_left)
        _LOG.warning("the storage does not answer; trying again for %s (%s)", left, first_line(error))
