"""What the plans of many schedules have in common, worked out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Most sweeps need ten or so; one that varies what results follow from needs each of them once.
MOST = 1_024


class Shared:
    """Results by what they follow from: by the identity of some objects, which stay here so that no other object gets
    the id of one, and by the value of a name."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Any, tuple[object, ...]]] = {}

    def found(self, name: object, parts: tuple[object, ...], make: Callable[[], Any]) -> Any:
        """The result for these parts, made if it is not known. What `make` raises is raised every time."""
        key = (name, *map(id, parts))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST:
                self._known.clear()
            known = self._known[key] = (make(), parts)
        return known[0]
