"""Sections that many schedules have alike, read once: ten thousand trials of a sweep differ in a few values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# What is looked up as a whole. `until` is not among it: mostly it is another in every trial.
_OF_FILE = ("data", "model", "objective", "training", "baseline", "init", "costs")
_OF_STAGE = ("data", "model", "objective", "training", "accept", "on_reject", "grow", "freeze", "thaw", "average")
MOST = 1_024  # a section that is another in every trial is forgotten some time

_Place = tuple[int | None, str]  # the index of a stage, None for the file; and the key


class KnownSections:
    """Sections by what is written in them. A schedule that has equal sections gets the same objects, so that what
    follows from them can be found by these."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Any] = {}

    def read(self, content: dict, parse: Callable[[dict], Any]) -> Any:
        """The schedule that `parse` makes of its content. Raises what that raises about the content as it is written:
        sections are validated as a part of the whole."""
        keys = dict(_written(content))
        if not keys:
            return parse(content)
        known = {place: self._known[key] for place, key in keys.items() if key in self._known}
        schedule = parse(_with(content, known)) if known else parse(content)
        if len(self._known) + len(keys) > MOST:
            self._known.clear()
        for (index, name), key in keys.items():
            if (index, name) not in known:
                self._known[key] = getattr(schedule if index is None else schedule.stages[index], name)
        return schedule


def _written(content: dict) -> Iterator[tuple[_Place, tuple[object, ...]]]:
    """The sections of a content with what each follows from: its text, and for paths in it the file's data and the
    names of the stages, which may be teachers."""
    stages = content.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return
    around = (*(str(stage.get("name")) for stage in stages), repr(content.get("data")))
    for index, section, names in ((None, content, _OF_FILE), *((i, one, _OF_STAGE) for i, one in enumerate(stages))):
        for name in names:
            if name in section:
                yield (index, name), (around, index is None, name, repr(section[name]))


def _with(content: dict, known: dict[_Place, Any]) -> dict:
    """The content with known sections in place of what is written."""
    found = {**content, "stages": [dict(stage) for stage in content["stages"]]}
    for (index, name), section in known.items():
        (found if index is None else found["stages"][index])[name] = section
    return found
