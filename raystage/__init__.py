"""raystage: staged training on Ray Train and DeepSpeed, with the compute it saves measured.

    import raystage

    report = raystage.run("schedule.yaml")

`load`, `plan`, `run`, `sweep`, `report`, `average`, `load_model`: see `raystage.api`, which is imported when one of
them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raystage.api import Report, average, load, load_model, plan, report, run, sweep

__all__ = ["Report", "average", "load", "load_model", "plan", "report", "run", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'raystage' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module("raystage.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
