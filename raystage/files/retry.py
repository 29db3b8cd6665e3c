"""Which errors of a storage service pass by themselves, and how operations are retried.

Every operation on a file system goes through `retried`; only this module knows how often and how long it waits. The
waiting time is exponential with full jitter, so that workers that failed together do not retry together (Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")

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
    """The number of attempts, and the waiting times between them."""

    attempts: int = 6
    first_seconds: float = 0.2
    longest_seconds: float = 10.0

    def pauses(self, draw: Callable[[], float]) -> Iterator[float]:
        """The seconds to wait after each failed attempt except the last; `draw` returns numbers in [0, 1)."""
        for failed in range(self.attempts - 1):
            yield draw() * min(self.longest_seconds, self.first_seconds * 2**failed)


RETRIES = Retries()


def is_transient(error: OSError) -> bool:
    """Whether a retry may succeed: for a connection, a time-out, an overloaded service.

    A missing (404) or forbidden (403) object stays so, and so does a full disk.
    """
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or _TRANSIENT.search(str(error)) is not None


def retried(
    action: Callable[[], Result],
    retries: Retries = RETRIES,
    draw: Callable[[], float] = _jitter.random,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """The result of `action`, which may be called several times. Raises its last OSError."""
    for pause in retries.pauses(draw):
        try:
            return action()
        except OSError as error:
            if not is_transient(error):
                raise
        sleep(pause)
    return action()
