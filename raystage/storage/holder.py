"""Who holds a stage: plain values that are written into files and told to listeners."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ProcessName:
    """A process among those of all hosts.

    host: for people. machine: equal for two processes only where each sees the other's id: one boot of one machine,
    one container. started: seconds from boot to the process's start, since ids come round again.
    """

    host: str
    machine: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ProcessName:
        """Raises ValueError, TypeError or KeyError where it is none."""
        if not 0 < content["pid"] < 2**31:
            raise ValueError(f"no process id: {content['pid']}")
        try:
            return cls(str(content["host"]), str(content["machine"]), int(content["pid"]), float(content["started"]))
        except OverflowError:
            raise ValueError(f"no time of a start: {content['started']}") from None


@dataclass(frozen=True)
class Holder:
    """Who has a ticket for a stage. is_held: not just claimed. since: in seconds since 1970.

    owner, since: None where the ticket is damaged.
    """

    ticket: str
    is_held: bool
    owner: ProcessName | None
    since: float | None

    def __str__(self) -> str:
        if self.owner is None:
            return f"somebody whose lease {self.ticket}.json is damaged"
        return f"{self.owner} (since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))})"
