"""How workers tell the driver how they do: the class of a small Ray actor, which loads in no time."""

from __future__ import annotations

from typing import Any

from raystage.errors import RaystageError


class Mailbox:
    """What workers have said and nobody has fetched yet; and why training must not be tried again, if so."""

    def __init__(self) -> None:
        self._events: list[tuple[str, str, Any]] = []
        self._failure: RaystageError | None = None

    def put(self, kind: str, key: str, what: Any) -> None:
        self._events.append((kind, key, what))

    def take(self) -> list[tuple[str, str, Any]]:
        taken, self._events = self._events, []
        return taken

    def fail(self, error: RaystageError) -> None:
        self._failure = self._failure or error

    def failure(self) -> RaystageError | None:
        return self._failure
