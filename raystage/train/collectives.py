"""Plain Python values exchanged between the workers of a Train run."""

from __future__ import annotations

from typing import Any

from torch import distributed


def broadcast_object(value: Any) -> Any:
    """The first worker's value, on every worker. What was found in the store must not differ between workers."""
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_objects(value: Any, group: Any = None) -> list:
    """Every worker's value, in the order of ranks. group: a process group; None stands for the default one."""
    values: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group)
    return values
