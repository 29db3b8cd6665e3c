"""Large grids of cases: `make test` tries some of each, `make drills` the others too."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

import pytest

Case = TypeVar("Case")


def drilled(cases: Iterable[Case], but: Collection[Case]) -> list:
    """For `parametrize`: cases that are drills, but for some. Raises ValueError for one of `but` that is no case."""
    cases = list(cases)
    if missing := [one for one in but if one not in cases]:
        raise ValueError(f"found {missing}; expected some of {cases}")
    return [one if one in but else pytest.param(one, marks=pytest.mark.drill) for one in cases]


def selected(request: pytest.FixtureRequest, name: str, cases: Iterable[Case]) -> list[Case]:
    """The cases that tests of the asking module are run with. name: that the tests call a case by."""
    of_module = [item for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    wanted = [item.callspec.params[name] for item in of_module if name in item.callspec.params]
    return [one for one in cases if one in wanted]
