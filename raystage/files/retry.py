"""Which errors of a storage service pass by themselves, and how they are waited out.

Everything that raystage asks of a file system goes through `retried`, and this is the only place that knows how
often and how long. Waiting is exponential with full jitter, so that workers that failed together do not come back
together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")

# pyarrow tells the errors of S3 apart in their text alone: "AWS Error SLOW_DOWN during PutObject operation: ...". An
# answer without a body (to HEAD) has only its status: "AWS Error UNKNOWN (HTTP status 503)".
_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT)\b"
    r"|\(HTTP status (408|429|5\d\d)\)"
)
# Not the generator of the `random` module itself, whose state a training may depend on.
_jitter = random.SystemRandom()


@dataclass(frozen=True)
class Retries:
    """How often something is tried in all, and how long is waited in between."""

    attempts: int = 6
    first_seconds: float = 0.2
    longest_seconds: float = 10.0

    def pauses(self, draw: Callable[[], float]) -> Iterator[float]:
        """The seconds to wait after each failed attempt but the last; `draw` gives numbers in [0, 1)."""
        for failed in range(self.attempts - 1):
            yield draw() * min(self.longest_seconds, self.first_seconds * 2**failed)


RETRIES = Retries()


def is_transient(error: OSError) -> bool:
    """Whether the same may succeed when it is tried again: the connection, a time-out, an overloaded service.

    What is missing (404) or forbidden (403) stays so, and so does a full disk.
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
    """What `action` returns, which may be carried out several times. Raises its last OSError."""
    for pause in retries.pauses(draw):
        try:
            return action()
        except OSError as error:
            if not is_transient(error):
                raise
        sleep(pause)
    return action()
